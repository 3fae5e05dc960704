"""The command line: one file a command, each thin. Nothing heavy is imported before a command runs."""

import errno
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from nnx.cli import check, doctor, explain, init, predict, schema
from nnx.cli import eval as eval_command
from nnx.cli import list as list_command
from nnx.cli import show as show_command
from nnx.cli import trace as trace_command
from nnx.cli import train as train_command
from nnx.cli import verify as verify_command
from nnx.cli._start import import_help, leave
from nnx.errors import NnxError, Stopped, printable


class _Unread(Exception):
    """Nobody reads our output any more. Not an OSError, which typer would turn into exit code 1."""


class _Commands(TyperGroup):
    def format_help(self, ctx: Any, formatter: Any) -> None:
        import_help()
        super().format_help(ctx, formatter)

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
            return result
        except BrokenPipeError:
            raise _Unread from None


app = typer.Typer(
    name="nnx",
    cls=_Commands,
    help="Train MNIST-style classifiers from one YAML file.",
    epilog="Start with: nnx train digits_mlp",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

TRAIN, UNDERSTAND, MANAGE = "Train", "Understand", "Manage"
app.command("train", rich_help_panel=TRAIN)(train_command.train)
app.command("eval", rich_help_panel=TRAIN)(eval_command.evaluate)
app.command("predict", rich_help_panel=TRAIN)(predict.predict)
app.command("explain", rich_help_panel=UNDERSTAND)(explain.explain)
app.command("trace", rich_help_panel=UNDERSTAND)(trace_command.trace)
app.command("init", rich_help_panel=MANAGE)(init.init)
app.command("list", rich_help_panel=MANAGE)(list_command.list_parts)
app.command("show", rich_help_panel=MANAGE)(show_command.show)
app.command("verify", rich_help_panel=MANAGE)(verify_command.verify)
app.command("check", rich_help_panel=MANAGE)(check.check)
app.command("schema", rich_help_panel=MANAGE)(schema.schema)
app.command("doctor", rich_help_panel=MANAGE)(doctor.doctor)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"nnx {version('nnx')}")  # noqa: T201
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and leave.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line and leave with its exit code."""
    leave(run_command())


def run_command() -> int:
    """Run the command line; the exit code is that of the contract (see nnx.errors)."""
    try:
        code = app(_spelled_out(sys.argv[1:]), standalone_mode=False)
    except _Unread:
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
        )  # or Python complains again when it flushes at exit
        code = 141
    except KeyboardInterrupt:
        code = 130
    except Exception as error:
        code = _report(error)
    return code if isinstance(code, int) else 0


def _spelled_out(words: Sequence[str]) -> Sequence[str]:
    """`--resume` with no run behind it as `--resume=`: an option whose value may be left out is not the same in all
    versions of typer."""
    alone = [word == "--resume" and after.startswith("-") for word, after in zip(words, [*words[1:], "-"], strict=True)]
    return [f"{word}=" if bare else word for word, bare in zip(words, alone, strict=True)]


OF_A_NAME = {
    errno.ENAMETOOLONG: ("give a shorter one", 2),
    errno.ELOOP: ("mend the links", 2),
    errno.ENOTDIR: ("name another", 2),
    errno.EACCES: ("check its permissions", 3),
    errno.EPERM: ("check its permissions", 3),
    errno.EROFS: ("name another place", 3),
}


def _of_the_machine(error: Exception) -> str:
    """What the machine lacks, where that is why nothing goes on: memory to import torch, say, or room on the disk
    behind stdout."""
    scarce = isinstance(error, OSError) and error.errno in (
        errno.ENOSPC,
        errno.EDQUOT,
        errno.ENOMEM,
        errno.EMFILE,
        errno.ENFILE,
    )
    if isinstance(error, MemoryError) or "failed to map segment" in str(error):
        return "out of memory"
    return str(error.strerror) if scarce else ""  # type: ignore[attr-defined]


def _report(error: Exception) -> int:
    """Say on stderr what went wrong, and give the exit code for it."""
    if os.environ.get("NNX_DEBUG") == "1":
        import traceback

        traceback.print_exception(error)
    if isinstance(error, Stopped):  # as asked: no error
        print(error, file=sys.stderr)  # noqa: T201
        return error.exit_code
    if isinstance(error, NnxError):
        message, code = str(error), error.exit_code
    elif why := _of_the_machine(error):
        message, code = f"{why}; free some, or use another machine", 3
    elif isinstance(error, OSError) and error.filename and error.errno in OF_A_NAME:  # where a file was only looked for
        cure, code = OF_A_NAME[error.errno]
        message = f"{printable(str(error.filename))}: {error.strerror}; {cure}"
    elif hasattr(error, "format_message"):  # typer's own: a wrong flag or a missing argument
        message, code = f"{error.format_message().rstrip('.')}. See nnx --help", 2
    else:
        message, code = f"a bug in nnx: {type(error).__name__}: {error}. NNX_DEBUG=1 shows where", 1
    print("error:", "\n".join(map(printable, message.split("\n"))), file=sys.stderr)  # noqa: T201 - names of files may hold anything
    return code
