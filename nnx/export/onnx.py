"""ONNX, for onnxruntime and other engines on any device: one file, any batch size."""

import contextlib
import json
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnx.errors import InputError
from nnx.export import Predict

if TYPE_CHECKING:
    from nnx.export._network import ExportedNetwork

ENDING = ".onnx"
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = 1e-4
WITHOUT_TORCH = True
OPSET = 20  # with Gelu; onnxruntime 1.17 and newer run it
MAX_BYTES = 2**31 - 1  # a protobuf, which has no external data here


def encode(network: "ExportedNetwork", facts: dict[str, Any]) -> dict[str, bytes]:
    """The network as a graph of ONNX operators, with the facts, each as JSON, in its metadata. Raises InputError for a
    network that is too large, and for one that torch can't convert."""
    import torch

    size = sum(tensor.nbytes for tensor in network.state_dict().values())
    if size > MAX_BYTES * 0.9:
        raise InputError(f"--format onnx: {size / 2**30:.1f} GiB of weights do not fit into one file; use safetensors")
    from nnx.export._network import example

    batch = torch.export.Dim.DYNAMIC
    with quiet():
        try:
            program = torch.onnx.export(
                network,
                (example(network.spec),),
                dynamo=True,
                verbose=False,
                opset_version=OPSET,
                dynamic_shapes=({0: batch},),
                input_names=["input"],
                output_names=["probabilities"],
            )
        except torch.onnx.OnnxExporterError as error:  # an activation that ONNX has no operator for
            reason = str(error).strip().splitlines()[0]
            raise InputError(f"--format onnx: torch can't convert this network: {reason[:300]}; use pt2") from None
    assert program is not None
    model = program.model_proto
    model.producer_name, model.producer_version = "nnx", str(facts["nnx"])
    _remove_traces(model.graph)
    return {ENDING: with_facts(model, facts)}


def with_facts(model: Any, facts: dict[str, Any]) -> bytes:
    """The file: the model with the facts, each as JSON, and a checksum in its metadata."""
    from nnx.inference.onnx_file import SEAL, digest

    facts = {key: value for key, value in facts.items() if key != SEAL}
    del model.metadata_props[:]
    for key, value in sorted(facts.items()):
        model.metadata_props.add(key=key, value=json.dumps(value))
    model.metadata_props.add(key=SEAL, value=digest(model))
    content: bytes = model.SerializeToString(deterministic=True)
    return content


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep torch's warnings and progress, which speak of its inner workings, from the user."""
    with (
        open(os.devnull, "w", encoding="utf-8") as nowhere,
        warnings.catch_warnings(),
        contextlib.redirect_stdout(nowhere),
    ):
        warnings.simplefilter("ignore")
        previous = logging.root.manager.disable
        logging.disable()
        try:
            yield
        finally:
            logging.disable(previous)


def _remove_traces(graph: Any) -> None:
    """Remove where in the exporting machine's files each operator comes from: paths do not belong into the file."""
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""


def load(path: Path) -> Predict:
    """A session of onnxruntime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])

    def predict(inputs: Any) -> Any:
        return session.run(None, {"input": inputs})[0]

    return predict
