"""`python -m nnx` is `nnx`."""

import os
import sys

# -m puts the current folder first: a random.py or torch.py in it would be run instead of the real one.
if sys.path[0] == os.getcwd() and not os.path.samefile(os.path.dirname(os.path.dirname(__file__)), sys.path[0]):
    del sys.path[0]

from nnx.cli import main

main()
