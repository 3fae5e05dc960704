"""The checkpoint file: `checkpoint` writes, seals and reads it, `torch_archive` parses torch's zip without running it,
`schema` checks what it contains, and `network` builds its network."""

from nnx.checkpoint.checkpoint import locate, read, without_training, write
from nnx.checkpoint.network import build_network
from nnx.checkpoint.schema import FORMAT, Checkpoint

__all__ = ["FORMAT", "Checkpoint", "build_network", "locate", "read", "without_training", "write"]
