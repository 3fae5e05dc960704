"""Several processes train to the same losses and accuracy as one, and all exit when one fails.

Most tests fork this process, so that the ranks need not import torch again. Rank 0 then serves the store, as without
torchrun.
"""

import contextlib
import json
import math
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nnx import checkpoint, config
from nnx.cli import run_command
from nnx.config import registry
from nnx.datasets import Split
from nnx.errors import DataError, DeviceError, InputError, Stopped
from nnx.inference.metrics import evaluate
from nnx.loader.batches import BatchLoader
from nnx.preprocessing.spec import Spec
from nnx.run.pipeline import run
from nnx.system import device as devices
from nnx.system import distributed
from nnx.training import film
from nnx.training.state import State

FORK = multiprocessing.get_context("fork")
EXIT_TIMEOUT = 30  # seconds


def start(world: int, do: Callable[[int], None]) -> list[Any]:
    """Run `do(rank)` in `world` processes, with torchrun's environment variables."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def child(rank: int) -> None:
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_PORT": port}
        os.environ.update({"MASTER_ADDR": "127.0.0.1", **{name: str(value) for name, value in names.items()}})
        do(rank)

    processes = [FORK.Process(target=child, args=(rank,)) for rank in range(world)]
    for process in processes:
        process.start()
    return processes


def ended(processes: list[Any], seconds: float = EXIT_TIMEOUT) -> list[int]:
    """Wait for all processes and return their exit codes. Fails if one is still running after this many seconds."""
    until = time.monotonic() + seconds
    for process in processes:
        process.join(max(0, until - time.monotonic()))
    running = [rank for rank, process in enumerate(processes) if process.is_alive()]
    for rank in running:
        processes[rank].kill()
    assert not running, f"ranks {running} were running after {seconds} s"
    return [process.exitcode for process in processes]


def together(world: int, do: Callable[[int], Any]) -> list[Any]:
    """The result of `do(rank)` of each rank, inside `join` and after `connect`."""
    ends = [FORK.Pipe(duplex=False) for _ in range(world)]

    def joined(rank: int) -> None:
        with distributed.join():
            distributed.connect(torch.device("cpu"))
            ends[rank][1].send(do(rank))

    processes = start(world, joined)
    assert ended(processes) == [0] * world
    return [receiving.recv() for receiving, _ in ends]


def nnx(tmp_path: Path, *words: str, prepare: Callable[[int], None] = lambda rank: None, world: int = 2) -> list[Any]:
    """Run the command line on each rank, with its output in the files out-RANK and err-RANK."""

    def command(rank: int) -> None:
        os.chdir(tmp_path)
        for stream, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(tmp_path / f"{name}-{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        sys.argv = ["nnx", *words]
        prepare(rank)
        code = run_command()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

    return start(world, command)


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


# ---------------------------------------------------------------- communication


@pytest.mark.parametrize("world", [1, 2, 3, 7])
@pytest.mark.parametrize("total", [0, 1, 5, 7, 100])
def test_shards_are_even_and_contain_each_sample_once(monkeypatch, world, total):
    shares = []
    for rank in range(world):
        monkeypatch.setattr(distributed, "_current", distributed.RankInfo(rank, world, rank, world))
        shares.append(range(total)[distributed.shard(total)])
    assert [place for share in shares for place in share] == list(range(total))
    assert [len(share) for share in shares] == [len(part) for part in torch.tensor_split(torch.empty(total), world)]


def test_a_single_process_communicates_nothing():
    with distributed.join():
        distributed.connect(torch.device("cpu"))
        assert distributed.stored_before_restart() is None
        assert distributed.current() == (0, 1, 0, 1)
        assert distributed.on_rank_zero(lambda: "result") == "result"
        tensor = torch.rand(3)
        assert distributed.all_gather(tensor, 3) is tensor
        assert distributed.any_rank_signalled(no_signal) is no_signal
        assert not torch.distributed.is_initialized()


def no_signal() -> int:
    return 0


def test_ranks_exchange_text_and_tensors():
    def exchange(rank):
        text = distributed.on_rank_zero(lambda: f"from rank {rank}")
        return text, distributed.all_gather(torch.full((2 - rank // 2, 1), rank), 5).flatten().tolist()

    assert together(3, exchange) == [("from rank 0", [0, 0, 1, 1, 2])] * 3


def test_all_ranks_see_a_signal_to_one_of_them_at_the_same_call():
    def wait_for_signal(rank):
        calls = 0
        signalled = distributed.any_rank_signalled(lambda: signal.SIGTERM if rank == 1 and calls > 20 else 0)
        while not (number := signalled()):
            calls += 1
            time.sleep(0.001)
        return number, calls

    results = together(2, wait_for_signal)
    assert results[0] == results[1]
    assert results[0][0] == signal.SIGTERM
    assert results[0][1] < 2000


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"RANK": "2"}, "RANK=2 and WORLD_SIZE=2: do not fit"),
        ({"LOCAL_RANK": "5"}, "LOCAL_RANK=5 and LOCAL_WORLD_SIZE=2: do not fit"),
        ({"LOCAL_WORLD_SIZE": "3"}, "LOCAL_WORLD_SIZE=3 and WORLD_SIZE=2: do not fit"),
        ({"MASTER_PORT": "99999"}, "MASTER_PORT=99999: is not a port"),
        ({"MASTER_PORT": "0"}, "MASTER_PORT=0: is not a port"),
    ],
)
def test_ranks_that_can_not_be_are_refused_at_once(monkeypatch, names, message):
    environment = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2", "MASTER_PORT": "1"}
    for name, value in {**environment, "MASTER_ADDR": "localhost", **names}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=message), distributed.join():
        pass


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_waits_for_others_prints_it(tmp_path, rank):
    """Nobody else is at MASTER_PORT."""
    code = (
        "from nnx.system import distributed\n"
        "distributed.ANNOUNCE_WAIT = 0.2\n"
        "with distributed.join():\n"
        "    distributed.connect(__import__('torch').device('cpu'))\n"
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    names = {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", **{name: str(value) for name, value in names.items()}}
    with subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.PIPE, text=True) as process:
        line = process.stderr.readline()
        process.kill()
    other = "the other processes" if rank == 0 else "rank 0"
    assert line == f"rank {rank} of 2: waiting for {other} at 127.0.0.1:{port}\n"


@pytest.mark.parametrize("missing", ["RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"])
def test_an_incomplete_environment_is_the_users_mistake(monkeypatch, missing):
    complete = {
        "RANK": "0",
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": "1",
    }
    for name, value in (complete | {missing: ""}).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=missing), distributed.join():
        pass


def test_each_process_needs_a_gpu_or_all_use_the_cpu(monkeypatch):
    monkeypatch.setattr(distributed, "_current", distributed.RankInfo(1, 2, 1, 2))
    assert devices.choose_runtime("cpu", "float32").device == torch.device("cpu")
    with pytest.raises(DeviceError, match="2 processes need a GPU each"):
        devices.choose_runtime("cuda:0", "float32")


# ---------------------------------------------------------------- gradients


class Network(nn.Module):
    """Batch normalisation of maps, then of features."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3)
        self.norm = nn.BatchNorm2d(3)
        self.linear = nn.Linear(48, 5)
        self.feature_norm = nn.BatchNorm1d(5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.conv(x)).relu()
        return self.feature_norm(self.linear(x.flatten(1)))


def steps(B: int, layout: torch.memory_format, *, shared: bool) -> list[torch.Tensor]:
    """The loss, gradients, weights and running statistics after three steps on batches of B samples."""
    torch.manual_seed(0)
    model = Network().to(memory_format=layout)

    def forward(model: nn.Module, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(model(inputs), targets)

    def gradients(_: None, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        loss = forward(model, inputs, targets)
        loss.backward()
        return loss.detach()

    if shared:
        forward, gradients = distributed.shard_batch(model)(forward), distributed.all_reduce_gradients(gradients, model)
    for _ in range(3):
        model.zero_grad()
        loss = gradients(None, 3 * torch.randn(B, 2, 6, 6).to(memory_format=layout) + 1, torch.randint(5, (B,)))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.1 * parameter.grad
    assert "forward" not in vars(model.norm)  # the replacement is removed
    return [loss, *(p.grad for p in model.parameters()), *model.state_dict().values()]


def shared_steps(world: int, B: int, layout: torch.memory_format) -> list[list[torch.Tensor]]:
    by_rank = together(world, lambda rank: [tensor.tolist() for tensor in steps(B, layout, shared=True)])
    return [list(map(torch.tensor, tensors)) for tensors in by_rank]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize(("world", "B"), [(2, 8), (2, 7), (3, 7), (3, 2)])
def test_losses_gradients_and_statistics_are_those_of_the_whole_batch(world, B, layout):
    alone, shared = steps(B, layout, shared=False), shared_steps(world, B, layout)
    for tensors in shared:
        for tensor, first, expected in zip(tensors, shared[0], alone, strict=True):
            assert tensor.equal(first)  # all ranks have the same bits
            torch.testing.assert_close(tensor.to(expected.dtype), expected, rtol=1e-4, atol=1e-5)


def test_without_synchronised_statistics_losses_differ(monkeypatch):
    """The control of the test above."""
    monkeypatch.setattr(distributed, "_synchronised_norms", lambda norms, share: contextlib.nullcontext())
    alone, shared = steps(7, torch.contiguous_format, shared=False), shared_steps(2, 7, torch.contiguous_format)
    assert not torch.allclose(shared[0][0], alone[0], rtol=1e-2)


@pytest.mark.parametrize("samples", [2, 7])
def test_evaluation_on_several_ranks_counts_each_sample_once(samples):
    torch.manual_seed(0)
    model, rng = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), np.random.default_rng(0)
    split = Split(rng.integers(0, 256, (samples, 1, 2, 2), dtype=np.uint8), rng.integers(0, 3, samples))
    spec = Spec(shape=(1, 2, 2), classes=("a", "b", "c"), mean=(0.5,), std=(0.2,))

    def evaluated(rank: int) -> tuple[Any, ...]:
        runtime = devices.choose_runtime("cpu", "float32")
        evaluation = evaluate(model, BatchLoader(split, spec, runtime.device), F.cross_entropy, runtime)
        return evaluation.probabilities.tolist(), evaluation.labels.tolist(), evaluation.loss

    alone = evaluated(0)
    assert alone[1] == split.labels.tolist()
    for probabilities, labels, loss in together(3, evaluated):
        np.testing.assert_allclose(probabilities, alone[0], rtol=1e-6)
        assert labels == alone[1]
        assert math.isclose(loss, alone[2], rel_tol=1e-6)


# ---------------------------------------------------------------- whole runs

ALL_ON = [
    "train.epochs=2",
    "train.report=false",
    "train.batch_size=23",  # about 1149 samples: an odd batch size and a smaller last batch
    "train.ema=0.9",
    "train.mixup=0.2",
    "train.accumulate=2",
    "train.clip_grad_norm=1",
    "train.augment={shift: 1, rotate: 10, erase: 0.2}",
    "schedule={name: cosine, warmup: 0.5}",
    "device=cpu",
    "precision=float32",
]
MODELS = {
    "mlp": "{name: mlp, hidden: [16], norm: batch, dropout: 0.2}",
    "cnn": "{name: cnn, channels: [4, 8], dropout: 0.2}",
    "rnn": "{name: rnn, hidden: 16, layers: 2, bidirectional: true, dropout: 0.2}",
    "transformer": "{name: transformer, patch: 2, width: 16, depth: 1, heads: 2, dropout: 0.2}",
}


def chosen(model: str, *more: str) -> Any:
    return config.load("digits_mlp", [f"model={MODELS.get(model, model)}", *ALL_ON, *more])


def trained(settings: Any, **options: Any) -> None:
    for _ in run(settings, **options):
        pass


def check_equal(one: Path, other: Path) -> None:
    """The curves of two runs, up to rounding; accuracies up to one sample."""
    for record, expected in zip(records(one), records(other), strict=True):
        assert record["step"] == expected["step"]
        assert record["lr"] == expected["lr"]
        for name in ("train_loss", "val_loss"):
            assert math.isclose(record[name], expected[name], rel_tol=1e-3), (name, record, expected)
        assert abs(record["val_accuracy"] - expected["val_accuracy"]) < 1.5 / 287
    one_summary, other_summary = (json.loads((folder / "summary.json").read_text()) for folder in (one, other))
    assert abs(one_summary["test_accuracy"] - other_summary["test_accuracy"]) < 1.5 / 360
    assert one_summary["test_samples"] == other_summary["test_samples"] == 360


@pytest.mark.parametrize("model", registry.names("model"))
def test_several_processes_train_as_one(tmp_path, model):
    trained(chosen(model), out=tmp_path / "1")
    for world in (2, 3):

        def train(rank: int, world: int = world) -> None:
            with distributed.join():
                trained(chosen(model), out=tmp_path / str(world))

        assert ended(start(world, train), 60) == [0] * world
        check_equal(tmp_path / str(world), tmp_path / "1")


def test_two_ranks_without_validation_samples_keep_the_last_epoch(tmp_path):
    def train(rank: int) -> None:
        with distributed.join():
            trained(chosen("mlp", "dataset.validation=0"), out=tmp_path / "2")

    assert ended(start(2, train), 60) == [0, 0]
    trained(chosen("mlp", "dataset.validation=0"), out=tmp_path / "1")
    for one, two in zip(records(tmp_path / "1"), records(tmp_path / "2"), strict=True):
        assert math.isclose(one["train_loss"], two["train_loss"], rel_tol=1e-3)
        assert one["val_loss"] is two["val_loss"] is None
    assert checkpoint.read(tmp_path / "2/checkpoint.pt").record["epoch"] == 2


def test_a_run_of_two_ranks_resumes_on_one_and_vice_versa(tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "POLL_INTERVAL", 0.0)  # exchange at every call
    settings = chosen("cnn", "train.epochs=3", "train.film=true", "train.report=true")

    def begin(folder: str) -> None:
        with pytest.raises(Stopped), distributed.join():
            trained(settings, out=tmp_path / folder, signal=stopping_at(30))

    def resume(folder: str) -> None:
        with distributed.join():
            trained(settings, resume=tmp_path / folder)

    trained(settings, out=tmp_path / "whole")
    begin("one-two")
    assert ended(start(2, lambda rank: begin("two-one"))) == ended(start(2, lambda rank: resume("one-two"))) == [0, 0]
    resume("two-one")
    for folder in ("two-one", "one-two"):
        check_equal(tmp_path / folder, tmp_path / "whole")
        whole, theirs = (film.read(tmp_path / each / "film.npz") for each in ("whole", folder))
        assert theirs["step"].tolist() == whole["step"].tolist()
        np.testing.assert_allclose(theirs["right"].astype(float), whole["right"].astype(float), atol=2e-3)
        assert "</html>" in (tmp_path / folder / "report.html").read_text()


def stopping_at(call: int) -> Callable[[], int]:
    """A signal function that returns SIGTERM from this call on."""
    calls = 0

    def signalled() -> int:
        nonlocal calls
        calls += 1
        return signal.SIGTERM if calls >= call else 0

    return signalled


# ---------------------------------------------------------------- failures

QUICK = ("train", "digits_mlp", "--set", "train.epochs=3", "--set", "train.report=false", "--out", "r", "-q")


def at_step(rank_to_fail: int, step: int, do: Callable[[], Any]) -> Callable[[int], None]:
    """Make one of the ranks call `do` before this step."""

    def prepare(rank: int) -> None:
        begin_step = State.begin_step

        def begin(state: State) -> None:
            if rank == rank_to_fail and state.step == step:
                do()
            begin_step(state)

        State.begin_step = begin  # type: ignore[method-assign]

    return prepare


def fail(error: BaseException) -> Any:
    raise error


def errors(tmp_path: Path, rank: int = 0) -> list[str]:
    return (tmp_path / f"err-{rank}").read_text().splitlines()


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(
    ("error", "code", "text"),
    [(DataError("no drive"), 2, "no drive"), (TypeError("no"), 1, "a bug in nnx: TypeError: no.")],
)
def test_a_failing_rank_ends_all_and_rank_0_prints_the_cause(tmp_path, rank, error, code, text):
    processes = nnx(tmp_path, *QUICK, prepare=at_step(rank, 40, lambda: fail(error)), world=3)
    codes = ended(processes, distributed.GRACE_PERIOD)  # all notice by themselves
    assert {codes[0], codes[rank]} == {code}
    assert all(codes)
    (line,) = errors(tmp_path)
    assert line.startswith(f"error: {'rank 1: ' if rank else ''}{text}")
    for other in (1, 2):
        assert errors(tmp_path, other) == (tmp_path / f"out-{other}").read_text().splitlines() == []


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_ends_all_and_the_saved_state_is_intact(tmp_path, rank):
    codes = ended(nnx(tmp_path, *QUICK, prepare=at_step(rank, 40, lambda: os.kill(os.getpid(), signal.SIGKILL))))
    assert codes == [3, -9][:: -1 if rank == 0 else 1]
    assert ("another of the 2 processes died" in "".join(errors(tmp_path))) == (rank == 1)
    state = checkpoint.read(tmp_path / "r/last.pt")
    assert state.counters["epoch"] == 1
    assert ended(nnx(tmp_path, "train", "--resume", "r", "-q", "--json")) == [0, 0]
    assert json.loads((tmp_path / "out-0").read_text())["epochs"] == 3
    assert (tmp_path / "out-1").read_text() == ""


def test_a_busy_rank_exits_after_the_grace_period(tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "GRACE_PERIOD", 0.5)

    def prepare(rank: int) -> None:
        at_step(0, 40, lambda: time.sleep(EXIT_TIMEOUT))(rank)
        at_step(1, 40, lambda: fail(DataError("the drive is gone")))(rank)

    assert ended(nnx(tmp_path, *QUICK, prepare=prepare), EXIT_TIMEOUT / 2) == [2, 2]
    assert errors(tmp_path) == ["error: rank 1: the drive is gone"]


def test_a_mistake_on_all_ranks_is_printed_once(tmp_path):
    assert ended(nnx(tmp_path, *QUICK, "--set", "train.epochz=2")) == [2, 2]
    assert errors(tmp_path) == ["error: --set train.epochz=2: train.epochz: unknown key, did you mean 'epochs'?"]
    assert errors(tmp_path, 1) == []


def test_a_mistake_on_one_rank_is_printed_by_rank_0(tmp_path):
    def prepare(rank: int) -> None:
        sys.argv += ["--set", "dataset.validation=2000"] if rank == 1 else []

    assert ended(nnx(tmp_path, *QUICK, prepare=prepare)) == [2, 2]
    assert errors(tmp_path)[0].startswith("error: rank 1: --set dataset.validation=2000")
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("to", [0, 1])
def test_a_signal_to_any_rank_saves_and_ends_all(tmp_path, to):
    codes = ended(nnx(tmp_path, *QUICK, prepare=at_step(to, 40, lambda: os.kill(os.getpid(), signal.SIGTERM))))
    assert codes == [143, 143]
    assert errors(tmp_path)[-1].endswith("and saved. Resume with: nnx train --nproc 2 --resume r")
    assert checkpoint.read(tmp_path / "r/last.pt").counters["step"] >= 41


# ---------------------------------------------------------------- started by torchrun


def started(tmp_path: Path, *words: str) -> "subprocess.Popen[str]":
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    return subprocess.Popen(
        [sys.executable, "-m", *words], cwd=tmp_path, env=environment, stdout=-1, stderr=-1, text=True
    )


def wait_for(path: Path, step: int = 0) -> None:
    """Wait for a saved state of this step or a later one."""
    until = time.monotonic() + EXIT_TIMEOUT
    while not path.exists() or checkpoint.read(path).counters["step"] < step:
        assert time.monotonic() < until, f"no {path} of step {step}"
        time.sleep(0.01)


def children(process: "subprocess.Popen[str]") -> list[int]:
    """The child processes of `process`."""
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "nnx")
LONG = ("train", "digits_mlp", "--set", "train.epochs=1000", "--nproc", "2", "--out", "r", "-q")


def test_torchrun_and_its_shorthand_train_to_the_same_bytes(tmp_path):
    for name, words in {"long": (*TORCHRUN, *QUICK), "short": ("nnx", *QUICK, "--nproc", "2")}.items():
        with started(tmp_path, *words, "--json", "--out", name) as process:
            out, err = process.communicate(timeout=2 * EXIT_TIMEOUT)
        assert process.returncode == 0, err
        assert json.loads(out)["epochs"] == 3
        assert name == "long" or err == ""
    assert (tmp_path / "long/checkpoint.pt").read_bytes() == (tmp_path / "short/checkpoint.pt").read_bytes()


def test_killed_ranks_restart_as_often_as_requested_and_resume(tmp_path):
    last = tmp_path / "r/last.pt"
    with started(tmp_path, "nnx", *LONG, "--max-restarts", "1") as process:
        wait_for(last)
        first = children(process)
        os.kill(first[1], signal.SIGKILL)
        while not (restarted := children(process)) or restarted == first:
            time.sleep(0.01)
        wait_for(last, checkpoint.read(last).counters["step"] + 1)
        os.kill(children(process)[1], signal.SIGKILL)
        out, err = process.communicate(timeout=EXIT_TIMEOUT)
    assert process.returncode == 3
    assert err.splitlines()[-1].startswith("error: rank 1 was killed by SIGKILL")
    assert out == ""


def test_ctrl_c_reaches_each_rank_once(tmp_path):
    with started(tmp_path, "nnx", *LONG) as process:
        wait_for(tmp_path / "r/last.pt")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=EXIT_TIMEOUT)
    assert process.returncode == 130
    assert err.splitlines()[-1].endswith("and saved. Resume with: nnx train --nproc 2 --resume r")
    assert checkpoint.read(tmp_path / "r/last.pt").counters["epoch"] < 1000
