"""torch.export's program, for PyTorch without nnx: torch.export.load(FILE).module() runs it."""

import io
import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnx.export import Predict

if TYPE_CHECKING:
    from nnx.export._network import ExportedNetwork

ENDING = ".pt2"
PACKAGES = ()
TOLERANCE = 1e-4
WITHOUT_TORCH = False
FACTS = "nnx.json"  # the extra file in it


def encode(network: "ExportedNetwork", facts: dict[str, Any]) -> dict[str, bytes]:
    """The network as an ExportedProgram for any batch size, with the facts as JSON in the extra file nnx.json."""
    import torch

    from nnx.export._network import example

    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of an RNN's weights: they speak of torch's inner workings
        program = torch.export.export(
            network, (example(network.spec),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)
        )
        data = io.BytesIO()
        torch.export.save(program, data, extra_files={FACTS: json.dumps(facts)})
    return {ENDING: data.getvalue()}


def load(path: Path) -> Predict:
    """The program, by torch alone."""
    import torch

    module = torch.export.load(path).module()

    def predict(inputs: Any) -> Any:
        with torch.inference_mode():
            return module(torch.from_numpy(inputs)).numpy()

    return predict
