"""The command line: one thin file per command. Heavy modules are imported only when a command runs."""

import errno
import os
import re
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from nnx.cli import _streams, _usage, check, doctor, explain, init, predict, schema
from nnx.cli import eval as eval_command
from nnx.cli import export as export_command
from nnx.cli import list as list_command
from nnx.cli import serve as serve_command
from nnx.cli import show as show_command
from nnx.cli import trace as trace_command
from nnx.cli import train as train_command
from nnx.cli import verify as verify_command
from nnx.cli._help import Command, Commands
from nnx.cli._start import exit_quickly
from nnx.errors import ConfigError, InputError, MachineError, NnxError, Stopped, printable
from nnx.formatting import print_wrapped, terminal_width

app = typer.Typer(
    name="nnx",
    cls=Commands,
    help="Train MNIST-style classifiers from one YAML file.",
    epilog="Start with: nnx train digits_mlp",
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

TRAIN, UNDERSTAND, SHIP, MANAGE = "Train", "Understand", "Ship", "Manage"
for name, function, panel in (
    ("train", train_command.train, TRAIN),
    ("eval", eval_command.evaluate, TRAIN),
    ("predict", predict.predict, TRAIN),
    ("explain", explain.explain, UNDERSTAND),
    ("trace", trace_command.trace, UNDERSTAND),
    ("export", export_command.export, SHIP),
    ("serve", serve_command.serve, SHIP),
    ("init", init.init, MANAGE),
    ("list", list_command.list_parts, MANAGE),
    ("show", show_command.show, MANAGE),
    ("verify", verify_command.verify, MANAGE),
    ("check", check.check, MANAGE),
    ("schema", schema.schema, MANAGE),
    ("doctor", doctor.doctor, MANAGE),
):
    app.command(name, cls=Command, rich_help_panel=panel)(function)


def _print_version(requested: bool) -> None:
    if requested:
        from importlib.metadata import version

        print(f"nnx {version('nnx')}")  # noqa: T201
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line and exit with its exit code; with 141 if its result could not be printed."""
    find_output_error = _streams.install()
    try:
        os.getcwd()
    except OSError as problem:
        exit_quickly(_report(MachineError(f"the current folder can't be used ({problem.strerror}); change to another")))
    code = run_command()
    if (error := find_output_error()) and not code:
        code = _streams.LOST if _streams.is_lost(error) else _report(error)
    exit_quickly(code)


def run_command() -> int:
    """Run the command line and return its exit code (see nnx.errors)."""
    try:
        _repair_environment()
        _check_empty(sys.argv[1:])
        code = app(_fill_in_resume(sys.argv[1:] or ["--help"]), standalone_mode=False)
    except KeyboardInterrupt:
        code = 130
    except Exception as error:
        code = _report(error)
    return code if isinstance(code, int) else 0


def _repair_environment() -> None:
    """Remove settings of the environment with which libraries fail: a width of no terminal, a backend of Matplotlib
    that does not exist. nnx only writes files with Matplotlib."""
    os.environ["MPLBACKEND"] = "agg"
    if not re.fullmatch(r"[1-9]\d{1,3}", os.environ.get("COLUMNS", "80")):
        del os.environ["COLUMNS"]


def _check_empty(arguments: Sequence[str]) -> None:
    """Raises InputError for an empty argument, a shell's `"$UNSET"`: as a path it would be the current folder."""
    for before, argument in zip(("nnx", *arguments), arguments, strict=False):
        if not argument or (re.fullmatch("--[a-z-]+=", argument) and argument != "--resume="):
            raise InputError(f"{argument.rstrip('=') or before}: is followed by nothing; is a variable unset?")


def _fill_in_resume(arguments: Sequence[str]) -> Sequence[str]:
    """Turn `--resume` without a run into `--resume=`: versions of typer differ in how they parse an option with an
    optional value."""
    following = [*arguments[1:], "-"][: len(arguments)]
    return [
        "--resume=" if argument == "--resume" and after.startswith("-") else argument
        for argument, after in zip(arguments, following, strict=True)
    ]


PATH_ERRORS = {  # errno of a path that can't be used -> what to do, exit code
    errno.ENAMETOOLONG: ("use a shorter name", 2),
    errno.ELOOP: ("fix the symbolic links", 2),
    errno.ENOTDIR: ("name another path", 2),
    errno.EACCES: ("check its permissions", 3),
    errno.EPERM: ("check its permissions", 3),
    errno.EROFS: ("name another folder", 3),
}
RESOURCE_ERRORS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO),  # of the disk; EFBIG: ulimit -f
    *(errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EAGAIN),  # EAGAIN: ulimit -u
)


def _missing_resource(error: Exception) -> str:
    """The resource that ran out, or "" if the error has another cause. Examples: memory to import torch, space on the
    disk that stdout writes to."""
    if isinstance(error, MemoryError) or "failed to map segment" in str(error):
        return "out of memory"
    return str(error.strerror) if isinstance(error, OSError) and error.errno in RESOURCE_ERRORS else ""


def _report(error: Exception) -> int:
    """Print the error on stderr and return its exit code."""
    if os.environ.get("NNX_DEBUG") == "1":
        import traceback

        traceback.print_exception(error)
    if isinstance(error, Stopped):  # on request: not an error
        print_wrapped(printable(str(error)))
        return error.exit_code
    if isinstance(error, ConfigError):
        message, code = error.render(terminal_width(sys.stderr)), error.exit_code
    elif isinstance(error, NnxError):
        message, code = str(error), error.exit_code
    elif resource := _missing_resource(error):
        message, code = f"{resource}; free some, or use another machine", 3
    elif isinstance(error, OSError) and error.filename and error.errno in PATH_ERRORS:
        cure, code = PATH_ERRORS[error.errno]
        message = f"{error.filename}: {error.strerror}; {cure}"
    elif hasattr(error, "format_message"):  # typer's own: an unknown flag, a missing argument
        commands = [command.name or "" for command in app.registered_commands]
        message, code = _usage.describe(error, sys.argv[1:], commands), 2
    else:
        message, code = f"a bug in nnx: {type(error).__name__}: {error}. NNX_DEBUG=1 shows the traceback", 1
    # names of files may contain control characters; a newline in one is no new line
    lines = message.split("\n") if getattr(error, "has_lines", False) else [message]
    print_wrapped("\n".join(["error: " + printable(lines[0]), *map(printable, lines[1:])]))
    return code
