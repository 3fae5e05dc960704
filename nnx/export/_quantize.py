"""Rounds the weights and the values between the layers of an ONNX file to 8 bits, by onnxruntime's static quantizer."""

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnx.export import onnx as onnx_format
from nnx.inference.metrics import Predictions
from nnx.inference.onnx_file import OnnxNetwork, open_onnx

CALIBRATION = 500  # training samples, from whose values between the layers the scales come
RUNS = 50  # of one sample, for the latency


@dataclass(frozen=True)
class Measured:
    """An ONNX file as onnxruntime runs it: its size in bytes, the median time of one sample, and its predictions."""

    bytes: int
    seconds: float
    predictions: Predictions


def quantize(content: bytes, inputs: NDArray[Any]) -> bytes:
    """The ONNX file with 8-bit weights, calibrated on (N, ...) raw inputs, which must be training samples."""
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.samples: Iterator[NDArray[Any]] = iter(np.array_split(inputs, max(1, len(inputs) // 50)))

        def get_next(self) -> dict[str, NDArray[Any]] | None:
            batch = next(self.samples, None)
            return None if batch is None else {"input": batch}

    model = onnx.ModelProto.FromString(content)
    facts = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    with tempfile.TemporaryDirectory(prefix="nnx-quantize-") as folder, onnx_format.quiet():
        file = f"{folder}/int8.onnx"
        quantize_static(
            onnx.shape_inference.infer_shapes(model),
            file,
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=False,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=["Conv", "Gemm", "MatMul"],
        )
        quantized = onnx.load(file)
    return onnx_format.with_facts(quantized, {**facts, "precision": "int8"})


def with_accuracy(content: bytes, accuracy: dict[str, Any]) -> bytes:
    """The ONNX file with another measured accuracy in its metadata."""
    import onnx

    model = onnx.ModelProto.FromString(content)
    facts = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    return onnx_format.with_facts(model, {**facts, "accuracy": accuracy})


def measure(content: bytes, sample: NDArray[Any], predict: Callable[[OnnxNetwork], Predictions]) -> Measured:
    """The file as `nnx eval` opens it. `sample` is a raw input: (1, ...)."""
    with _opened(content) as network:
        times = []
        for _ in range(RUNS):
            begun = time.perf_counter()
            network.session.run(None, {"input": sample})
            times.append(time.perf_counter() - begun)
        return Measured(len(content), statistics.median(times), predict(network))


@contextmanager
def _opened(content: bytes) -> Iterator[OnnxNetwork]:
    with tempfile.TemporaryDirectory(prefix="nnx-quantize-") as folder:
        file = Path(folder) / "model.onnx"
        file.write_bytes(content)
        yield open_onnx(file)[1]
