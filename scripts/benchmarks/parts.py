"""The parts of `scripts/bench`, one function each: Bench -> rows for the table and the JSON document."""

import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from benchmarks import peers
from benchmarks.contestant import BATCH
from benchmarks.measure import Child, Contestant, Ended, Failed, Probe, Result, race, run

HERE = Path(__file__).resolve().parent
NNX = str(Path(sys.executable).parent / "nnx")

GENERAL = ["train.ema=null", "compile=false"]  # the path of every network; --guard checks it
VARIANTS: dict[str, list[str]] = {  # name -> settings over mnist_mlp
    "nnx": GENERAL,
    "nnx, backpropagation in matrices": ["train.ema=null"],
    "nnx, recipe as shipped (moving average)": [],
}
ARCHITECTURES: dict[str, tuple[str, list[str]]] = {
    "cnn": ("mnist_cnn", []),
    "lstm": ("mnist_rnn", []),
    "gru": ("mnist_rnn", ["model.cell=gru"]),
    "transformer": ("mnist_transformer", []),
}
RECIPES = {
    "mnist_mlp_fast": (0.98, 6),
    "mnist_cnn_fast": (0.99, 4),
}  # recipe -> required test accuracy, number of seeds
SHIPPED = ["mnist_mlp", "mnist_mlp_fast", "mnist_cnn", "mnist_cnn_fast", "mnist_rnn", "mnist_transformer"]
PEERS = {
    "lightning": ("lightning", "peer_lightning.py"),
    "fastai": ("fastai", "peer_fastai.py"),
    "keras (torch)": ("keras", "peer_keras.py", "torch"),
    "keras (jax)": ("keras", "peer_keras.py", "jax"),
    "scikit-learn": ("scikit-learn", "peer_sklearn.py"),
    "skorch": ("skorch", "peer_skorch.py"),
}
SETTINGS = ["threads=1", f"threads={os.cpu_count() or 1}", "compile=false", "layout=channels_first"]
Row = dict[str, Any]


@dataclass
class Bench:
    """How to measure, and notes for the reader."""

    rounds: int
    seconds: float  # for each measurement
    quick: bool = False
    peers: bool = False
    before: Path | None = None  # a checkout of another commit
    device: str = "cpu"
    real: bool = True  # whether the data is MNIST
    probe: Probe = field(default_factory=Probe)
    facts: dict[str, Any] = field(default_factory=dict)  # command -> what the contestant reports about itself
    notes: list[str] = field(default_factory=list)

    def compare(
        self, contestants: Mapping[str, Contestant], others: Mapping[str, Callable[[], float]] = {}
    ) -> dict[str, Result]:
        """Samples per second of each, in turns. A peer that fails is left out, with a note; any other raises
        Failed."""
        with ExitStack() as running:
            runners = dict(others)
            for name, each in contestants.items():
                try:
                    child = running.enter_context(Child(each))
                    self.facts[" ".join([Path(each.command[1]).name, *each.command[2:]])] = child.ready()
                    rate = child.train(50 * BATCH)
                except Failed as error:
                    if name not in PEERS:
                        raise Failed(f"{name}: {error}") from None
                    self.notes.append(f"{name}: {error}")
                else:
                    runners[name] = partial(child.train, self.samples(rate))
            return race(runners, self.probe, rounds=self.rounds)

    def samples(self, rate: float) -> int:
        """How many samples to train on, in whole batches, at `rate` samples per second."""
        return max(20, round(rate * self.seconds / BATCH)) * BATCH


def contestant(file: str, *arguments: object, python: str = sys.executable, **environment: str) -> Contestant:
    """A program in this folder."""
    return Contestant([python, str(HERE / file), *map(str, arguments)], environment)


def nnx(bench: Bench, recipe: str, overrides: list[str], *arguments: object, **environment: str) -> Contestant:
    """nnx's own loop for a recipe."""
    return contestant(
        "nnx_loop.py", "--recipe", recipe, *sets([f"device={bench.device}", *overrides]), *arguments, **environment
    )


def sets(overrides: list[str]) -> list[str]:
    """The overrides as arguments of the command line."""
    return [word for text in overrides for word in ("--set", text)]


def mlp(bench: Bench) -> list[Row]:
    """the network 784-256-128-10 on MNIST, trained by each tool"""
    device = ("--device", bench.device)
    contestants = {
        "beginner": contestant("beginner.py", *device),
        "floor: matrix products alone": contestant("floor.py", *device),
    }
    variants = {"nnx": GENERAL} if bench.quick else VARIANTS
    contestants |= {name: nnx(bench, "mnist_mlp", overrides) for name, overrides in variants.items()}
    if not bench.quick:
        contestants["beginner, 2 workers"] = contestant("beginner.py", *device, "--workers", 2)
    for name, (peer, file, *arguments) in PEERS.items() if bench.peers else ():
        try:
            contestants[name] = contestant(file, *arguments, python=peers.python(peer))
        except Failed as error:
            bench.notes.append(f"{name}: {error}")
    results = bench.compare(contestants)
    base, floor = (results[name] for name in list(contestants)[:2])
    rows = [
        result.row(name, x_beginner=result.over(base), of_floor=result.over(floor)) for name, result in results.items()
    ]
    return sorted(rows, key=lambda row: -row["value"])


def architectures(bench: Bench) -> list[Row]:
    """each recipe by nnx, and its network in the usual loop; the floor is its FLOPs at the peak of the probe"""
    from benchmarks import network

    bench.notes.append(
        "architectures: nnx trains the recipe, with augmentation and clipping; the beginner its network by Adam"
    )
    rows = []
    for name, (recipe, overrides) in ARCHITECTURES.items():
        beginner = contestant("beginner.py", "--device", bench.device, "--recipe", recipe, *sets(overrides))
        results = bench.compare({"beginner": beginner, "nnx": nnx(bench, recipe, overrides)})
        base, flops = results["beginner"], network.flops(recipe, overrides)
        for who, result in results.items():
            of_floor = result.median * flops / (bench.probe.best * 1e9)
            rows.append(result.row(f"{name}, {who}", x_beginner=result.over(base), of_floor=of_floor, flops=flops))
    return rows


def startup(bench: Bench) -> list[Row]:
    """the cost of the command line: seconds around the training, memory, and samples per second beside the bare loop"""
    ended: list[Ended] = []
    with tempfile.TemporaryDirectory() as folder:
        numbers = count()

        def train(*program: str) -> Ended:
            out = f"{folder}/{next(numbers)}"
            return run([*program, "train", "mnist_mlp", "--set", "train.epochs=3", "--out", out, "--json", "--quiet"])

        def rate() -> float:
            ended.append(train(NNX))
            return float(json.loads(ended[-1].output)["samples_per_second"])

        def first_step() -> float:
            return float(train(sys.executable, str(HERE / "first_step.py")).output)

        times = race(
            {"help": lambda: run([NNX, "--help"]).seconds, "first step": first_step}, bench.probe, rounds=bench.rounds
        )
        rates = bench.compare({"bare loop": nnx(bench, "mnist_mlp", [])}, {"nnx train": rate})
    of_loop = rates["nnx train"].over(rates["bare loop"])
    return [
        times["help"].row("nnx --help", unit="s"),
        times["first step"].row("nnx train, start to the end of the first step", unit="s"),
        Result([one.leaving for one in ended]).row("nnx train, last output to the end", unit="s"),
        Result([one.megabytes for one in ended]).row("nnx train, peak memory", unit="MB"),
        rates["bare loop"].row("bare loop"),
        rates["nnx train"].row("nnx train", of_bare_loop=of_loop),
    ]


@dataclass(frozen=True)
class Setting:
    """One size: settings and arguments of nnx, arguments of the floor, and the environment of both."""

    name: str
    overrides: Sequence[str] = ()
    ours: Sequence[object] = ()
    floor: Sequence[object] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


def scaling(bench: Bench) -> list[Row]:
    """other numbers of samples, widths, batch sizes and threads, each beside the matrix products of that size"""
    settings = [
        *(Setting(f"{n:,} samples", ours=["--samples", n]) for n in (10_000, 100_000, 1_000_000)),
        *(
            Setting(f"{w}-{w // 2} wide", [f"model.hidden=[{w}, {w // 2}]"], floor=["--sizes", f"784,{w},{w // 2},10"])
            for w in (64, 512, 2048)
        ),
        *(Setting(f"batches of {b}", [f"train.batch_size={b}"], floor=["--batch", b]) for b in (32, 512, 2048)),
        *(
            Setting(f"threads: {t}", [f"threads={t}"], environment={"OMP_NUM_THREADS": str(t)})
            for t in sorted({1, os.cpu_count() or 1})
        ),
    ]
    rows = []
    for setting in settings:
        ours = nnx(bench, "mnist_mlp", [*GENERAL, *setting.overrides], *setting.ours, **setting.environment)
        results = bench.compare({"nnx": ours, "floor": contestant("floor.py", *setting.floor, **setting.environment)})
        rows.append(results["nnx"].row(setting.name, of_floor=results["nnx"].over(results["floor"])))
    return rows


def ranks(bench: Bench) -> list[Row]:
    """`nnx train --nproc N`: several processes share each batch on the cores of this machine"""
    rows = []
    for recipe, batch, epochs in (("mnist_mlp", 128, 3), ("mnist_mlp", 2048, 6), ("mnist_cnn", 128, 1)):

        def rate(processes: int, recipe: str, batch: int, epochs: int) -> float:
            settings = sets([f"train.epochs={epochs}", f"train.batch_size={batch}"])
            with tempfile.TemporaryDirectory() as folder:
                flags = ["--nproc", str(processes), "--out", f"{folder}/run", "--json", "--quiet"]
                return float(json.loads(run([NNX, "train", recipe, *settings, *flags]).output)["samples_per_second"])

        runners = {
            f"{n} process{'es' * (n > 1)}": partial(rate, n, recipe, batch, epochs) for n in (1, os.cpu_count() or 1)
        }
        results = race(runners, bench.probe, rounds=3)
        alone = next(iter(results.values()))
        rows += [
            result.row(f"{recipe}, batches of {batch}, {name}", of_one=result.over(alone))
            for name, result in results.items()
        ]
    return rows


def together(bench: Bench) -> list[Row]:
    """two trainings at once: the sum of their samples per second, beside one alone"""
    rows = []
    for recipe in SHIPPED:
        with ExitStack() as running:
            pair = [running.enter_context(Child(nnx(bench, recipe, []))) for _ in range(2)]
            for child in pair:
                child.ready()
            samples = bench.samples(pair[0].train(50 * BATCH))

            results = race(
                {"alone": partial(pair[0].train, samples), "two at once": partial(_train_at_once, pair, samples)},
                bench.probe,
                rounds=bench.rounds,
            )
        rows += [
            result.row(f"{recipe}, {name}", of_one=result.over(results["alone"])) for name, result in results.items()
        ]
    return rows


def _train_at_once(children: Sequence[Child], samples: int) -> float:
    """The sum of their samples per second. Each trains on `samples` samples."""
    with ThreadPoolExecutor() as pool:
        return sum(pool.map(lambda child: child.train(samples), children))


def before(bench: Bench) -> list[Row]:
    """each recipe by this code, and by the checkout that --before names"""
    if not bench.before:
        bench.notes.append("before: left out, it needs --before FOLDER")
        return []
    rows = []
    for recipe in SHIPPED:
        scripts, config = bench.before / "scripts" / "benchmarks", bench.before / "configs" / f"{recipe}.yaml"
        command = [sys.executable, str(scripts / "nnx_loop.py"), "--recipe", str(config)]
        earlier = Contestant(command, {"PYTHONPATH": str(bench.before)})
        results = bench.compare({"before": earlier, "now": nnx(bench, recipe, [])})
        rows += [
            result.row(f"{recipe}, {name}", of_before=result.over(results["before"]))
            for name, result in results.items()
        ]
    return rows


def settings(bench: Bench) -> list[Row]:
    """each shipped recipe with what nnx chooses, beside settings by hand that don't change the mathematics"""
    from nnx import config

    rows = []
    for path in sorted((HERE.parents[1] / "configs").glob("*.yaml")):
        recipe = path.stem
        model = config.load(recipe, []).model.name
        ours = [setting for setting in SETTINGS if model == "cnn" or not setting.startswith("layout")]
        contestants = {"as chosen": nnx(bench, recipe, [])} | {each: nnx(bench, recipe, [each]) for each in ours}
        results = bench.compare(contestants)
        rows += [
            result.row(f"{recipe}, {name}", of_chosen=result.over(results["as chosen"]))
            for name, result in results.items()
        ]
    return rows


def recipes(bench: Bench) -> list[Row]:
    """the fast recipes, each seed once: seconds of the whole process, and test accuracy"""
    rows = []
    for recipe, (wanted, seeds) in RECIPES.items():
        path = HERE.parents[1] / "configs" / f"{recipe}.yaml"
        if not path.exists() or not bench.real:
            bench.notes.append(
                f"recipes: {recipe} is left out: {'it needs MNIST' if path.exists() else 'recipe not found'}"
            )
            continue
        accuracies: dict[str, float] = {}

        def train(path: Path, seed: str, accuracies: dict[str, float]) -> float:
            with tempfile.TemporaryDirectory() as folder:
                ended = run([NNX, "train", str(path), "--seed", seed, "--out", f"{folder}/run", "--json", "--quiet"])
            accuracies[seed] = json.loads(ended.output)["test_accuracy"]
            return ended.seconds

        runners = {seed: partial(train, path, seed, accuracies) for seed in map(str, range(seeds))}
        results = race(runners, bench.probe, rounds=1).values()
        whole = Result([r.median for r in results], sum(r.discarded for r in results), all(r.steady for r in results))
        reached = sum(accuracy >= wanted for accuracy in accuracies.values())
        rows.append(whole.row(f"{recipe}, {wanted:.0%} by {reached} of {seeds} seeds", unit="s", accuracies=accuracies))
    return rows


PARTS: dict[str, tuple[Callable[[Bench], list[Row]], int]] = {  # with the minutes that each takes, roughly
    "mlp": (mlp, 3),
    "architectures": (architectures, 4),
    "startup": (startup, 3),
    "scaling": (scaling, 5),
    "ranks": (ranks, 3),
    "together": (together, 4),
    "before": (before, 4),
    "settings": (settings, 15),
    "recipes": (recipes, 2),
}
