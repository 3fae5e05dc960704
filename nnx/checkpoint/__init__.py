"""The checkpoint file: `checkpoint` writes, seals and checks it, `torch_archive` parses torch's zip without running it,
and `network` builds the network that it holds."""

from nnx.checkpoint.checkpoint import FORMAT, Checkpoint, locate, read, without_training, write
from nnx.checkpoint.network import build_network

__all__ = ["FORMAT", "Checkpoint", "build_network", "locate", "read", "without_training", "write"]
