"""`python -m nnx` is `nnx`."""

import os
import sys


def _current_folder() -> str:
    try:
        return os.getcwd()
    except OSError:  # it was deleted
        return ""


# -m puts the current folder first: a random.py or torch.py in it would be run instead of the real one.
if sys.path[0] == _current_folder() and not os.path.samefile(
    os.path.dirname(os.path.dirname(__file__)), sys.path[0] or "/"
):
    del sys.path[0]

import signal  # noqa: E402

# Until a command catches signals, there is nothing to clean up: Ctrl-C ends the process at once. A KeyboardInterrupt
# during an import would end in a traceback, or be replaced by an ImportError. SIGTERM does the same by default. Python
# needs 8 to 25 ms until this line: a Ctrl-C before it ends as Python decides.
if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, lambda number, frame: os._exit(130))

from nnx.cli import main  # noqa: E402

if __name__ == "__main__":
    main()
