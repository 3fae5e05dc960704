"""The parts of scripts/torture, one file each.

`torture(share, seed) -> figures` raises AssertionError if nnx fails.
"""
