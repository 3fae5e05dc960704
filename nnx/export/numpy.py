"""A readable Python file that needs numpy alone, with the weights in a .npz file next to it: to read and to port."""

import importlib.util
import inspect
import io
import json
import pprint
import re
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from nnx.errors import InputError
from nnx.export import Predict, _numpy_layers

if TYPE_CHECKING:
    from torch import Tensor, nn

    from nnx.export._network import ExportedNetwork

ENDING = ".py"
PACKAGES = ()
TOLERANCE = 1e-5
WITHOUT_TORCH = True
WIDTH = 110  # characters of a line of the forward pass

PAGE = '''"""{title}

    python FILE.py {example}.npy       prints the class of each sample in an array
    predict({given})              {shape} -> {outputs} probabilities

The weights are in the .npz file of the same name. Made by nnx {nnx} from the checkpoint with the SHA-256
{sha256}.
"""

import math
import sys
from pathlib import Path

import numpy as np

CLASSES = {classes}
numbers = dict(np.load(Path(__file__).with_suffix(".npz")))  # what training has found: weights and biases, by name


def predict({given}):
    """{shape}, {values} -> {outputs} probabilities."""
    batches = [{given}[start : start + 100] for start in range(0, len({given}), 100)]  # 100 at a time, to save memory
    return np.concatenate([forward(batch) for batch in batches])


def forward(x):
    """The forward pass: what goes into a layer is what came out of the layer before it."""
{forward}
    return x


# ---------------------------------------------------------------- the layers


{layers}


# ---------------------------------------------------------------- the command line

if __name__ == "__main__":
    for file in sys.argv[1:]:
        samples = np.load(file)
        samples = samples.reshape(-1, {sample})
        for probabilities in predict(samples):
            best = probabilities.argmax()
            print(f"{{file}}: {{CLASSES[best]}} ({{probabilities[best]:.2%}})")
'''


def encode(network: "ExportedNetwork", facts: dict[str, Any]) -> dict[str, bytes]:
    """The Python file, and the .npz file with the numbers and, as JSON, the facts. Raises InputError for an
    architecture without a forward pass here."""
    page = write(network, facts)
    data = io.BytesIO()
    np.savez(data, facts=json.dumps(facts), **page.arrays)
    return {ENDING: _render(page, facts).encode(), ".npz": data.getvalue()}


def write(network: "ExportedNetwork", facts: dict[str, Any]) -> "ForwardPass":
    """The forward pass from raw inputs to probabilities. Raises InputError if there is none here."""
    page = ForwardPass()
    _write_preparation(page, network)
    writers = {"mlp": _write_mlp, "cnn": _write_cnn, "rnn": _write_rnn, "transformer": _write_transformer}
    if facts["model"] not in writers:
        raise InputError(f"--format numpy: has no forward pass of {facts['model']}; use another format")
    writers[facts["model"]](page, network.network, network.spec.is_image)
    page.add("x = two_classes(x)" if page.width == 1 else "x = softmax(x)", "logits to probabilities")
    return page


def load(path: Path) -> Predict:
    """The function `predict` of the file."""
    spec = importlib.util.spec_from_file_location("exported", path)
    assert spec
    assert spec.loader
    module: ModuleType = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    predict: Predict = module.predict
    return predict


class ForwardPass:
    """The lines of the forward pass, and the numbers that they refer to."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.arrays: dict[str, Any] = {}
        self.width = 0  # units of the last linear layer

    def add(self, line: str, comment: str = "") -> None:
        self.lines.append(f"{line}  # {comment}" if comment else line)

    def comment(self, text: str) -> None:
        self.lines += ["", f"# {text}"]

    def number(self, name: str, tensor: "Tensor") -> str:
        """Store a tensor under a name -> the expression that refers to it."""
        self.arrays[name] = np.ascontiguousarray(tensor.detach().cpu().numpy())
        return f'numbers["{name}"]'

    def linear(self, name: str, layer: Any, given: str = "x", comment: str = "") -> str:
        """The call of a linear layer. Its weights are stored as (inputs, units)."""
        self.width = layer.out_features
        weights, bias = self.number(f"{name}.weights", layer.weight.T), self.number(f"{name}.bias", layer.bias)
        return f"linear({given}, {weights}, {bias})"

    def batch_norm(self, name: str, layer: Any) -> str:
        """The call of a batch normalisation: its four vectors as a scale and a shift."""
        scale = layer.weight.double() / (layer.running_var.double() + layer.eps).sqrt()
        shift = layer.bias.double() - layer.running_mean.double() * scale
        scale, shift = self.number(f"{name}.scale", scale.float()), self.number(f"{name}.shift", shift.float())
        return f"normalise(x, {scale}, {shift})"

    def layer_norm(self, name: str, layer: Any, given: str = "x") -> str:
        scale, shift = self.number(f"{name}.scale", layer.weight), self.number(f"{name}.shift", layer.bias)
        return f"layer_norm({given}, {scale}, {shift}, {layer.eps})"

    def activation(self, name: str, layer: "nn.Module", given: str = "x") -> str:
        """The call of an activation. Raises InputError if there is none of that name here."""
        from nnx.models._layers import activations

        function = next(key for key, kind in activations().items() if type(layer) is kind)
        if not hasattr(_numpy_layers, function):
            raise InputError(f"--format numpy: has no activation {function}; use another format")
        slope = f", {self.number(f'{name}.slope', layer.weight)}" if function == "prelu" else ""  # type: ignore[arg-type]
        return f"{function}({given}{slope})"


def _write_preparation(page: ForwardPass, network: "ExportedNetwork") -> None:
    from nnx.export._network import TableRows

    if isinstance(network.prepare, TableRows):
        page.add("# Each column of the table becomes one or more features")
        names = ("column", "category", "missing", "mean", "std", "is_number", "is_category", "is_missing")
        for name in names:
            page.number(f"table.{name}", getattr(network.prepare, name))
        page.add(f'x = table_features(x, *(numbers[f"table.{{name}}"] for name in {names}))')
        return
    page.add("# Standardise: mean 0 and standard deviation 1 over the training data")
    factor = page.number("standardise.factor", network.prepare.factor)
    offset = page.number("standardise.offset", network.prepare.offset)
    page.add(f"x = x.astype(np.float32) * {factor} + {offset}")


def _write_mlp(page: ForwardPass, network: Any, is_image: bool) -> None:
    from torch import nn

    if is_image:
        page.add("x = x.reshape(len(x), -1)", "an image as one row of numbers")
    layers = network.plain_layers()
    n = 0
    for layer in layers:
        if isinstance(layer, nn.Linear):
            n += 1
            is_output = layer is layers[-1]
            sizes = f"{layer.in_features} inputs, {layer.out_features} {'logits' if is_output else 'units'}"
            page.comment(f"{'Output layer' if is_output else f'Hidden layer {n}'}: {sizes}")
            page.add(f"x = {page.linear('output' if is_output else f'hidden{n}', layer)}")
        elif isinstance(layer, nn.BatchNorm1d):
            page.add(f"x = {page.batch_norm(f'norm{n}', layer)}")
        elif isinstance(layer, nn.LayerNorm):
            page.add(f"x = {page.layer_norm(f'norm{n}', layer)}")
        elif not isinstance(layer, nn.Dropout):
            page.add(f"x = {page.activation(f'activation{n}', layer)}")


def _write_cnn(page: ForwardPass, network: Any, is_image: bool) -> None:
    from torch import nn

    pools = {nn.MaxPool2d: "max_pool", nn.AvgPool2d: "average_pool"}
    for n, block in enumerate(network.stages, 1):
        filters, channels, height, width = block.conv.weight.shape
        page.comment(f"Convolution {n}: {filters} filters of {height} x {width} numbers in each of {channels} maps")
        if block.skip is not None:
            page.add("block_input = x")
        page.add(f"x = {_convolution(page, f'convolution{n}', block.conv)}")
        pool = pools.get(type(block.pool))
        if pool:
            page.add(f"x = {pool}(x)")
        if isinstance(block.norm, nn.BatchNorm2d):
            page.add(f"x = {page.batch_norm(f'norm{n}', block.norm)}")
        if block.skip is not None:
            skip = "block_input"
            if isinstance(block.skip, nn.Conv2d):
                skip = _convolution(page, f"skip{n}", block.skip, skip)
            page.add(f"x = x + {f'{pool}({skip})' if pool else skip}", "residual: the block's input is added")
        page.add(f"x = {page.activation(f'activation{n}', block.activation)}")
    page.comment("Classifier")
    linear = [layer for layer in network.head if isinstance(layer, nn.Linear)]
    for n, layer in enumerate(network.head):
        if isinstance(layer, nn.AdaptiveAvgPool2d):
            page.add("x = x.mean(axis=(2, 3))", "the average of each map")
        elif isinstance(layer, nn.Flatten):
            page.add("x = x.reshape(len(x), -1)", "all numbers of a sample in one row")
        elif isinstance(layer, nn.Linear):
            name = "output" if layer is linear[-1] else f"hidden{linear.index(layer) + 1}"
            page.add(f"x = {page.linear(name, layer)}")
        elif not isinstance(layer, nn.Dropout):
            page.add(f"x = {page.activation(f'head{n}', layer)}")


def _convolution(page: ForwardPass, name: str, conv: Any, given: str = "x") -> str:
    """The call of a convolution. For "same", torch puts the odd row of zeros after the image."""
    size, stride = conv.kernel_size[0], conv.stride[0]
    if conv.padding == "same":
        before, after = (size - 1) // 2, size - 1 - (size - 1) // 2
    else:
        before = after = 0 if conv.padding == "valid" else conv.padding[0]
    weights = page.number(f"{name}.weights", conv.weight)
    bias = page.number(f"{name}.bias", conv.bias) if conv.bias is not None else "0"
    return f"convolution({given}, {weights}, {bias}, before={before}, after={after}, stride={stride})"


def _write_rnn(page: ForwardPass, network: Any, is_image: bool) -> None:
    cell = network.recurrent.mode.removesuffix("_TANH").lower()
    if is_image:
        page.add("x = x.transpose(0, 2, 1, 3).reshape(len(x), x.shape[2], -1)", "(B, H, C * W): a step is a row")
    else:
        page.add("x = x[:, :, None]", "(B, F, 1): a step is a feature")
    for n in range(network.recurrent.num_layers):
        page.comment(f"Recurrent layer {n + 1}: {network.hidden} units read the steps one after the other")
        forward = ", ".join(_cell_numbers(page, network.recurrent, f"l{n}", f"layer{n + 1}"))
        if network.recurrent.bidirectional:
            backward = ", ".join(_cell_numbers(page, network.recurrent, f"l{n}_reverse", f"layer{n + 1}.backward"))
            page.add(f"forward_states = {cell}(x, {forward})")
            page.add(f"backward_states = {cell}(x[:, ::-1], {backward})[:, ::-1]", "from the last step to the first")
            page.add("x = np.concatenate([forward_states, backward_states], axis=2)")
        else:
            page.add(f"x = {cell}(x, {forward})")
    page.comment("Classifier")
    if network.read == "mean":
        page.add("x = x.mean(axis=1)", "the average of all states")
    elif network.recurrent.bidirectional:
        page.add("x = np.concatenate([forward_states[:, -1], backward_states[:, 0]], axis=1)", "the last states")
    else:
        page.add("x = x[:, -1]", "the state after the last step")
    page.add(f"x = {page.linear('output', network.output)}")


def _cell_numbers(page: ForwardPass, recurrent: Any, suffix: str, name: str) -> list[str]:
    """The arguments of a cell. Two biases that are always added are stored as one; those of a GRU are not."""
    weights = [
        page.number(f"{name}.{part}_weights", getattr(recurrent, f"weight_{kind}_{suffix}").T)
        for part, kind in (("input", "ih"), ("state", "hh"))
    ]
    of_input, of_state = (getattr(recurrent, f"bias_{kind}_{suffix}") for kind in ("ih", "hh"))
    if recurrent.mode == "GRU":
        return [*weights, page.number(f"{name}.input_bias", of_input), page.number(f"{name}.state_bias", of_state)]
    return [*weights, page.number(f"{name}.bias", of_input + of_state)]


def _write_transformer(page: ForwardPass, network: Any, is_image: bool) -> None:
    if is_image:
        page.add(f"x = patches(x, {network.patch})", "(B, T, numbers in a patch)")
    else:
        page.add("x = x[:, :, None]", "(B, F, 1): a token is a feature")
    page.add(f"x = {page.linear('embed', network.embed)}", "(B, T, D): a token for each")
    if network.class_token is not None:
        token = page.number("class_token", network.class_token)
        page.add(f"x = np.concatenate([np.repeat({token}, len(x), axis=0), x], axis=1)", "one more, for the class")
    page.add(f"x = x + {page.number('positions', network.positions)}", "where each token was")
    for n, block in enumerate(network.blocks, 1):
        page.comment(f"Block {n}: attention between the tokens, then two layers for each token by itself")
        name = f"block{n}"
        weights = page.number(f"{name}.attention.weights", block.qkv.weight.T)
        bias = page.number(f"{name}.attention.bias", block.qkv.bias)
        page.add(f"y = {page.layer_norm(f'{name}.norm1', block.norm1)}")
        page.add(f"y = attention(y, {weights}, {bias}, heads={block.heads})")
        page.add(f"x = x + {page.linear(f'{name}.project', block.project, 'y')}")
        page.add(f"y = {page.layer_norm(f'{name}.norm2', block.norm2)}")
        page.add(f"y = {page.activation(name, block.mlp[1], page.linear(f'{name}.hidden', block.mlp[0], 'y'))}")
        page.add(f"x = x + {page.linear(f'{name}.output', block.mlp[2], 'y')}")
    page.comment("Classifier")
    page.add(f"x = {page.layer_norm('norm', network.norm)}")
    mean = network.class_token is None
    page.add(
        "x = x.mean(axis=1)" if mean else "x = x[:, 0]", "the average of all tokens" if mean else "the class token"
    )
    page.add(f"x = {page.linear('output', network.output)}")


def _render(page: ForwardPass, facts: dict[str, Any]) -> str:
    """The Python file. Of what the user named, it contains the class names only, as Python writes them."""
    given, accuracy = facts["input"], facts["accuracy"]
    is_image = given["kind"] == "image"
    count = sum(array.size for array in page.arrays.values())
    title = f"A trained {facts['model']} in numpy alone: {count:,} numbers and its forward pass."
    title += f" Accuracy: {accuracy['accuracy']:.2%} of {accuracy['samples']:,} {accuracy['split']} samples."
    code = PAGE.format(
        title=title.replace(". Acc", ".\n\nAcc"),
        example="image" if is_image else "rows",
        given="images" if is_image else "rows",
        shape=f"({', '.join(map(str, given['shape']))})",
        sample=", ".join(map(str, given["shape"][1:])),
        values=given["values"].partition(",")[0] if is_image else given["type"],
        outputs=f"(B, {len(facts['classes'])})",
        nnx=facts["nnx"],
        sha256=facts["checkpoint_sha256"],
        classes=pprint.pformat(facts["classes"], width=110, compact=True),
        forward="\n".join(f"    {line}" if line else "" for long in page.lines for line in _broken(long)),
        layers="\n\n\n".join(inspect.getsource(function).rstrip() for function in _used(page)),
    )
    return code if "math." in code else code.replace("import math\n", "")


def _broken(line: str) -> list[str]:
    """A call as it is, or with one argument in a line where it is too long."""
    if len(line) <= WIDTH or ", numbers" not in line:
        return [line]
    start, inside = line.split("(", 1)
    arguments, end = inside.rsplit(")", 1)
    return [f"{start}(", *(f"    {each}," for each in re.split(r", (?=numbers)", arguments)), f"){end}"]


def _used(page: ForwardPass) -> list[Any]:
    """The functions of `_numpy_layers` that the forward pass calls, and those that they call, in the file's order."""
    known = {name: item for name, item in vars(_numpy_layers).items() if inspect.isfunction(item)}
    used: set[str] = set()
    code = "\n".join(page.lines)
    while more := set(re.findall(r"(?<![\w.])\w+(?=\()", code)) & known.keys() - used:
        used |= more
        code = "\n".join(inspect.getsource(known[name]) for name in more)
    return [function for name, function in known.items() if name in used]
