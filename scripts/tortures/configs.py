"""100,000 mutated configs and settings: each is accepted and can be written, or is refused in ten readable lines.

Each takes at most a second. To repeat case n of seed s: case(s, n).
"""

import contextlib
import copy
import io
import json
import multiprocessing
import os
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from nnx import config
from nnx.cli import run_command
from nnx.config import registry, yaml_source
from nnx.errors import MAX_LINES, ConfigError

CASES = 100_000
SECONDS = 1.0  # limit of processor time for each case
COLUMNS = 500  # limit for a line of an error: the names of all activations take 300
COMMANDS = 200  # one case in 200 also goes through `nnx check`

RECIPES = sorted(path.read_bytes() for path in config.recipes().values())
TREES: list[dict[str, Any]] = [yaml_source.parse(raw.decode(), "recipe")[0] for raw in RECIPES]
WORDS = sorted({word for raw in RECIPES for word in re.findall(r"[\w.]+", raw.decode())})
KEYS = sorted(
    {
        key
        for kind in registry.LOCATIONS
        for name in registry.names(kind)
        for key in registry.find(kind, name).model_fields
    }
    | set(config.Config.model_fields)
)

BASE = b"dataset: digits\nmodel: mlp\n"
LAUGHS = b"a: &a [1, 1]\n" + b"".join(b"b%d: &b%d [*a, *a]\n" % (n, n) for n in range(2000))
HOSTILE = [
    b"[" * 65_000,
    b"{" * 65_000,
    b"{a: " * 16_000,
    b"- " * 32_000,
    b"? " * 32_000,
    b"[" * 200_000,
    LAUGHS,
    BASE + b"x" * 65_000,
    BASE + b"x" * 65_000 + b": 1\n",
    BASE + b"optimizer: " + b"adam" * 16_000,
    BASE + b"precision: '" + b"float32" * 9_000 + b"'",
    BASE + b"".join(b"k%d: 1\n" % n for n in range(2_400)),
    BASE + b"train: {" + b", ".join(b"epochs%d: 1" % n for n in range(2_400)) + b"}",
    BASE + b"dataset.root: " + b"\xc3\xa9" * 30_000,
    b"model: mlp\ndataset: {name: digits, root: '" + b"\xee\x80\x80" * 20_000 + b"'}\n",
    b"dataset: digits\nmodel: {name: mlp, hidden: [" + b"65536, " * 999 + b"1]}\n",
    b'"' + b"\\n" * 32_000 + b'": 1',
    b"\xef\xbb\xbf" + BASE,
    b"\xff\xfe" + BASE.decode().encode("utf-16-le"),
    BASE.decode().encode("utf-32"),
    b"%YAML 1.1\n---\n" + BASE,
    b"--- !!map\n" + BASE,
    BASE + b"<<: {seed: 1}\n",
    BASE + b"...\n",
    BASE.replace(b"\n", b"\r"),
    b"null",
    b"",
]
BYTES = [
    b"\0",
    b"\xef\xbb\xbf",
    b"\xff\xfe",
    b"\xed\xa0\x80",
    b"\xf4\x90\x80\x80",
    b"\x1b[31m",
    b"\x7f",
    b"\xc2\x85",
    b"\xe2\x80\xa8",
    b"\xc0\x80",
    b"\r",
    b"\x0c",
]
TOKENS = [
    *(
        "[",
        "]",
        "{",
        "}",
        "[[",
        "}}",
        ",",
        ":",
        ": ",
        "- ",
        "? ",
        "|",
        ">",
        "|-\n ",
        "'",
        '"',
        "''",
        '"\\',
        "#",
        " #",
        "@",
        "`",
        "%",
        "!",
        "&",
        "*",
    ),
    *(
        "\\",
        "\t",
        "\n",
        "\n\t",
        "\n  ",
        "\r\n",
        "\r",
        " ",
        "\ufeff",
        "\x85",
        "\u2028",
        "\u200b",
        "\u202e",
        "\x00",
        "\x1b",
        "\ud800",
        "\U0010ffff",
    ),
    *(
        "\ufffe",
        "&a ",
        "*a",
        "&a [*a]",
        "!x ",
        "!!str ",
        "!!python/object/apply:os.system [ls]",
        "!!binary ",
        "<<: ",
        "<<: *a",
        "---",
        "\n---\n",
    ),
    *(
        "\n...\n",
        "%YAML 1.2\n",
        "%TAG ! x\n",
        "1e999",
        "-1e999",
        "1e-999",
        "1e-400",
        ".inf",
        "-.inf",
        ".nan",
        "0x1F",
        "0o17",
        "017",
        "1_000",
    ),
    *(
        "12:30:45",
        "2001-12-14",
        "2001-12-14t21:59:43.10-05:00",
        "٣",
        "１",
        "½",
        "∞",
        "1e",
        "+",
        "-",
        "--1",
        "0",
        "-0",
        "-0.0",
        "1.",
        ".",
    ),
    *(
        "5e-324",
        "1e308",
        "9" * 19,
        "9" * 40,
        "9" * 41,
        "9" * 5000,
        "0." + "1" * 500,
        "null",
        "~",
        "true",
        "false",
        "yes",
        "off",
        "y",
        "=",
    ),
    *(
        '""',
        "mlp",
        "auto",
        "cuda:0",
        "cuda:999",
        "1 000",
        "10 %",
        "1,5",
        '"\\ud800"',
        '"\\U99999999"',
        '"\\x00"',
        '"\\e[31m"',
        '"\\N\\_\\L\\P"',
    ),
    *("x" * 300, "é" * 300, "a." * 300, "{" * 20 + "}" * 20),
]


def torture(share: float, seed: int) -> dict[str, Any]:
    """Run the first int(100,000 * share) cases on all cores. Raises AssertionError naming the cases that failed."""
    count = max(len(HOSTILE), int(CASES * share))
    processes = len(os.sched_getaffinity(0))
    for kind in registry.LOCATIONS:  # import everything once, torch too, before the fork
        registry.find(kind, registry.names(kind)[0])
    with multiprocessing.get_context("fork").Pool(processes) as pool:
        results = [
            outcome
            for part in pool.starmap(_run, [(seed, range(n, count, processes)) for n in range(processes)])
            for outcome in part
        ]
    broken = [words for words, _, _ in results if words not in ("accepted", "refused")]
    assert not broken, f"{len(broken)} of {count} cases: " + "; ".join(broken[:3])
    outcomes = Counter(words for words, _, _ in results)
    assert min(outcomes["accepted"], outcomes["refused"]) > count / 50, f"the cases are too similar: {dict(outcomes)}"
    slowest = max(results, key=lambda outcome: outcome[1])
    return {
        "cases": count,
        **outcomes,
        "commands": sum(command for _, _, command in results),
        "slowest_seconds": round(slowest[1], 3),
    }


def _run(seed: int, numbers: range) -> list[tuple[str, float, bool]]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.yaml"
        return [_outcome(seed, number, path) for number in numbers]


def _outcome(seed: int, number: int, path: Path) -> tuple[str, float, bool]:
    """The result of a case: accepted, refused, or what went wrong; its seconds; whether it also went through the
    command line."""
    raw, overrides, flags = case(seed, number)
    path.write_bytes(raw)
    begun = time.process_time()
    seconds = 0.0
    try:
        refused = None
        try:
            made = config.load(path, overrides, flags)
        except ConfigError as error:
            refused = str(error)
        seconds = time.process_time() - begun
        assert seconds < SECONDS, f"took {seconds:.1f} s"
        if refused is None:
            _check_round_trip(made)
        else:
            _check_words(refused)
        if command := number % COMMANDS == 0:
            _check_command(path, overrides, None if flags else refused is None)
        return ("accepted" if refused is None else "refused"), seconds, command
    except Exception as error:
        return f"case {number} of seed {seed}: {type(error).__name__}: {str(error)[:300]}", seconds, False


def _check_round_trip(made: config.Config) -> None:
    again = config.parse(made.to_yaml(), "again")
    assert again == made, "it reads back as another config"
    assert json.dumps(again.to_dict()) == json.dumps(made.to_dict()), "it reads back with other types: 1 == 1.0 == true"


def _check_words(text: str) -> None:
    lines = text.split("\n")
    assert len(lines) <= MAX_LINES, f"the error has {len(lines)} lines"
    for line in lines:
        assert line.isprintable(), f"the error contains unprintable characters: {line[:200]!r}"
        assert 0 < len(line) <= COLUMNS, f"the error has a line of {len(line)} characters: {line[:200]}"


def _check_command(path: Path, overrides: list[str], accepted: bool | None) -> None:
    """Assert that `nnx check` returns 0 or 2, in agreement with `config.load`, without a traceback."""
    sys.argv = ["nnx", "check", str(path), *(f"--set={text}" for text in overrides)]
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        code = run_command()
    errors = err.getvalue()
    assert code in (0, 2), f"nnx check returns {code}: {errors[:200]}"
    assert accepted in (None, code == 0), f"nnx check returns {code}, but config.load disagrees"
    assert "Traceback" not in errors + out.getvalue(), "nnx check shows a traceback"
    assert not errors if code == 0 else errors.startswith("error: "), f"nnx check prints {errors[:200]!r}"


# ---------------------------------------------------------------- the cases


def case(seed: int, number: int) -> tuple[bytes, list[str], dict[str, str]]:
    """Case `number`: the bytes of a file, overrides and flags."""
    random = Random(f"{seed} {number}")
    if number < len(HOSTILE):
        return HOSTILE[number], [], {}
    raw = random.choice(RECIPES) if random.random() < 0.99 else random.choice(HOSTILE)
    overrides: list[str] = []
    flags: dict[str, str] = {}
    kind = random.choices(["bytes", "tokens", "structure", "settings", "nothing"], [20, 30, 30, 18, 2])[0]
    if kind == "bytes":
        raw = _mutate_bytes(random, raw)
    elif kind == "tokens":
        raw = _mutate_tokens(random, raw.decode(errors="replace")).encode(errors="surrogatepass")
    elif kind == "structure":
        raw = _mutate_structure(random)
    elif kind == "settings":
        raw = random.choice(RECIPES)
        overrides = [_setting(random) for _ in range(random.randint(1, 3))]
        if random.random() < 0.3:
            flags = {random.choice(["device", "seed"]): _text(random)}
    return raw, overrides, flags


def _mutate_bytes(random: Random, raw: bytes) -> bytes:
    if random.random() < 0.05:
        return raw.decode(errors="replace").encode(
            random.choice(["utf-16", "utf-16-le", "utf-32", "utf-7", "cp037"]), errors="replace"
        )
    for _ in range(random.choice([1, 1, 2, 3, 8])):
        at = random.randint(0, len(raw))
        end = min(len(raw), at + random.choice([0, 1, 1, 2, 10, 100]))
        new = random.choice([b"", random.randbytes(random.randint(1, 4)), random.choice(BYTES), raw[at:end] * 2])
        raw = raw[:at] + new + raw[end:]
        if raw and random.random() < 0.3:
            at = random.randrange(len(raw))
            raw = raw[:at] + bytes([raw[at] ^ 1 << random.randrange(8)]) + raw[at + 1 :]
    return raw


def _mutate_tokens(random: Random, text: str) -> str:
    for _ in range(random.choice([1, 1, 2, 3, 5])):
        start, end = random.choice(
            [match.span() for match in re.finditer(r"[\w.]+|[^\w\s]|\s+", text[:2000])] or [(0, 0)]
        )
        new = random.choice([random.choice(TOKENS), random.choice(WORDS), random.choice(KEYS), ""])
        text = text[:start] + new + text[random.choice([start, end]) :]
    return text


def _mutate_structure(random: Random) -> bytes:
    """A recipe with some values replaced, written as YAML or as JSON, perhaps with a line repeated."""
    root = copy.deepcopy(random.choice(TREES))
    for _ in range(random.choice([1, 1, 2, 4])):
        *_, (tree, key) = _walk(random, root)
        if random.random() < 0.7:
            tree[key] = _value(random)
        elif isinstance(tree, dict):
            tree[_key(random)] = tree.pop(key)
        else:
            tree.insert(key, _value(random))
    if random.random() < 0.02:
        root.update({f"{_key(random)}{n}": n for n in range(random.choice([50, 1000, 3000]))})
    write: Callable[[Any], str] = random.choice(
        [yaml_source.dump, json.dumps, lambda value: json.dumps(value, ensure_ascii=False, indent=1)]
    )
    lines = write(root).splitlines(keepends=True)
    if random.random() < 0.1:
        lines.insert(random.randrange(len(lines)), random.choice(lines))
    return "".join(lines).encode(errors="surrogatepass")


def _walk(random: Random, tree: Any) -> list[tuple[Any, Any]]:
    """A random path from the root down to some value, as (container, key) pairs."""
    way = []
    while isinstance(tree, dict | list) and tree and (not way or random.random() < 0.7):
        key = random.choice(list(tree)) if isinstance(tree, dict) else random.randrange(len(tree))
        way.append((tree, key))
        tree = tree[key]
    return way or [({"": 0}, "")]


def _value(random: Random, depth: int = 0) -> Any:
    kind = random.randrange(9 if depth < 20 else 7)
    if kind == 7:
        return [_value(random, depth + 1) for _ in range(random.choice([0, 1, 1, 2, 5]))]
    if kind == 8:
        return {_key(random): _value(random, depth + 1) for _ in range(random.choice([0, 1, 1, 2, 5]))}
    numbers = [0, -1, 1, 2, 3.0, 0.5, 1e-9, -0.0, 1e308, 5e-324, 10**12, 10**39, float("inf"), float("nan")]
    simple = [None, True, False, random.choice(numbers), random.choice(numbers), random.choice(WORDS), _text(random)]
    return simple[kind]


def _key(random: Random) -> str:
    return random.choice([random.choice(KEYS), random.choice(KEYS), random.choice(WORDS), _text(random)])


def _text(random: Random) -> str:
    """One token, several, or some characters of all Unicode except surrogates."""
    many = "".join(
        chr(random.choice([random.randrange(128), random.randrange(0x2100), random.randrange(0xE000, 0x110000)]))
        for _ in range(5)
    )
    text = random.choice(
        [random.choice(TOKENS), "".join(random.choices(TOKENS, k=3)), many, many * random.choice([1, 100, 5000])]
    )
    return text


def _setting(random: Random) -> str:
    """A value for --set."""
    root = copy.deepcopy(random.choice(TREES))
    path = [key for _, key in _walk(random, root)]
    if random.random() < 0.4:
        path[random.randrange(len(path))] = _key(random)
    if random.random() < 0.1:
        path += [_key(random)] * random.choice([1, 3, 30, 3000])
    value = random.choice(
        [_text(random), random.choice(WORDS), json.dumps(_value(random)), _mutate_tokens(random, random.choice(WORDS))]
    )
    return random.choice(["=", "=", "=", "=", " = ", "", "=="]).join([".".join(map(str, path)), value])
