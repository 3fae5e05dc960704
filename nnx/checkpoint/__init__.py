"""The checkpoint file: `checkpoint` writes, seals and checks it; `torch_archive` parses the zip of torch without
running it."""

from nnx.checkpoint.checkpoint import FORMAT, Checkpoint, read, without_training, write

__all__ = ["FORMAT", "Checkpoint", "read", "without_training", "write"]
