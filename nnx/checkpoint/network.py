"""A checkpoint to the network that it holds."""

from torch import nn

from nnx import losses, models
from nnx.checkpoint.schema import Checkpoint
from nnx.errors import CheckpointError, ConfigError


def build_network(kept: Checkpoint) -> nn.Module:
    """The network of a checkpoint, with its weights, on the CPU. Raises CheckpointError where they don't fit
    together."""
    name = kept.config.model.name
    try:
        model = models.build(kept.config.model, kept.spec, losses.outputs(kept.config.loss, len(kept.spec.classes)))
        own = model.state_dict()
        if any(own[name].dtype != tensor.dtype for name, tensor in kept.model.items()):
            raise TypeError("load_state_dict would convert silently")
        model.load_state_dict(kept.model)
    except ConfigError as error:
        raise CheckpointError(f"its config is not valid: {error}") from None
    except (RuntimeError, KeyError, TypeError, ValueError, AttributeError):
        raise CheckpointError(
            f"its weights do not fit the {name} that its config describes; it is damaged or was changed"
        ) from None
    return model
