"""What scripts/torture does, one file a part: `torture(share, seed) -> figures`, raising AssertionError where nnx does
not hold."""
