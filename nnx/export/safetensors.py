"""Weights and metadata in the safetensors format, which many libraries read and which can run no code."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnx.export import Predict

if TYPE_CHECKING:
    from nnx.export._network import ExportedNetwork

ENDING = ".safetensors"
PACKAGES = ()
TOLERANCE = 1e-4
WITHOUT_TORCH = False


def encode(network: "ExportedNetwork", facts: dict[str, Any]) -> dict[str, bytes]:
    """All weights by their names in the module, and the facts as JSON under the key nnx of the header's metadata: one
    key, as the library writes several in random order."""
    from safetensors.torch import save

    tensors = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    return {ENDING: save(tensors, {"nnx": json.dumps(facts)})}


def load(path: Path) -> Predict:
    """Build the network that the metadata describes, and load the weights into it."""
    import torch
    from safetensors import safe_open

    from nnx import config as configs
    from nnx import losses, models
    from nnx.export._network import ExportedNetwork
    from nnx.preprocessing.spec import Spec

    with safe_open(path, "pt") as file:
        facts = json.loads(file.metadata()["nnx"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    config = configs.from_dict(facts["config"], str(path))
    spec = Spec.from_dict(facts["spec"])
    network = models.build(config.model, spec, losses.outputs(config.loss, len(spec.classes)))
    exported = ExportedNetwork(network, spec)
    exported.load_state_dict(tensors)

    def predict(inputs: Any) -> Any:
        with torch.inference_mode():
            return exported(torch.from_numpy(inputs)).numpy()

    return predict
