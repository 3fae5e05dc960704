"""`python -m nnx` is `nnx`."""

import os
import sys


def _current_folder() -> str:
    try:
        return os.getcwd()
    except OSError:  # it was deleted
        return ""


def _forget_current_folder() -> None:
    """Import nothing from the current folder: a random.py or torch.py in it would be run instead of the real one.

    `python -m` puts it first. An empty entry of PYTHONPATH also names it, mostly by mistake: `PYTHONPATH=$UNSET:more`.
    """
    current = _current_folder()
    entries = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if len(entries) > 1 and "" in entries:
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, entries))  # for child processes
        if not current or current not in map(os.path.abspath, filter(None, entries)):
            sys.path[1:] = [folder for folder in sys.path[1:] if folder not in ("", current)]
    if sys.path[0] == current:
        del sys.path[0]


if not _current_folder() or not os.path.samefile(os.path.dirname(os.path.dirname(__file__)), _current_folder()):
    _forget_current_folder()

import signal  # noqa: E402

# Until a command catches signals, there is nothing to clean up: Ctrl-C ends the process at once. A KeyboardInterrupt
# during an import would end in a traceback, or be replaced by an ImportError. SIGTERM does the same by default. Python
# needs 8 to 25 ms until this line: a Ctrl-C before it ends as Python decides.
if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, lambda number, frame: os._exit(130))

from nnx.cli import main  # noqa: E402

if __name__ == "__main__":
    main()
