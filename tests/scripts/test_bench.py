"""scripts/bench: its measurements, its protocol and its guard, with fake contestants that need neither torch nor
data."""

import importlib.machinery
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))
from benchmarks import data, measure, parts, peers, picture  # noqa: E402
from benchmarks.measure import Child, Contestant, Failed, race  # noqa: E402


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "SETTLE", 0)


class Quiet:
    """A probe that returns `rates`, and then the rate of a quiet machine."""

    def __init__(self, *rates: float) -> None:
        self.rates, self.best = iter(rates), 0.0

    def __call__(self) -> float:
        rate = next(self.rates, 100.0)
        self.best = max(self.best, rate)
        return rate


def giving(*values: float) -> Callable[[], float]:
    """A runner that returns these values in turn."""
    left = iter(values)
    return lambda: next(left)


def fake_contestant(folder: Path, name: str, rate: float) -> Contestant:
    """A contestant that claims `rate` samples per second. Its clock is fake, so no time passes."""
    program = folder / f"{name}.py"
    program.write_text(
        f"import sys\nsys.path.insert(0, {str(SCRIPTS / 'benchmarks')!r})\nimport contestant\n"
        f"clock = [0.0]\ncontestant.time.perf_counter = lambda: clock[0]\n"
        f"def train(samples):\n    clock[0] += samples / {rate}\n    print('other output')\n    return samples, 0.5\n"
        f"contestant.serve(train, name={name!r})\n"
    )
    return Contestant([sys.executable, str(program)], {})


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    loader = importlib.machinery.SourceFileLoader("bench", str(SCRIPTS / "bench"))
    module = ModuleType(loader.name)
    module.__file__ = loader.path
    loader.exec_module(module)
    return module


# ---------------------------------------------------------------- measuring


def test_turns_are_taken_and_the_median_is_the_value() -> None:
    order: list[str] = []
    values = {"a": giving(1, 2, 9, 2), "b": giving(3, 3, 4, 3)}

    def noted(name: str) -> float:
        order.append(name)
        return values[name]()

    results = race({"a": lambda: noted("a"), "b": lambda: noted("b")}, Quiet(), rounds=3)
    assert "".join(order) == "abababab"
    assert results["a"].median == 2
    assert results["a"].row("a", x_beginner=2.0) == {
        "name": "a", "value": 2, "x_beginner": 2.0, "spread": [1, 9], "n": 4, "discarded": 0, "steady": True,
    }  # fmt: skip


@pytest.mark.parametrize(("dip", "kept", "discarded"), [(85.0, [1, 2, 4, 5], 1), (95.0, [1, 2, 3, 4, 5], 0)])
def test_the_round_in_which_the_speed_changed_most_is_discarded(dip: float, kept: list[float], discarded: int) -> None:
    """The dip is after the third value, and ends before the fourth's probe. One within the tolerance is the control."""
    probes = Quiet(50, 100, 100, 100, dip, dip * 1.07)
    result = race({"a": giving(1, 2, 3, 4, 5)}, probes, rounds=4)["a"]
    assert (result.values, result.discarded, result.steady) == (kept, discarded, True)


def test_slow_from_start_to_end_is_steady() -> None:
    """What counts is a change, not that another hour was faster."""
    results = race({"a": giving(1, 2, 3)}, Quiet(50, 50, 50, 50, 50), rounds=2)
    assert results["a"].values == [1, 2, 3]
    assert results["a"].steady


def test_at_most_a_fifth_is_discarded_and_the_rest_is_called_unsteady() -> None:
    probes = [100, *[50, 60] * 9]
    results = race({"a": giving(*range(100))}, Quiet(*probes), rounds=8)
    assert not results["a"].steady
    assert (len(results["a"].values), results["a"].discarded) == (8, 2)


def test_ratios_are_of_the_same_round() -> None:
    """The machine's speed doubles from round to round; the ratio does not change."""
    results = race({"a": giving(1, 2, 4, 8), "b": giving(3, 6, 12, 24)}, Quiet(), rounds=3)
    assert results["b"].over(results["a"]) == 3


def test_time_and_memory_of_a_command() -> None:
    ended = measure.run(
        [sys.executable, "-c", "import time; x = bytearray(30_000_000); print(1, flush=True); time.sleep(0.2)"]
    )
    assert ended.output == "1\n"
    assert 0.2 <= ended.leaving <= ended.seconds
    assert ended.megabytes > 30
    with pytest.raises(Failed, match="ZeroDivisionError"):
        measure.run([sys.executable, "-c", "1 / 0"])


# ---------------------------------------------------------------- contestants


def test_a_contestant_reports_facts_and_trains_on_request(tmp_path: Path) -> None:
    with Child(fake_contestant(tmp_path, "fake", 1000)) as child:
        assert child.ready() == {"name": "fake"}
        assert [child.train(640), child.train(128)] == pytest.approx([1000, 1000])


def test_the_last_line_of_stderr_of_a_contestant_that_ends() -> None:
    with Child(Contestant([sys.executable, "-c", "raise ImportError('no such tool')"], {})) as child:
        with pytest.raises(Failed, match="ImportError: no such tool"):
            child.ready()
        with pytest.raises(Failed):
            child.train(128)


def test_a_peer_that_fails_is_noted_and_left_out(tmp_path: Path) -> None:
    bench = parts.Bench(1, 0.1, probe=Quiet())
    broken = Contestant([sys.executable, "-c", "raise ImportError('skorch')"], {})
    assert list(bench.compare({"fake": fake_contestant(tmp_path, "fake", 1000), "skorch": broken})) == ["fake"]
    assert bench.notes == ["skorch: ImportError: skorch"]
    with pytest.raises(Failed, match="beginner: ImportError"):
        bench.compare({"beginner": broken})


def test_the_reason_why_a_peer_cannot_be_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers.platformdirs, "user_cache_path", lambda name: tmp_path)
    monkeypatch.setattr(peers.venv, "create", lambda folder, **_: peers.site_packages(folder).mkdir(parents=True))

    def fail(command: list[str], **_: object) -> None:
        raise subprocess.CalledProcessError(1, command, stderr="WARNING: retrying\nERROR: no network\n")

    monkeypatch.setattr(peers.subprocess, "run", fail)
    with pytest.raises(Failed, match="not installed: ERROR: no network"):
        peers.python("skorch")
    assert peers.python("scikit-learn") == sys.executable


def test_synthetic_files_are_read_by_nnx(tmp_path: Path) -> None:
    from nnx.datasets import mnist

    data.write_synthetic(tmp_path)
    source = mnist.load(mnist.Config(), tmp_path)
    assert source.train.inputs.shape == (59_904, 1, 28, 28)
    assert source.test().labels.max() == 9


# ---------------------------------------------------------------- parts


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> parts.Bench:
    monkeypatch.setattr(parts, "SHIPPED", ["mnist_mlp"])
    return parts.Bench(2, 0.01, probe=Quiet())


def test_the_rates_of_two_trainings_at_once_are_added(
    quick: parts.Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = fake_contestant(tmp_path, "nnx", 500)
    monkeypatch.setattr(parts, "nnx", lambda *_: fake)
    alone, two = parts.together(quick)
    assert (alone["name"], alone["value"]) == ("mnist_mlp, alone", pytest.approx(500))
    assert (two["name"], two["value"], two["of_one"]) == (
        "mnist_mlp, two at once",
        pytest.approx(1000),
        pytest.approx(2),
    )


def test_the_code_of_another_checkout_is_the_one_before(
    quick: parts.Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "nnx", lambda *_: fake_contestant(tmp_path, "now", 500))
    scripts = tmp_path / "other" / "scripts" / "benchmarks"
    scripts.mkdir(parents=True)
    earlier = fake_contestant(scripts, "nnx_loop", 200)
    assert earlier.command[1].startswith(str(scripts))
    assert parts.before(quick) == []
    assert quick.notes == ["before: left out, it needs --before FOLDER"]
    quick.before = tmp_path / "other"
    before, now = parts.before(quick)
    assert (before["value"], now["value"], now["of_before"]) == (
        pytest.approx(200),
        pytest.approx(500),
        pytest.approx(2.5),
    )


# ---------------------------------------------------------------- the program


@pytest.fixture
def faked(bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """bench.main(...) with contestants of given rates."""

    def main(*arguments: str, nnx: float, beginner: float = 1000) -> int:
        rates = {"beginner.py": beginner, "floor.py": 10_000, "nnx_loop.py": nnx}
        fakes = {file: fake_contestant(tmp_path, file.removesuffix(".py"), rate) for file, rate in rates.items()}
        monkeypatch.setattr(parts, "contestant", lambda file, *_, **__: fakes[file])
        monkeypatch.setattr(bench, "Bench", lambda *values, **more: parts.Bench(*values, **more, probe=Quiet()))
        code: int = bench.main(["--quick", *arguments])
        return code

    return main


def test_quick_prints_a_table_and_json_on_the_last_line(
    faked: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert faked("--guard", "4", nnx=5000) == 0
    lines = capsys.readouterr().out.splitlines()
    document: dict[str, Any] = json.loads(lines[-1])
    rows = {row["name"]: row for row in document["mlp"]}
    assert rows["nnx"]["x_beginner"] == pytest.approx(5)
    assert rows["nnx"]["of_floor"] == pytest.approx(0.5)
    assert document["contestants"]["nnx_loop.py"] == {"name": "nnx_loop"}
    assert any(line.startswith("nnx ") and " 5.00 " in line for line in lines)


def test_the_guard_measures_twice_and_then_fails(faked: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert faked("--guard", "4", nnx=3900) == 5
    errors = capsys.readouterr().err
    assert errors.count("measuring again") == 1
    assert "error: nnx is 3.90 times as fast as the usual loop; required: 4" in errors


def test_gpu_without_a_cuda_device_is_an_error(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit) as left:
        bench.main(["--gpu"])
    assert left.value.code == 2
    assert "no CUDA device found" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--only", "mpl"], ["--only", "startup", "--guard", "4"]])
def test_wrong_arguments(bench: ModuleType, arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as left:
        bench.main(arguments)
    assert left.value.code == 2


def test_picture_is_drawn(tmp_path: Path) -> None:
    picture.draw(
        [{"name": "nnx", "value": 9e4, "x_beginner": 7.0}, {"name": "beginner", "value": 1.3e4}],
        "here, now",
        tmp_path / "a" / "b.png",
    )
    assert (tmp_path / "a" / "b.png").read_bytes().startswith(b"\x89PNG")
