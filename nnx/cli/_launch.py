"""Start this command several times on this machine, as torchrun does, with all output from rank 0."""

import logging
import os
import signal
import sys
import tempfile
import uuid

from nnx.errors import MachineError
from nnx.formatting import print_wrapped
from nnx.system.platform import STOPPING

LAUNCH_VARIABLE = "TORCHELASTIC_RUN_ID"  # set by torchrun and `launch` in the processes that they start


def is_launched() -> bool:
    """Whether torchrun or `launch` started this process."""
    return LAUNCH_VARIABLE in os.environ


def launch(processes: int, max_restarts: int) -> int:
    """Run this command line in `processes` ranks, and restart them up to `max_restarts` times after a crash. Returns
    the exit code of the first rank to fail; that of rank 0 takes precedence.

    A first signal is passed on to each rank; a second one ends them immediately. Raises MachineError if torch can't.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.disable()  # rank 0 prints the errors
    handled = [number.name for number in STOPPING if signal.getsignal(number) is not signal.SIG_IGN]
    with tempfile.TemporaryDirectory() as logs:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",
            max_restarts=max_restarts,
            signals_to_handle=",".join(handled),
            logs_specs=DefaultLogsSpecs(log_dir=logs),
        )
        try:
            elastic_launch(config, sys.executable)("-P", "-m", "nnx", *sys.argv[1:])  # -P: not nnx.py of this folder
        except SignalException as error:
            return 128 + error.sigval
        except ChildFailedError as error:
            return _exit_code({rank: failure.exitcode for rank, failure in error.failures.items()})
        except RuntimeError as error:  # https://github.com/pytorch/pytorch/issues/139990
            if "libuv" not in str(error):
                raise
            cure = "train with one process, or on Linux, for example in WSL"
            raise MachineError(
                f"--nproc {processes}: this torch is built without libuv, as on Windows; {cure}"
            ) from None
    return 0


def _exit_code(codes: dict[int, int]) -> int:
    """Combine the ranks' exit codes into one. Prints an error for each killed rank, which can't print its own."""
    # torch itself ends the other ranks with SIGTERM
    killed = {rank: -code for rank, code in codes.items() if code < 0 and -code != signal.SIGTERM}
    for rank, number in killed.items():
        print_wrapped(f"error: rank {rank} was killed by {signal.Signals(number).name}")
    return 3 if killed else codes.get(0) or next(iter(codes.values()))
