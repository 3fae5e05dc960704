"""Everything that nnx prints on a terminal."""
