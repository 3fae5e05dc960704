"""Start this command several times on this machine, as torchrun would, but leave what is said to rank 0."""

import logging
import os
import signal
import sys
import tempfile
import uuid

STARTED_BY = "TORCHELASTIC_RUN_ID"  # in the environment of what torchrun, or `launch`, has started


def is_launched() -> bool:
    """Whether this process is one of several already."""
    return STARTED_BY in os.environ


def launch(processes: int, max_restarts: int) -> int:
    """Run this command line as so many ranks, up to `max_restarts` times again after one of them died. Gives the exit
    code of the first to fail, rank 0's before others'.

    A signal goes on to each rank once; a second one ends them at once.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.disable()  # rank 0 says what there is to say
    asked = [
        name for name in ("SIGTERM", "SIGINT", "SIGHUP") if signal.getsignal(signal.Signals[name]) is not signal.SIG_IGN
    ]
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
            signals_to_handle=",".join(asked),
            logs_specs=DefaultLogsSpecs(log_dir=logs),
        )
        try:
            elastic_launch(config, sys.executable)("-m", "nnx", *sys.argv[1:])
        except SignalException as error:
            return 128 + error.sigval
        except ChildFailedError as error:
            return _failed({rank: failure.exitcode for rank, failure in error.failures.items()})
    return 0


def _failed(codes: dict[int, int]) -> int:
    """The exit code for those of the ranks; says on stderr what none of them could."""
    killed = {
        rank: -code for rank, code in codes.items() if code < 0 and -code != signal.SIGTERM
    }  # SIGTERM is torch's, for the others
    for rank, number in killed.items():
        print(f"error: rank {rank} was killed by {signal.Signals(number).name}", file=sys.stderr)  # noqa: T201
    return 3 if killed else codes.get(0) or next(iter(codes.values()))
