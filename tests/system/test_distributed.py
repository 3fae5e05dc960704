"""Several processes train what one would: the same losses, the same accuracy; and none stays behind when one dies.

Most of it runs in forks of this process, which need not import torch again; rank 0 serves the store, as it does without
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
LEFT_BEHIND = 30  # seconds


def start(world: int, do: Callable[[int], None]) -> list[Any]:
    """`do(rank)` in so many processes, with the environment that torchrun gives them."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]

    def child(rank: int) -> None:
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_PORT": port}
        os.environ.update({"MASTER_ADDR": "127.0.0.1", **{name: str(value) for name, value in names.items()}})
        do(rank)

    processes = [FORK.Process(target=child, args=(rank,)) for rank in range(world)]
    for process in processes:
        process.start()
    return processes


def ended(processes: list[Any], seconds: float = LEFT_BEHIND) -> list[int]:
    """Their exit codes, once all have ended. Fails where one is left after so many seconds."""
    until = time.monotonic() + seconds
    for process in processes:
        process.join(max(0, until - time.monotonic()))
    left = [rank for rank, process in enumerate(processes) if process.is_alive()]
    for rank in left:
        processes[rank].kill()
    assert not left, f"ranks {left} were left after {seconds} s"
    return [process.exitcode for process in processes]


def together(world: int, do: Callable[[int], Any]) -> list[Any]:
    """What `do(rank)` gives on each rank, where all are joined and connected."""
    ends = [FORK.Pipe(duplex=False) for _ in range(world)]

    def joined(rank: int) -> None:
        with distributed.join():
            distributed.connect(torch.device("cpu"))
            ends[rank][1].send(do(rank))

    processes = start(world, joined)
    assert ended(processes) == [0] * world
    return [receiving.recv() for receiving, _ in ends]


def nnx(tmp_path: Path, *words: str, prepare: Callable[[int], None] = lambda rank: None, world: int = 2) -> list[Any]:
    """The command line on each rank; what it writes is in out-RANK and err-RANK."""

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


# ---------------------------------------------------------------- what ranks do for each other


@pytest.mark.parametrize("world", [1, 2, 3, 7])
@pytest.mark.parametrize("total", [0, 1, 5, 7, 100])
def test_shares_are_even_and_each_sample_is_in_one(monkeypatch, world, total):
    shares = []
    for rank in range(world):
        monkeypatch.setattr(distributed, "_here", distributed.RankInfo(rank, world, rank, world))
        shares.append(range(total)[distributed.shard(total)])
    assert [place for share in shares for place in share] == list(range(total))
    assert [len(share) for share in shares] == [len(each) for each in torch.tensor_split(torch.empty(total), world)]


def test_alone_nothing_is_shared():
    with distributed.join():
        distributed.connect(torch.device("cpu"))
        assert distributed.stored_before_restart() is None
        assert distributed.current() == (0, 1, 0, 1)
        assert distributed.on_rank_zero(lambda: "said") == "said"
        tensor, asked = torch.rand(3), lambda: 0
        assert distributed.all_gather(tensor, 3) is tensor
        assert distributed.any_rank_signalled(asked) is asked
        assert not torch.distributed.is_initialized()


def test_ranks_exchange_numbers():
    def exchange(rank):
        said = distributed.on_rank_zero(lambda: f"rank {rank} says so")
        return said, distributed.all_gather(torch.full((2 - rank // 2, 1), rank), 5).flatten().tolist()

    assert together(3, exchange) == [("rank 0 says so", [0, 0, 1, 1, 2])] * 3


def test_a_signal_to_one_rank_is_answered_to_all_at_the_same_question():
    def wait_for_it(rank):
        asked, signalled = 0, distributed.any_rank_signalled(lambda: signal.SIGTERM if rank == 1 and asked > 20 else 0)
        while not (number := signalled()):
            asked += 1
            time.sleep(0.001)
        return number, asked

    answers = together(2, wait_for_it)
    assert answers[0] == answers[1]
    assert answers[0][0] == signal.SIGTERM
    assert answers[0][1] < 2000


@pytest.mark.parametrize("missing", ["RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"])
def test_an_incomplete_environment_is_the_users_mistake(monkeypatch, missing):
    there = {
        "RANK": "0",
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": "1",
    }
    for name, value in (there | {missing: ""}).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=missing), distributed.join():
        pass


def test_each_process_takes_a_device_of_its_own(monkeypatch):
    monkeypatch.setattr(distributed, "_here", distributed.RankInfo(1, 2, 1, 2))
    assert devices.choose_runtime("cpu", "float32").device == torch.device("cpu")
    with pytest.raises(DeviceError, match="2 processes need a GPU each"):
        devices.choose_runtime("cuda:0", "float32")


# ---------------------------------------------------------------- gradients


class Network(nn.Module):
    """Both kinds of batch normalisation, one behind the other."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.linear, self.norms = (
            nn.Conv2d(2, 3, 3),
            nn.BatchNorm2d(3),
            nn.Linear(48, 5),
            nn.BatchNorm1d(5),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.conv(x)).relu()
        return self.norms(self.linear(x.flatten(1)))


def steps(B: int, layout: torch.memory_format, *, shared: bool) -> list[torch.Tensor]:
    """The loss, and after three batches of B samples and their steps: gradients, weights, running statistics."""
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
    assert "forward" not in vars(model.norm)  # what was in its place is gone
    return [loss, *(p.grad for p in model.parameters()), *model.state_dict().values()]


def shared_steps(world: int, B: int, layout: torch.memory_format) -> list[list[torch.Tensor]]:
    each = together(world, lambda rank: [tensor.tolist() for tensor in steps(B, layout, shared=True)])
    return [list(map(torch.tensor, tensors)) for tensors in each]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize(("world", "B"), [(2, 8), (2, 7), (3, 7), (3, 2)])
def test_losses_gradients_and_statistics_are_those_of_the_whole_batch(world, B, layout):
    alone, shared = steps(B, layout, shared=False), shared_steps(world, B, layout)
    for each in shared:
        for tensor, first, expected in zip(each, shared[0], alone, strict=True):
            assert tensor.equal(first)  # all ranks have the same bits
            torch.testing.assert_close(tensor.to(expected.dtype), expected, rtol=1e-4, atol=1e-5)


def test_without_shared_statistics_they_are_not(monkeypatch):
    """The control of the test above."""
    monkeypatch.setattr(distributed, "_across_ranks", lambda norms, part: contextlib.nullcontext())
    alone, shared = steps(7, torch.contiguous_format, shared=False), shared_steps(2, 7, torch.contiguous_format)
    assert not torch.allclose(shared[0][0], alone[0], rtol=1e-2)


@pytest.mark.parametrize("samples", [2, 7])
def test_evaluation_counts_each_sample_once_on_however_many_ranks(samples):
    torch.manual_seed(0)
    model, rng = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), np.random.default_rng(0)
    split = Split(rng.integers(0, 256, (samples, 1, 2, 2), dtype=np.uint8), rng.integers(0, 3, samples))
    spec = Spec(shape=(1, 2, 2), classes=("a", "b", "c"), mean=(0.5,), std=(0.2,))

    def evaluated(rank: int) -> tuple[Any, ...]:
        chosen = devices.choose_runtime("cpu", "float32")
        found = evaluate(model, BatchLoader(split, spec, chosen.device), F.cross_entropy, chosen)
        return found.probabilities.tolist(), found.labels.tolist(), found.loss

    alone = evaluated(0)
    assert alone[1] == split.labels.tolist()
    for each in together(3, evaluated):
        np.testing.assert_allclose(each[0], alone[0], rtol=1e-6)
        assert each[1] == alone[1]
        assert math.isclose(each[2], alone[2], rel_tol=1e-6)


# ---------------------------------------------------------------- whole runs

ALL_ON = [
    "train.epochs=2",
    "train.report=false",
    "train.batch_size=23",  # 1149 or so samples: an odd batch, and a last one that is smaller
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


def trained(what: Any, **options: Any) -> None:
    for _ in run(what, **options):
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


def test_a_run_of_two_goes_on_as_one_and_the_other_way_round(tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "PAUSE", 0.0)  # they ask each other each time
    what = chosen("cnn", "train.epochs=3", "train.film=true", "train.report=true")

    def begin(folder: str) -> None:
        with pytest.raises(Stopped), distributed.join():
            trained(what, out=tmp_path / folder, signal=stopping_at(30))

    def go_on(folder: str) -> None:
        with distributed.join():
            trained(what, resume=tmp_path / folder)

    trained(what, out=tmp_path / "whole")
    begin("one-two")
    assert ended(start(2, lambda rank: begin("two-one"))) == ended(start(2, lambda rank: go_on("one-two"))) == [0, 0]
    go_on("two-one")
    for folder in ("two-one", "one-two"):
        check_equal(tmp_path / folder, tmp_path / "whole")
        whole, theirs = (film.read(tmp_path / each / "film.npz") for each in ("whole", folder))
        assert theirs["step"].tolist() == whole["step"].tolist()
        np.testing.assert_allclose(theirs["right"].astype(float), whole["right"].astype(float), atol=2e-3)
        assert "</html>" in (tmp_path / folder / "report.html").read_text()


def stopping_at(question: int) -> Callable[[], int]:
    """A signal that comes when it has been asked for so often."""
    asked = 0

    def signalled() -> int:
        nonlocal asked
        asked += 1
        return signal.SIGTERM if asked >= question else 0

    return signalled


# ---------------------------------------------------------------- when one of them fails

QUICK = ("train", "digits_mlp", "--set", "train.epochs=3", "--set", "train.report=false", "--out", "r", "-q")


def at_step(rank_to_fail: int, step: int, do: Callable[[], Any]) -> Callable[[int], None]:
    """Have one of the ranks do something before that step."""

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
def test_one_that_fails_takes_all_down_and_rank_0_says_why(tmp_path, rank, error, code, text):
    codes = ended(
        nnx(tmp_path, *QUICK, prepare=at_step(rank, 40, lambda: fail(error)), world=3), distributed.GRACE
    )  # none has to be told
    assert {codes[0], codes[rank]} == {code}
    assert all(codes)
    (line,) = errors(tmp_path)
    assert line.startswith(f"error: {'rank 1: ' if rank else ''}{text}")
    for other in (1, 2):
        assert errors(tmp_path, other) == (tmp_path / f"out-{other}").read_text().splitlines() == []


@pytest.mark.parametrize("rank", [0, 1])
def test_one_that_is_killed_takes_all_down_and_what_is_saved_is_whole(tmp_path, rank):
    codes = ended(nnx(tmp_path, *QUICK, prepare=at_step(rank, 40, lambda: os.kill(os.getpid(), signal.SIGKILL))))
    assert codes == [3, -9][:: -1 if rank == 0 else 1]
    assert ("another of the 2 processes died" in "".join(errors(tmp_path))) == (rank == 1)
    state = checkpoint.read(tmp_path / "r/last.pt")
    assert state.counters["epoch"] == 1
    assert ended(nnx(tmp_path, "train", "--resume", "r", "-q", "--json")) == [0, 0]
    assert json.loads((tmp_path / "out-0").read_text())["epochs"] == 3
    assert (tmp_path / "out-1").read_text() == ""


def test_one_that_is_busy_elsewhere_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "GRACE", 0.5)

    def prepare(rank: int) -> None:
        at_step(0, 40, lambda: time.sleep(LEFT_BEHIND))(rank)
        at_step(1, 40, lambda: fail(DataError("the drive is gone")))(rank)

    assert ended(nnx(tmp_path, *QUICK, prepare=prepare), LEFT_BEHIND / 2) == [2, 2]
    assert errors(tmp_path) == ["error: rank 1: the drive is gone"]


def test_what_is_wrong_for_all_is_said_once(tmp_path):
    assert ended(nnx(tmp_path, *QUICK, "--set", "train.epochz=2")) == [2, 2]
    assert errors(tmp_path) == ["error: --set train.epochz=2: train.epochz: unknown key, did you mean 'epochs'?"]
    assert errors(tmp_path, 1) == []


def test_what_is_wrong_for_one_is_said_by_rank_0(tmp_path):
    def prepare(rank: int) -> None:
        sys.argv += ["--set", "dataset.validation=2000"] if rank == 1 else []

    assert ended(nnx(tmp_path, *QUICK, prepare=prepare)) == [2, 2]
    assert errors(tmp_path)[0].startswith("error: rank 1: --set dataset.validation=2000")
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("to", [0, 1])
def test_a_signal_to_any_of_them_saves_and_ends_all(tmp_path, to):
    codes = ended(nnx(tmp_path, *QUICK, prepare=at_step(to, 40, lambda: os.kill(os.getpid(), signal.SIGTERM))))
    assert codes == [143, 143]
    assert errors(tmp_path)[-1].endswith("and saved. Go on with: nnx train --nproc 2 --resume r")
    assert checkpoint.read(tmp_path / "r/last.pt").counters["step"] >= 41


# ---------------------------------------------------------------- started by torchrun


def started(tmp_path: Path, *words: str) -> "subprocess.Popen[str]":
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    return subprocess.Popen(
        [sys.executable, "-m", *words], cwd=tmp_path, env=environment, stdout=-1, stderr=-1, text=True
    )


def wait_for(path: Path, step: int = 0) -> None:
    """Until a state of that step, or a later one, is there."""
    until = time.monotonic() + LEFT_BEHIND
    while not path.exists() or checkpoint.read(path).counters["step"] < step:
        assert time.monotonic() < until, f"no {path} of step {step}"
        time.sleep(0.01)


def children(process: "subprocess.Popen[str]") -> list[int]:
    """The processes that this one has started."""
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "nnx")
LONG = ("train", "digits_mlp", "--set", "train.epochs=1000", "--nproc", "2", "--out", "r", "-q")


def test_torchrun_and_its_shorthand_train_to_the_same_bytes(tmp_path):
    for name, words in {"long": (*TORCHRUN, *QUICK), "short": ("nnx", *QUICK, "--nproc", "2")}.items():
        with started(tmp_path, *words, "--json", "--out", name) as process:
            out, err = process.communicate(timeout=2 * LEFT_BEHIND)
        assert process.returncode == 0, err
        assert json.loads(out)["epochs"] == 3
        assert name == "long" or err == ""
    assert (tmp_path / "long/checkpoint.pt").read_bytes() == (tmp_path / "short/checkpoint.pt").read_bytes()


def test_killed_ranks_are_started_again_as_often_as_asked_and_go_on(tmp_path):
    last = tmp_path / "r/last.pt"
    with started(tmp_path, "nnx", *LONG, "--max-restarts", "1") as process:
        wait_for(last)
        first = children(process)
        os.kill(first[1], signal.SIGKILL)
        while not (then := children(process)) or then == first:
            time.sleep(0.01)
        wait_for(last, checkpoint.read(last).counters["step"] + 1)
        os.kill(children(process)[1], signal.SIGKILL)
        out, err = process.communicate(timeout=LEFT_BEHIND)
    assert process.returncode == 3
    assert err.splitlines()[-1].startswith("error: rank 1 was killed by SIGKILL")
    assert out == ""


def test_ctrl_c_reaches_each_rank_once(tmp_path):
    with started(tmp_path, "nnx", *LONG) as process:
        wait_for(tmp_path / "r/last.pt")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=LEFT_BEHIND)
    assert process.returncode == 130
    assert err.splitlines()[-1].endswith("and saved. Go on with: nnx train --nproc 2 --resume r")
    assert checkpoint.read(tmp_path / "r/last.pt").counters["epoch"] < 1000
