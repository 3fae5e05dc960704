"""Going on with a run: from which state, with which settings, and what is made good after a crash. Equal bits are in
cli/test_train."""

import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nnx import checkpoint, config, datasets, errors
from nnx.events import Epoch, Finished, Started, Step
from nnx.inference import metrics
from nnx.run import folder as run_folder
from nnx.run.pipeline import run
from nnx.run.resume import resumed_config
from nnx.run.verify import verify
from nnx.system import device as devices
from nnx.training import loop

SETTINGS = [
    "train.report=false",
    "train.epochs=2",
    "dataset.validation=0.5",
    "train.batch_size=64",
    "model={name: mlp, hidden: [8]}",
]
DATA = Path(__file__).parents[1] / "data"


def chosen(*more):
    return config.load("digits_mlp", [*SETTINGS, *more])


def events(*more, **options):
    return list(run(chosen(*more), **options))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "r"
    events(out=folder)
    return folder


@pytest.fixture
def folder(made, tmp_path):
    """A finished run of two epochs, 12 steps each."""
    return Path(shutil.copytree(made, tmp_path / "r"))


def started(found):
    return next(event for event in found if isinstance(event, Started))


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# ---------------------------------------------------------------- which state


def test_a_damaged_state_is_passed_over_for_the_one_before_it_with_a_warning(folder):
    before = files(folder)
    (folder / "last.pt").write_bytes(before["last.pt"][:-1])
    found = events(resume=folder)
    assert started(found).step == 12
    assert "last.pt: is" in started(found).warnings[0]
    assert "previous.pt, of step 12" in started(found).warnings[0]
    after = files(folder)
    assert after["last.pt"] == before["last.pt"]
    assert after["checkpoint.pt"] == before["checkpoint.pt"]


def test_the_warning_is_seen_also_when_progress_is_not(folder, nnx_quiet):
    (folder / "last.pt").unlink()
    assert nnx_quiet("train", "--resume", folder, "-q").startswith("warning: ")


@pytest.fixture
def nnx_quiet(capsys, monkeypatch):
    from nnx.cli import run_command

    def command(*words):
        monkeypatch.setattr("sys.argv", ["nnx", *map(str, words)])
        assert run_command() == 0
        return capsys.readouterr().err

    return command


def test_where_neither_state_can_be_read_the_first_ones_error_is_said(folder):
    (folder / "last.pt").write_bytes(b"x")
    (folder / "previous.pt").unlink()
    before = files(folder)
    with pytest.raises(errors.CheckpointError, match=r"last\.pt: is not a checkpoint"):
        events(resume=folder)
    assert files(folder) == before


def test_a_state_can_be_named(folder):
    before = files(folder)
    assert started(events(resume=folder / "previous.pt")).step == 12
    assert files(folder)["last.pt"] == before["last.pt"]


def test_the_config_is_that_of_the_run(folder):
    again = resumed_config(folder, ["train.epochs=5"])
    assert again.to_dict() == chosen("train.epochs=5").to_dict()
    for _ in run(again, resume=folder):
        pass
    assert config.load(folder / "config.yaml").train.epochs == 5, "config.yaml says what the run now is"


def test_a_state_of_the_first_format_goes_on(tmp_path):
    (tmp_path / "r").mkdir()
    shutil.copy(DATA / "format_1.pt", tmp_path / "r/last.pt")
    kept = checkpoint.without_training(checkpoint.read(tmp_path / "r/last.pt"))
    checkpoint.write(tmp_path / "r/checkpoint.pt", kept)
    for event in run(resumed_config(tmp_path / "r", ["train.epochs=4"]), resume=tmp_path / "r"):
        if isinstance(event, Finished):
            assert event.summary["epochs"] == 4
    with pytest.raises(errors.CheckpointError, match="has no recorded losses"):
        verify(tmp_path / "r")


def test_the_optimizers_settings_are_the_configs(folder):
    """A file that lacks one would fail at the first step; one that has another would train with it."""
    state = checkpoint.read(folder / "last.pt")
    (optimizer,) = state.training["optimizers"]
    groups = [
        {"params": group["params"], "lr": group["lr"], "weight_decay": 9.0} for group in optimizer["param_groups"]
    ]
    changed = state.training | {"optimizers": [optimizer | {"param_groups": groups}]}
    checkpoint.write(folder / "last.pt", replace(state, training=changed))
    assert events("train.epochs=3", resume=folder)[-1].summary["epochs"] == 3
    (optimizer,) = checkpoint.read(folder / "last.pt").training["optimizers"]
    assert optimizer["param_groups"][0]["weight_decay"] == chosen().optimizer.weight_decay != 9.0
    assert "betas" in optimizer["param_groups"][0]


# ---------------------------------------------------------------- what may differ


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("train.batch_size=32", "train.batch_size: 64 → 32"),
        ("seed=1", "seed: 0 → 1"),
        ("model.hidden=[9]", "model.hidden: [8] → [9]"),
        ("dataset.validation=0.4", "dataset.validation: 0.5 → 0.4"),
        ("deterministic=true", "deterministic: False → True"),
    ],
)
def test_another_setting_is_listed_and_refused(folder, setting, said):
    before = files(folder)
    with pytest.raises(errors.CheckpointError) as caught:
        events(setting, resume=folder)
    assert said in str(caught.value)
    assert files(folder) == before


def test_fewer_epochs_than_there_are_already_are_refused(folder):
    before = files(folder)
    with pytest.raises(errors.CheckpointError, match=r"already in epoch 2, so train\.epochs can't be 1"):
        events("train.epochs=1", resume=folder)
    assert files(folder) == before


@pytest.mark.parametrize("setting", ["train.epochs=3", "train.save_every=5", "dataset.root=elsewhere", "device=cpu"])
def test_what_does_not_change_the_training_may_differ(folder, setting):
    assert not started(events(setting, resume=folder)).warnings


def test_a_resumed_run_starts_with_its_history(folder):
    found = started(events("train.epochs=3", resume=folder))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [record["epoch"] for record in found.history] == [1, 2]
    assert all(record.items() <= line.items() for record, line in zip(found.history, lines, strict=False))
    assert found.best == max(found.history, key=lambda record: record["val_accuracy"])
    assert started(events(out=folder.with_name("new"))).history == ()


@pytest.mark.parametrize("schedule", ["one_cycle", "cosine", "linear"])
def test_a_jump_of_the_learning_rate_after_more_epochs_is_explained(schedule, tmp_path):
    events(f"schedule={schedule}", out=tmp_path / "r")
    last = json.loads((tmp_path / "r" / "metrics.jsonl").read_text().splitlines()[-1])["lr"]
    found = events(f"schedule={schedule}", "train.epochs=4", resume=tmp_path / "r")
    (note,) = (choice for choice in started(found).choices if choice.what == "learning rate")
    first = next(event for event in found if isinstance(event, Step))
    assert first.step == 25
    assert note.value == f"{last:.1e} → {first.lr:.1e}"
    assert note.reason == f"the {schedule} schedule now spans 4 epochs, not 2"


@pytest.mark.parametrize("change", [["schedule=one_cycle"], ["schedule=step", "train.epochs=4"]])
def test_a_learning_rate_that_does_not_jump_is_not_explained(change, tmp_path):
    schedules = [setting for setting in change if setting.startswith("schedule")]
    new = started(events(*schedules, out=tmp_path / "r"))
    again = started(events(*change, resume=tmp_path / "r"))
    assert "learning rate" not in {choice.what for choice in (*new.choices, *again.choices)}


def test_another_environment_is_warned_of(folder, monkeypatch):
    real = devices.environment_fingerprint
    monkeypatch.setattr(devices, "environment_fingerprint", lambda chosen: real(chosen) | {"torch": "9.9"})
    (warning,) = started(events("train.epochs=3", resume=folder)).warnings
    assert f"torch: {torch.__version__} → 9.9" in warning
    assert not started(events("train.epochs=4", resume=folder)).warnings, "it is now saved with this one"


def test_other_data_is_refused(folder, monkeypatch):
    real = datasets.load

    def other(*arguments, **options):
        found = real(*arguments, **options)
        found.train.labels[0] += 1
        return found

    monkeypatch.setattr(datasets, "load", other)
    with pytest.raises(errors.CheckpointError, match="trained on other data"):
        events(resume=folder)


# ---------------------------------------------------------------- after a crash


def test_a_crash_between_state_and_checkpoint_is_made_good(tmp_path, monkeypatch):
    """The state of an epoch is saved before its network: the network can be had from the state, not the other way
    round."""
    write = checkpoint.write

    def crash(path, *arguments, **options):
        if path.name == "checkpoint.pt" and crashing:
            raise KeyboardInterrupt
        write(path, *arguments, **options)

    events(out=tmp_path / "whole")
    for crashing in (True, False):
        monkeypatch.setattr(checkpoint, "write", crash)
        if crashing:
            with pytest.raises(KeyboardInterrupt):
                events(out=tmp_path / "r")
            assert sorted(files(tmp_path / "r")) == ["config.yaml", "last.pt", "metrics.jsonl"]
        else:
            events(resume=tmp_path / "r")
    assert files(tmp_path / "r")["checkpoint.pt"] == files(tmp_path / "whole")["checkpoint.pt"]
    lines = run_folder.read_metrics(tmp_path / "r", [json.loads(line) for line in ("{}",)] * 0)
    assert lines == []
    first, second = map(json.loads, (tmp_path / "r/metrics.jsonl").read_text().splitlines())
    assert first["seconds"] is None, "how long the epoch took was lost"
    assert second["seconds"] > 0


def test_a_lost_network_is_said_before_training_goes_on(folder):
    events(
        "train.epochs=3", "optimizer.lr=3e-3", resume=folder
    )  # the best epoch may be any: make it one before the state
    state = checkpoint.read(folder / "last.pt")
    history = [record | {"val_accuracy": 1.0 / record["epoch"]} for record in state.counters["history"]]
    checkpoint.write(folder / "last.pt", replace(state, counters=state.counters | {"history": history}))
    (folder / "checkpoint.pt").unlink()
    before = files(folder)
    with pytest.raises(
        errors.CheckpointError, match=r"checkpoint\.pt: no such file. The network of the best epoch, 1, is lost"
    ):
        events("train.epochs=4", resume=folder)
    assert files(folder) == before


def test_somebody_elses_checkpoint_is_not_measured(tmp_path):
    def tamper():
        for event in run(chosen(), out=tmp_path / "r"):
            if isinstance(event, Epoch):
                kept = checkpoint.read(tmp_path / "r/checkpoint.pt")
                checkpoint.write(tmp_path / "r/checkpoint.pt", replace(kept, record=kept.record | {"epoch": 77}))

    with pytest.raises(errors.CheckpointError, match="not of this run's best epoch"):
        tamper()


# ---------------------------------------------------------------- when it is saved


def test_it_is_saved_every_so_many_steps_and_at_each_epochs_end(tmp_path):
    seen = []
    for event in run(chosen("train.save_every=5 steps"), out=tmp_path / "r"):
        if isinstance(event, Step | Epoch):
            path = tmp_path / "r/last.pt"
            seen.append(checkpoint.read(path).counters["step"] if path.exists() else 0)
    assert sorted(set(seen)) == [0, 5, 10, 12, 15, 20, 24]
    assert checkpoint.read(tmp_path / "r/previous.pt").counters["step"] == 20
    assert checkpoint.read(tmp_path / "r/last.pt").training["losses"].tolist() == verify_losses(tmp_path / "r")


def verify_losses(folder):
    """The first losses, counted up from the running mean that a look at every step gives."""
    losses, total, before = [], 0.0, 0
    for event in run(chosen("train.save_every=1"), out=folder.with_name("looked")):
        if isinstance(event, Step):
            samples = (event.batch * 64 if event.batch < 12 else 719) if event.batch else 0
            total, before = (0.0, 0) if event.batch == 1 else (total, before)
            losses.append((event.loss * samples - total) / (samples - before))
            total, before = event.loss * samples, samples
    return pytest.approx(losses, rel=1e-4)


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "never", "5 epochs", "true", "[]"])
def test_save_every_takes_steps_or_epoch(value):
    with pytest.raises(errors.ConfigError, match="expected epoch, or a number of steps"):
        chosen(f"train.save_every={value}")


# ---------------------------------------------------------------- signals outside of the steps


def test_a_signal_while_the_test_set_is_read_ends_it_and_it_can_be_taken_up(tmp_path, monkeypatch):
    from nnx.system import signals

    real = metrics.evaluate

    def evaluate(model, batches, *more):
        if not (tmp_path / "r/summary.json").exists() and len(batches) == 360:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(model, batches, *more)

    monkeypatch.setattr("nnx.run.evaluate.evaluate", evaluate)
    with (
        signals.catch_signals() as noted,
        pytest.raises(errors.Stopped, match=r"training is finished and saved. Resume with: nnx train --resume \S+r$"),
    ):
        events(out=tmp_path / "r", signal=noted)
    monkeypatch.undo()
    assert isinstance(events(resume=tmp_path / "r")[-1], Finished)


def test_a_signal_before_the_first_step_changes_nothing(tmp_path, monkeypatch):
    from nnx.system import signals

    real = datasets.load

    def load(*arguments, **options):
        os.kill(os.getpid(), signal.SIGINT)
        return real(*arguments, **options)

    monkeypatch.setattr(datasets, "load", load)
    with signals.catch_signals() as noted, pytest.raises(errors.Stopped, match="nothing was changed") as stopped:
        events(out=tmp_path / "r", signal=noted)
    assert stopped.value.exit_code == 130
    assert not (tmp_path / "r").exists()


def test_the_printed_command_can_be_pasted_whatever_the_folder_is_called(tmp_path):
    out = tmp_path / "my run; echo 'x'"
    with pytest.raises(errors.Stopped) as stopped:
        events(out=out, signal=lambda: signal.SIGTERM, data_dir="a b")
    import shlex

    words = shlex.split(str(stopped.value).split("Resume with: ")[1])
    assert words == ["nnx", "train", "--resume", str(out), "--data-dir", "a b"]


# ---------------------------------------------------------------- memory and divergence


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            torch.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 1 GiB"
            ),
            "out of memory: can't allocate 2.00 GiB. ",
        ),
        (
            RuntimeError(
                "[enforce fail at alloc_cpu.cpp:124] err == 0. "
                "DefaultCPUAllocator: can't allocate memory: you tried to allocate 6400"
            ),
            "",
        ),
        (MemoryError("Unable to allocate 3.1 GiB for an array with shape (1,)"), ""),
    ],
)
def test_out_of_memory_says_the_batch_size_and_what_to_try(error, said, tmp_path, monkeypatch):
    def step(*_):
        raise error

    monkeypatch.setattr(loop, "train_step", lambda gradients: step)
    monkeypatch.setattr("nnx.training.step.train_step", lambda gradients: step)
    with pytest.raises(
        errors.MachineError, match=r"out of memory.*Halve train.batch_size \(now 64\) and double train.accumulate"
    ) as caught:
        events(out=tmp_path / "r")
    assert said in str(caught.value)
    assert caught.value.exit_code == 3


def test_other_errors_are_not_taken_for_it(tmp_path, monkeypatch):
    def step(*_):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr("nnx.training.step.train_step", lambda gradients: step)
    with pytest.raises(RuntimeError, match="mat1"):
        events(out=tmp_path / "r")


def test_the_machines_own_allocator_is_understood():
    with pytest.raises(errors.MachineError, match="out of memory"), devices.explain_out_of_memory("x"):
        torch.empty(2**60)


def spoiled(where, at):
    """A step that spoils something at step number `at`, with a loss that stays finite."""

    def make(gradients):
        def step(state, inputs, targets):
            loss = gradients(state, inputs, targets)
            state.update_weights()
            if state.step == at:
                with torch.no_grad():
                    where(state)
            return loss

        return step

    return make


@pytest.mark.parametrize("where", ["weight", "moment"])
def test_weights_that_are_not_finite_end_the_run_and_the_last_good_state_stays(where, tmp_path, monkeypatch):
    def weight(state):
        state.model.layers[1].weight[0, 0] = torch.inf  # the first pixel is blank in all of the digits: no loss tells

    def moment(state):
        state.optimizers[0].state[state.model.layers[1].weight]["exp_avg_sq"][0, 0] = torch.inf

    monkeypatch.setattr("nnx.training.step.train_step", spoiled({"weight": weight, "moment": moment}[where], 14))
    with pytest.raises(errors.DivergedError) as caught:
        events("compile=false", out=tmp_path / "r")
    step = int(str(caught.value).split("step ")[1].split(":")[0])
    assert 14 <= step <= 64
    assert "Lower optimizer.lr" in str(caught.value)
    assert f"The state of step 12, still finite, is in {tmp_path / 'r/last.pt'}" in str(caught.value)
    assert checkpoint.read(tmp_path / "r/last.pt").counters["step"] == 12


# ---------------------------------------------------------------- verify


def test_a_run_verifies_itself(folder):
    before = files(folder)
    found = verify(folder)
    assert (found.steps, found.difference, found.changed) == (24, None, "")
    assert verify(folder, steps=5).steps == 5
    assert files(folder) == before


@pytest.mark.parametrize("schedule", ["cosine", "plateau", "one_cycle"])
def test_also_after_it_was_given_more_epochs(schedule, tmp_path):
    events(f"schedule={schedule}", out=tmp_path / "r")
    events(f"schedule={schedule}", "train.epochs=4", resume=tmp_path / "r")
    found = verify(tmp_path / "r")
    assert (found.steps, found.difference) == (24, None), (
        "what was recorded after the change would be of another schedule"
    )


def test_the_first_step_that_differs_is_found(folder):
    state = checkpoint.read(folder / "last.pt")
    losses = state.training["losses"].clone()
    losses[16] = losses[16].nextafter(torch.tensor(9.0))
    environment = state.environment | {"began": state.environment["began"] | {"torch": "0.1"}}
    for name in ("last.pt", "previous.pt"):
        checkpoint.write(
            folder / name, replace(state, training=state.training | {"losses": losses}, environment=environment)
        )
    found = verify(folder)
    assert found.difference.step == 17
    assert 0 < found.difference.recorded - found.difference.now < 1e-6
    assert found.changed == f"torch: 0.1 → {torch.__version__}"
    assert verify(folder, steps=16).difference is None


def test_verify_as_a_command(folder, capsys, monkeypatch):
    from nnx.cli import run_command

    def command(*words):
        monkeypatch.setattr("sys.argv", ["nnx", "verify", *map(str, words)])
        return run_command(), *capsys.readouterr()

    code, out, err = command(folder)
    assert (code, err) == (0, "")
    assert "the losses of the first 24 steps are bitwise equal; config, data and environment are the same" in out
    assert json.loads(command(folder, "--json")[1])["bitwise_equal"] is True
    state = checkpoint.read(folder / "last.pt")
    checkpoint.write(
        folder / "last.pt", replace(state, training=state.training | {"losses": state.training["losses"] + 1})
    )
    code, out, err = command(folder, "--json")
    assert code == 5
    assert json.loads(out)["difference"]["step"] == 1
    assert "the losses first differ at step 1" in err
