"""Opens an ONNX file that `nnx export` wrote. It is untrusted, like a checkpoint.

Before onnxruntime sees the file, it is read as a protobuf, and refused unless it is one graph of ONNX's own operators
with all of its numbers inside: no external data, no loops or branches, no custom operators, no tensor that declares
more numbers than the file has. Its metadata is checked as a checkpoint's config is. While it runs, its memory and its
time are limited.
"""

import hashlib
import json
import math
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nnx import losses, models
from nnx.checkpoint import Checkpoint
from nnx.checkpoint.schema import describe, load_json, located
from nnx.errors import CheckpointError
from nnx.events import Choice
from nnx.preprocessing.raw_rows import raw_rows
from nnx.preprocessing.spec import Spec
from nnx.system import device as devices
from nnx.system import packages
from nnx.system.device import Runtime

ENDING = ".onnx"
FORMAT = 1  # of the metadata
SEAL = "content_sha256"  # key of the metadata
PACKAGES = ("onnx", "onnxruntime")
MAX_BYTES = 2**31 - 1  # of a protobuf
MAX_NODES = 20_000  # operators; onnxruntime takes 0.5 s to load that many
MEMORY = 8 * 2**30  # bytes that the operators may take
LIMIT = 60.0  # seconds that a batch may take, and more for a large network
PARTS = 1000  # samples that are run at once, at most
CURE = "run: nnx export CHECKPOINT --format onnx"


class OnnxNetwork(nn.Module):
    """An exported network: takes raw inputs, as preparation is inside, and returns logits, as a trained network does.

    The logits are the logarithms of the file's probabilities, so that softmax gives these back.
    """

    takes_raw_inputs = True

    def __init__(self, path: Path, session: Any, spec: Spec, outputs: int, seconds: float) -> None:
        super().__init__()
        self.path, self.session, self.spec, self.outputs = path, session, spec, outputs
        self.seconds = seconds  # that a sample may take

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) uint8 images, or (B, F) float32 rows or features of a table -> (B, outputs) logits. Raises
        CheckpointError if the file can't be run, or returns no probabilities."""
        inputs = x.numpy()
        if self.spec.columns:
            inputs = raw_rows(inputs, self.spec.columns)
        parts = [self._run(inputs[start : start + PARTS]) for start in range(0, len(inputs), PARTS)]
        log_p = torch.from_numpy(np.concatenate(parts)).clamp(torch.finfo(torch.float32).tiny, 1).log()
        return log_p[:, 1:] - log_p[:, :1] if self.outputs == 1 else log_p

    def _run(self, inputs: Any) -> Any:
        """(B, ...) raw inputs -> (B, K) probabilities. In a second thread, so that Ctrl-C and the time limit end it."""
        import onnxruntime

        options = onnxruntime.RunOptions()
        options.log_severity_level = 4  # none: an error is raised, too
        limit = LIMIT + self.seconds * len(inputs)
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(self.session.run, None, {"input": inputs}, options)
            try:
                (output,) = running.result(limit)
            except TimeoutError:
                raise CheckpointError(f"{self.path}: takes longer than {limit:.0f} s for a batch; {CURE}") from None
            except Exception as error:
                if type(error).__module__.partition(".")[0] != "onnxruntime":
                    raise
                raise CheckpointError(f"{self.path}: can't be run: {_first_line(error)}") from None
            finally:
                options.terminate = True
        expected = (len(inputs), len(self.spec.classes))
        if output.shape != expected or output.dtype != np.float32 or not ((output >= 0) & (output <= 1.001)).all():
            raise CheckpointError(f"{self.path}: does not return probabilities of its {expected[1]} classes; {CURE}")
        return output


def is_onnx(path: Path) -> bool:
    """Whether the name is that of an ONNX file."""
    return path.suffix.lower() == ENDING


def open_onnx(path: Path) -> tuple[Checkpoint, OnnxNetwork]:
    """The config and the spec that the file's metadata describes, as a checkpoint without weights, and its network.

    Raises CheckpointError, and MachineError where a package of nnx[export] is missing.
    """
    packages.require(PACKAGES, "export", str(path))
    with located(path, otherwise=f"its metadata is not that of a file exported by nnx; {CURE}"):
        data = _read(path)
        model = _parse(data)
        _check_content(model)
        config, spec, network = _describe(model, str(path))
        _check_ends(model.graph, spec)
        session = _start(data)
    outputs = losses.outputs(config.loss, len(spec.classes))
    seconds = models.count_parameters(network) * spec.size / 1e9  # a weight is used at most once a pixel
    return Checkpoint(config, spec, {}, {}), OnnxNetwork(path, session, spec, outputs, seconds)


def digest(model: Any) -> str:
    """SHA-256 of the graph and of all metadata but itself, in JSON. It guards against accidents, not against
    attackers."""
    hashed = hashlib.sha256(model.graph.SerializeToString(deterministic=True))
    for entry in sorted(model.metadata_props, key=lambda entry: entry.key):
        if entry.key != SEAL:
            hashed.update(f"{entry.key}\0{entry.value}\0".encode())
    return json.dumps(hashed.hexdigest())


def onnx_runtime(device: str | None) -> Runtime:
    """The CPU. Raises CheckpointError for another device."""
    import onnxruntime

    if device not in (None, "auto", "cpu"):
        raise CheckpointError(f"--device {device}: an exported ONNX file runs on the CPU; leave --device out")
    choice = Choice("device", "cpu", f"by onnxruntime {onnxruntime.__version__}")
    return Runtime(torch.device("cpu"), torch.float32, (choice, Choice("precision", "as exported", "in the file")))


def _read(path: Path) -> bytes:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise CheckpointError("is not a regular file")
        if status.st_size > MAX_BYTES:
            raise CheckpointError("larger than 2 GiB, which no ONNX file is")
        with open(path, "rb") as file:
            return file.read(MAX_BYTES)
    except FileNotFoundError:
        raise CheckpointError("no such file") from None
    except OSError as error:
        raise CheckpointError(f"can't be read ({error.strerror})") from None


def _parse(data: bytes) -> Any:
    from onnx import ModelProto

    try:
        model = ModelProto.FromString(data)
    except MemoryError:
        raise
    except Exception:  # DecodeError of protobuf, which is onnx's own affair
        model = None
    if model is None or not model.graph.node:
        raise CheckpointError(f"is damaged, or not an ONNX file; {CURE}")
    return model


def _check_content(model: Any) -> None:
    """Raises CheckpointError for what an exported network does not need, and an attack does."""
    import onnx

    graph = model.graph
    if len(graph.node) > MAX_NODES:
        raise CheckpointError(f"has {len(graph.node):,} operators; at most {MAX_NODES:,} are accepted")
    foreign = {node.domain for node in graph.node} | {opset.domain for opset in model.opset_import}
    if strange := sorted(foreign - {"", "ai.onnx"}):
        raise CheckpointError(f"has operators of {strange[0][:100]!r}; only those of ONNX itself are accepted")
    newest = onnx.defs.onnx_opset_version()
    if any(not 1 <= opset.version <= newest for opset in model.opset_import):
        version = max(opset.version for opset in model.opset_import)
        raise CheckpointError(f"has opset {version}, this onnx reads up to {newest}; run: pip install -U onnxruntime")
    attributes = [attribute for node in graph.node for attribute in node.attribute]
    if model.functions or any(attribute.HasField("g") or attribute.graphs for attribute in attributes):
        raise CheckpointError("has loops, branches or functions, which no exported network has")
    if graph.sparse_initializer or any(
        attribute.HasField("sparse_tensor") or attribute.sparse_tensors for attribute in attributes
    ):
        raise CheckpointError("has sparse tensors, which no exported network has")
    for tensor in _tensors(graph.initializer, attributes):
        if tensor.external_data or tensor.data_location != onnx.TensorProto.DEFAULT:
            raise CheckpointError("has external data; only a file that has all numbers inside is accepted")
        # a number takes half a byte or more
        if any(size < 0 for size in tensor.dims) or math.prod(tensor.dims) > 2 * tensor.ByteSize():
            raise CheckpointError("is damaged: a tensor declares more numbers than the file has")


def _tensors(initializers: Any, attributes: list[Any]) -> Iterator[Any]:
    yield from initializers
    for attribute in attributes:
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors


def _describe(model: Any, name: str) -> tuple[Any, Spec, nn.Module]:
    """The config, the spec and, on the meta device, the network in the metadata. Raises CheckpointError, ConfigError,
    or what wrong types raise."""
    entries = {entry.key: entry.value for entry in model.metadata_props}
    if not {"nnx", "format", "config", "spec"} <= entries.keys():
        raise CheckpointError(f"was not exported by nnx: its metadata does not say what it needs; {CURE}")
    if (version := json.loads(entries["format"][:20])) != FORMAT:
        raise CheckpointError(f"has metadata of format {version!s:.20}, this nnx reads {FORMAT}; upgrade nnx")
    if SEAL in entries and entries[SEAL] != digest(model):
        raise CheckpointError(f"is damaged, or was changed: its content does not match its checksum; {CURE}")
    texts = {key: load_json(entries[key]) for key in ("config", "spec")}
    tensors = len(model.graph.initializer) + len(model.graph.node)
    return describe(texts, name, 10 * tensors)


def _check_ends(graph: Any, spec: Spec) -> None:
    """Raises CheckpointError unless the graph takes what the metadata says, and returns what its classes need."""
    from onnx import TensorProto

    kind: int
    shape: tuple[int, ...]
    if spec.columns:
        kind, shape = TensorProto.DOUBLE, (len(spec.columns.columns),)
    else:
        kind, shape = TensorProto.UINT8 if spec.is_image else TensorProto.FLOAT, spec.shape
    for name, ends, expected in (
        ("input", graph.input, (kind, shape)),
        ("probabilities", graph.output, (TensorProto.FLOAT, (len(spec.classes),))),
    ):
        found = [
            (end.type.tensor_type.elem_type, tuple(dim.dim_value for dim in end.type.tensor_type.shape.dim))
            for end in ends
            if end.name == name
        ]
        if len(ends) != 1 or found != [(expected[0], (0, *expected[1]))]:
            what = " x ".join(map(str, ("B", *expected[1])))
            raise CheckpointError(f"its {name} should be {what}, as its metadata says, but is not; {CURE}")


def _start(data: bytes) -> Any:
    """A session of onnxruntime. Raises CheckpointError."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # none: an error is raised, too
    options.intra_op_num_threads = devices.available_cores()
    options.add_session_config_entry("session.use_env_allocators", "1")
    memory = onnxruntime.OrtMemoryInfo(
        "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
    )
    onnxruntime.create_and_register_allocator(memory, onnxruntime.OrtArenaCfg({"max_mem": MEMORY}))
    try:
        # constants are folded while a session starts, without a limit of memory or time
        return onnxruntime.InferenceSession(
            data, options, providers=["CPUExecutionProvider"], disabled_optimizers=["ConstantFolding"]
        )
    except Exception as error:
        raise CheckpointError(f"onnxruntime can't load it: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    """The start of a message of onnxruntime, without the code of the error."""
    text = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return text.rpartition(" : ")[2][:200] if text.startswith("[ONNXRuntimeError]") else text[:200]
