"""`python -m nnx` is `nnx`."""

from nnx.cli import main

main()
