"""The page of nnx serve as one file that works offline: to mail, to open on a phone, to project."""

import ast
import base64
import hashlib
import html
import io
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nnx.errors import CheckFailed, InputError
from nnx.events import Choice
from nnx.export import Predict, _check
from nnx.export import numpy as numpy_format

if TYPE_CHECKING:
    from nnx.export._network import ExportedNetwork
    from nnx.preprocessing.spec import Spec

ENDING = ".html"
PACKAGES = ()
TOLERANCE = 1e-4
WITHOUT_TORCH = True

FORMATS = {"int19": "19-bit integers with a scale for each matrix", "float32": "32-bit floats"}  # of weights
FEW = 500_000  # bytes of weights that are not shortened
ALPHABET = "".join(chr(code) for code in range(33, 127) if chr(code) not in "<>&\"'\\`-!")  # 85 that end no script
HALF = 85**3 // 2  # an int19 is from -HALF to HALF, so it takes three characters
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SAMPLES, ROOM = 50, 60_000  # in the page: at most so many, and so many bytes
PATIENCE = 600  # seconds for a browser, or node, to predict a batch
SPREAD = 3  # standard deviations around the mean: the range of a column in the form
RUNNER = ".runner"  # the file beside the page that says what runs it in the check

ROOT = Path(__file__).parent.parent
SERVED, OWN = ROOT / "serve" / "page", ROOT / "export" / "_page"
NETWORK = """const network = (() => {{
  const numbers = readNumbers(facts.numbers, weights, facts.alphabet);
  const {{ {names} }} = arithmetic;

  // The forward pass: what goes into a layer is what came out of the layer before it.
  function forward(x, see) {{
{lines}
    return x;
  }}

{rest}
}})();
"""
NODE = """
const [page, questions] = [1, 2].map((n) => require("fs").readFileSync(process.argv[n], "utf8"));
if (!page.trimEnd().endsWith("</html>")) throw new Error("the page is cut off");
const script = (id) => page.match(new RegExp(`<script id="${id}"[^>]*>([^]*?)</script>`))[1];
const run = `const facts = ${script("facts")}; const weights = ${JSON.stringify(script("weights").trim())};
${script("network").replaceAll('"use strict";', "")}; answerAll(${questions})`;
process.stdout.write(`<pre id="found">${require("vm").runInNewContext(run, { atob, btoa, performance })}</pre>`);
"""


# ---------------------------------------------------------------- the file


def encode(network: "ExportedNetwork", facts: dict[str, Any]) -> dict[str, bytes]:
    """The page. `facts` may also name the format of its weights, by default float32, and describe samples and the
    check. Raises InputError for a network without a forward pass here, and for images that are no pictures."""
    if network.spec.is_image and network.spec.shape[0] not in (1, 3):
        raise InputError(f"--format html: needs images in gray or in colours, not of {network.spec.shape[0]} channels")
    pass_ = _forward_pass(network, facts)
    listed, weights = _pack(pass_.arrays, facts.get("weights", "float32"))
    known = {key: facts[key] for key in ("model", "classes", "spec", "accuracy", "nnx", "checkpoint_sha256")}
    known |= {
        "columns": _columns(network.spec),
        "drawing": _accepts_drawings(network.spec),
        "parameters": sum(parameter.numel() for parameter in network.network.parameters()),
        "patch": getattr(network.network, "patch", None),
        "read": getattr(network.network, "read", None),
        "samples": facts.get("samples", {"split": "", "listed": []}),
        "alphabet": ALPHABET,
        "numbers": "NUMBERS",
    }
    data = json.dumps(known, allow_nan=False).replace('"NUMBERS"', json.dumps(listed).replace("Infinity", "1e999"))
    computing = "\n".join([_read(OWN, "arithmetic.js"), _read(OWN, "weights.js"), _javascript(pass_.lines)])
    scripts = [
        _script(data.replace("<", "\\u003c"), 'id="facts" type="application/json"'),
        _script(weights, 'id="weights" type="text/plain"'),
        _script(_read(OWN, "start.js")),
        _script(computing, 'id="network"'),
        *(_script(_read(OWN, name)) for name in ("prepare.js", "offline.js")),
        *(_script(_read(SERVED, name)) for name in ("pictures.js", "drawing.js", "form.js", "page.js")),
        _script(_read(OWN, "check.js")),  # last, so that a damaged page has none
    ]
    statistics = network.spec.image_statistics
    return {ENDING: _assemble(scripts, facts | {"reads_ink": bool(statistics and statistics.plain)}).encode()}


def _assemble(scripts: list[str], facts: dict[str, Any]) -> str:
    """The page of nnx serve, with its files inside, and a policy that forbids all else."""
    style = f"<style>\n{_read(SERVED, 'style.css')}{_read(OWN, 'offline.css')}</style>"
    icon = base64.b64encode((SERVED / "icon.svg").read_bytes()).decode()
    inline = [re.sub(r"^<[^>]*>|</script>$", "", script) for script in scripts if 'type="' not in script[:60]]
    allowed, own = " ".join(map(_hash, inline)), _hash(style.removeprefix("<style>").removesuffix("</style>"))
    policy = f"default-src 'none'; img-src data: blob:; media-src blob:; script-src {allowed}; style-src {own}"
    policy += "; base-uri 'none'; form-action 'none'"
    meta = '<meta charset="utf-8">'
    page = re.sub(r"<script src=[^>]*></script>\n|<nav>.*</nav>\n?", "", _read(SERVED, "index.html"))
    for place, content in (
        ('<link rel="stylesheet" href="style.css">', style),
        ('href="icon.svg"', f'href="data:image/svg+xml;base64,{icon}"'),
        (meta, f'{meta}\n<meta http-equiv="Content-Security-Policy" content="{policy}">'),
        ("</main>", f"</main>\n<footer>{_footer(facts)}</footer>"),
        ("</body>", "\n".join(scripts) + "\n</body>"),
    ):
        assert place in page, f"the page of nnx serve has no {place}"
        page = page.replace(place, content)
    return page


def _footer(facts: dict[str, Any]) -> str:
    """What this file is, and how it was checked, as HTML."""
    accuracy, check = facts["accuracy"], facts.get("check")
    lines = ["This page works offline: the network is inside, and nothing that you draw leaves it."]
    if check:
        lines.append(
            f"Largest difference of a probability from PyTorch's, on {check['samples']:,} {accuracy['split']} samples, "
            f"{check['runner']}: {check['difference']:.1e}. Weights: {FORMATS[facts['weights']]}."
        )
    if facts.get("reads_ink"):
        lines.append("A photograph needs even light here; nnx serve and nnx predict also read ink on shaded paper.")
    lines.append(f"Made by nnx {facts['nnx']} from the checkpoint with the SHA-256 {facts['checkpoint_sha256']}.")
    return "".join(f"<p>{html.escape(line)}</p>" for line in lines)


def _script(content: str, attributes: str = "") -> str:
    assert "</script" not in content.lower()
    return f"<script{' ' * bool(attributes)}{attributes}>{content}</script>"


def _hash(content: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


def _read(folder: Path, name: str) -> str:
    return (folder / name).read_text(encoding="utf-8")


def _accepts_drawings(spec: "Spec") -> bool:
    """Whether the training images are strokes of ink, or nobody knows what they are."""
    statistics = spec.image_statistics
    return spec.is_image and spec.shape[0] in (1, 3) and (statistics is None or statistics.plain)


def _columns(spec: "Spec") -> list[dict[str, Any]]:
    """The fields of the form for a row of a table, as nnx serve describes them without the dataset."""
    from nnx.preprocessing.columns import CategoryColumn, NumberColumn

    if spec.is_image:
        return []
    columns = spec.columns.columns if spec.columns else None
    if columns is None:
        features = enumerate(zip(spec.mean, spec.std, strict=True))
        columns = tuple(NumberColumn(f"feature {n}", mean, std, mean) for n, (mean, std) in features)
    described: list[dict[str, Any]] = []
    for column in columns:
        common = {"name": column.name, "kind": column.kind, "features": len(column.feature_names), "frequent": []}
        if isinstance(column, CategoryColumn):
            names = list(column.categories)
            described.append({**common, "categories": names, "codes": names, "typical": names[0] if names else None})
        else:
            low, high = (column.mean + sign * SPREAD * column.std for sign in (-1, 1))
            typical = f"{column.round(column.missing if column.std else column.mean):.15g}"
            described.append({**common, "mean": column.mean, "low": low, "high": high, "typical": typical})
    return described


# ---------------------------------------------------------------- the samples


def _samples(spec: "Spec", split: str, inputs: NDArray[Any], labels: NDArray[np.int64]) -> dict[str, Any]:
    """Samples with their true labels, of all classes in turn, as plain values: as many as there is room for. Without
    rows with a category that the training data does not contain: the form can't express it."""
    seen: Counter[int] = Counter()
    turns = np.empty(len(labels), int)
    for n, label in enumerate(labels.tolist()):
        turns[n], seen[label] = seen[label], seen[label] + 1
    columns: Sequence[Any] = spec.columns.columns if spec.columns else [None] * spec.size
    listed: list[dict[str, Any]] = []
    room = ROOM
    for n in np.argsort(turns, kind="stable").tolist():
        sample: dict[str, Any] = {"index": n, "label": int(labels[n])}
        if spec.is_image:
            image = base64.b64encode(np.ascontiguousarray(inputs[n].transpose(1, 2, 0)).tobytes()).decode()
            sample["image"] = {"shape": list(spec.shape), "data": image}
        else:
            row = [_as_text(value, column) for value, column in zip(inputs[n], columns, strict=True)]
            if None in row:
                continue
            sample["row"] = row
        room -= len(json.dumps(sample))
        if room < 0 or len(listed) == SAMPLES:
            break
        listed.append(sample)
    return {"split": {"train": "training"}.get(split, split), "listed": listed}


def _as_text(value: Any, column: Any) -> str | None:
    """A value of a raw row as the form takes it, empty if it is missing, None for an unknown category."""
    if np.isnan(value):
        return ""
    if column is None:
        return str(value)  # a float32, with as many digits as it has
    if column.kind == "number":
        return f"{column.round(value):.15g}"
    return str(column.categories[int(value)]) if value >= 0 else None


# ---------------------------------------------------------------- the numbers


def _pack(arrays: dict[str, Any], weights: str) -> tuple[list[dict[str, Any]], str]:
    """Arrays by name -> a list of what they are, and those of floats in base 85. The matrices have the named format,
    vectors are float32, arrays of other types are in the list."""
    listed: list[dict[str, Any]] = []
    parts: list[str] = []
    for name, array in arrays.items():
        described: dict[str, Any] = {"name": name, "shape": list(array.shape)}
        if array.dtype != np.float32:
            described["values"] = array.tolist()
        elif weights == "int19" and _is_matrix(array):
            integers, described["scale"] = _to_integers(array)
            parts.append(_base85(integers + HALF, 3))
        else:
            parts.append(_base85(np.ascontiguousarray(array).view(np.uint32), 5))
        listed.append(described)
    return listed, "".join(parts)


def _is_matrix(array: NDArray[Any]) -> bool:
    return array.dtype == np.float32 and array.squeeze().ndim > 1


def _to_integers(array: NDArray[np.float32]) -> tuple[NDArray[np.int64], float]:
    """Integers from -HALF to HALF, and the scale that makes them the numbers again."""
    scale = float(np.abs(array).max(initial=0)) / HALF or 1.0
    return np.rint(array.astype(np.float64) / scale).astype(np.int64), scale


def _rounded(array: NDArray[np.float32]) -> NDArray[np.float32]:
    """Each number as int19 gives it back."""
    integers, scale = _to_integers(array)
    return (integers * scale).astype(np.float32)


def _base85(values: NDArray[Any], digits: int) -> str:
    """Non-negative integers with so many characters each: 5 for 32 bits, where base64 takes 7 % more."""
    powers = 85 ** np.arange(digits - 1, -1, -1)
    codes = values.astype(np.int64).reshape(-1, 1) // powers % 85
    return bytes(np.frombuffer(ALPHABET.encode(), np.uint8)[codes]).decode()


# ---------------------------------------------------------------- the forward pass


def _forward_pass(network: "ExportedNetwork", facts: dict[str, Any]) -> numpy_format.ForwardPass:
    try:
        return numpy_format.write(network, facts)
    except InputError as error:
        raise InputError(str(error).replace("--format numpy", "--format html")) from None


def _javascript(lines: list[str]) -> str:
    """The lines of a forward pass in numpy, for batches -> the same in JavaScript, for one sample. After each layer,
    `see` is called with its title and its output."""
    written, title = [], ""
    variables = {"x"}
    for before, line in pairwise(["start", *lines]):
        if line.startswith("# "):
            if title:
                written.append(f"see({json.dumps(title)}, x);")
            title = line[2:].partition(":")[0] if not before else ""
            written.append(f"// {line[2:]}")
        elif line and not line.startswith("#"):
            (statement,) = ast.parse(line).body
            assert isinstance(statement, ast.Assign)
            (target,) = statement.targets
            assert isinstance(target, ast.Name)
            name = _camel(target.id)
            let = "" if name in variables else "let "
            variables.add(name)
            written.append(f"{let}{name} = {_expression(statement.value)};")
    code = "\n".join(f"    {line}" for line in written)
    functions = [name for name in sorted(set(re.findall(r"(?<![\w.])\w+(?=\()", code))) if name != "see"]
    rest = _read(OWN, "look.js")
    names = ", ".join(sorted({*functions, "linear", "softmax", "twoClasses", "tensor"}))
    return NETWORK.format(names=names, lines=code, rest=rest)


def _expression(node: ast.expr) -> str:
    """An expression of a forward pass in numpy, in JavaScript."""
    match node:
        case ast.Name(name):
            return _camel(name)
        case ast.Constant(value):
            return json.dumps(value)
        case ast.Subscript(ast.Name("numbers"), ast.Constant(name)):
            return f"numbers[{json.dumps(name)}]"
        case ast.Subscript(value, place):
            return _part(_expression(value), ast.unparse(place).strip("()"))
        case ast.BinOp(ast.BinOp(ast.Call(ast.Attribute(x, "astype")), ast.Mult(), factor), ast.Add(), offset):
            return _call("standardise", x, factor, offset)
        case ast.BinOp(left, ast.Add(), right):
            return _call("add", left, right)
        case ast.Call(ast.Name("table_features"), [x, *_]):
            return f"tableFeatures({_expression(x)}, numbers)"
        case ast.Call(ast.Name(name), given, options):
            return _call(_camel(name), *given, *(option.value for option in options))
        case ast.Call(ast.Attribute(ast.Name("np"), "concatenate"), [ast.List([x, y])], [ast.keyword("axis", axis)]):
            assert isinstance(axis, ast.Constant)
            return f"concatenate({_expression(x)}, {_expression(y)}, {int(str(axis.value)) - 1})"
        case ast.Call(ast.Attribute(ast.Name("np"), "repeat"), [x, *_]):
            return _call("first", x)
        case ast.Call(ast.Attribute(x, "mean"), [], [ast.keyword("axis", axis)]):
            return _call("meanOfSteps" if ast.unparse(axis) == "1" else "meanOfMaps", x)
        case ast.Call(ast.Attribute(ast.Call(ast.Attribute(x, "transpose")), "reshape")):
            return _call("imageRows", x)
        case ast.Call(ast.Attribute(x, "reshape")):
            return _call("flatten", x)
    raise NotImplementedError(f"no JavaScript for {ast.unparse(node)}")


def _part(x: str, place: str) -> str:
    """A part of an array of a batch: one of its steps, all of them backwards, or one number for each step."""
    if place == ":, :, None":
        return f"column({x})"
    if place == ":, ::-1":
        return f"reverse({x})"
    if step := re.fullmatch(r":, (-?\d+)", place):
        return f"at({x}, {step[1]})"
    raise NotImplementedError(f"no JavaScript for [{place}]")


def _call(function: str, *given: ast.expr) -> str:
    return f"{function}({', '.join(map(_expression, given))})"


def _camel(name: str) -> str:
    return re.sub(r"_(\w)", lambda match: match[1].upper(), name)


# ---------------------------------------------------------------- the check


def encode_checked(
    network: "ExportedNetwork",
    facts: dict[str, Any],
    inputs: NDArray[Any],
    expected: NDArray[np.float32],
    labels: NDArray[np.int64],
) -> tuple[dict[str, bytes], list[_check.Row], tuple[Choice, ...]]:
    """The page with the shortest weights that predict as PyTorch does, with some of the samples, and with the result of
    its check; that result; and what was chosen. Raises CheckFailed if the page can't be run."""
    weights = _shortest(network, facts, inputs, expected)
    facts = facts | {"weights": weights}
    facts["samples"] = _samples(network.spec, facts["accuracy"]["split"], inputs, labels)
    runner = find_runner()
    beside = {RUNNER: runner.encode()}
    if not runner:
        beside |= numpy_format.encode(network, facts)
        if weights == "int19":
            beside[".npz"] = _rounded_npz(beside[".npz"])
    # The page predicts one sample after the other, so the small batches are parts of the large one.
    (output,) = _check.run_in_fresh_process("html", {**encode(network, facts), **beside}, [inputs])
    bounds = _check.batch_bounds(len(inputs))
    rows = [_check.compare_batch(output[start:end], expected[start:end]) for start, end in bounds]
    name = {"": "by the same arithmetic in numpy", "node": "in node"}.get(Path(runner).name, "in headless Chromium")
    check = {"samples": rows[-1].samples, "difference": max(row.difference for row in rows), "runner": name}
    short = "three characters each, which change no probability by more than the check accepts"
    bits = "as trained" if weights == "float32" else short
    choices = (
        Choice("weights", weights, bits),
        Choice("checked", name, "the page itself" if runner.endswith(BROWSERS) else "no Chromium works here"),
    )
    return encode(network, facts | {"check": check}), rows, choices


def _shortest(
    network: "ExportedNetwork", facts: dict[str, Any], inputs: NDArray[Any], expected: NDArray[np.float32]
) -> str:
    """The format of the weights: float32 if there are few, else int19 if that gives at most half of the accepted
    difference, by the forward pass in numpy."""
    if sum(array.nbytes for array in _forward_pass(network, facts).arrays.values()) <= FEW:
        return "float32"
    contents = numpy_format.encode(network, facts)
    with tempfile.TemporaryDirectory(prefix="nnx-export-") as folder:
        file = Path(folder) / "network.py"
        file.write_bytes(contents[".py"])
        file.with_suffix(".npz").write_bytes(_rounded_npz(contents[".npz"]))
        row = _check.compare_batch(numpy_format.load(file)(inputs), expected)
    return "int19" if row.passes(TOLERANCE / 2) else "float32"


def _rounded_npz(content: bytes) -> bytes:
    with np.load(io.BytesIO(content)) as stored:
        arrays: dict[str, Any] = {
            name: _rounded(array) if _is_matrix(array) else array
            for name, array in ((name, stored[name]) for name in stored.files)
        }
    data = io.BytesIO()
    np.savez(data, **arrays)
    return data.getvalue()


def load(path: Path) -> Predict:
    """Probabilities by the page itself: in headless Chromium, else by node; without either, by numpy, from the files
    beside it. Raises CheckFailed if the page gives none."""
    stated = path.with_suffix(RUNNER)
    runner = stated.read_text() if stated.exists() else find_runner()
    if not runner:
        return numpy_format.load(path.with_suffix(".py"))
    page = path.read_text(encoding="utf-8")
    return lambda inputs: _answers(runner, page, inputs)


@cache
def find_runner() -> str:
    """The path of a Chromium that works, else of node, else nothing."""
    browsers = filter(None, map(shutil.which, BROWSERS))
    with tempfile.TemporaryDirectory(prefix="nnx-export-") as folder:
        file = Path(folder) / "page.html"
        file.write_text("<p>works")
        working = (browser for browser in browsers if "<p>works" in _dump(browser, file, timeout=30))
        return next(working, "") or shutil.which("node") or ""


def _answers(runner: str, page: str, inputs: NDArray[Any]) -> NDArray[np.float32]:
    """(B, ...) raw inputs -> (B, K) probabilities, by a copy of the page that also contains the inputs."""
    data = base64.b64encode(np.ascontiguousarray(inputs).tobytes()).decode()
    questions = json.dumps({"shape": list(inputs.shape), "type": inputs.dtype.name, "data": data})
    with tempfile.TemporaryDirectory(prefix="nnx-export-") as folder:
        file = Path(folder) / "page.html"
        if Path(runner).name == "node":
            file.write_text(page, encoding="utf-8")
            (Path(folder) / "questions.json").write_text(questions)
            output = _run([runner, "-e", NODE, str(file), f"{folder}/questions.json"], PATIENCE)
        else:
            script = f'<script id="questions" type="application/json">{questions}</script>\n<script id="facts"'
            file.write_text(page.replace('<script id="facts"', script, 1), encoding="utf-8")
            output = _dump(runner, file, PATIENCE)
    found = re.search(r'<pre id="found"[^>]*>(.*?)</pre>', output, re.DOTALL)
    if not found:
        raise CheckFailed("the page gives no probabilities")
    values = np.array(json.loads(html.unescape(found[1])), np.float32)
    return values.reshape(len(inputs), -1)


def _dump(browser: str, file: Path, timeout: float) -> str:
    """The HTML of a page once it has loaded, empty if the browser fails."""
    with tempfile.TemporaryDirectory(prefix="nnx-export-") as profile:
        options = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")
        return _run([browser, *options, f"--user-data-dir={profile}", "--dump-dom", file.as_uri()], timeout)


def _run(command: list[str], timeout: float) -> str:
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout, env={**os.environ, "DISPLAY": ""}
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode(errors="replace")
