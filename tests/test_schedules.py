"""Schedules compared with torch.optim.lr_scheduler, step by step, and the properties that all share."""

import random
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import lr_scheduler

from nnx.config import registry
from nnx.schedules import Constant, Cosine, Horizon, Linear, OneCycle, Plateau, StepDecay

NAMES = registry.names("schedule")
LR = 0.3


def factors(schedule, horizon):
    return [schedule.factor(step, horizon) for step in range(horizon.steps)]


def theirs(make, steps):
    """The learning rates of torch's scheduler `make(optimizer)`, as factors of LR."""
    optimizer = torch.optim.SGD([torch.zeros(1)], LR)
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it would rather be stepped after an optimizer
        scheduler = make(optimizer)
        for _ in range(steps):
            found.append(optimizer.param_groups[0]["lr"] / LR)
            scheduler.step()
    return found


# ---------------------------------------------------------------- every schedule


@pytest.mark.parametrize("name", NAMES)
@given(
    per_epoch=st.integers(1, 50),
    epochs=st.integers(1, 20),
    warmup=st.floats(0, 5) | st.integers(0, 30),
    losses=st.lists(st.floats(0, 100), max_size=20),
    data=st.data(),
)
def test_factors_lie_between_zero_and_one_and_depend_on_the_step_alone(name, per_epoch, epochs, warmup, losses, data):
    kind = registry.find("schedule", name)
    schedule = kind(**({"warmup": warmup} if "warmup" in kind.model_fields else {}))
    horizon = Horizon(per_epoch, epochs, losses)
    whole = factors(schedule, horizon)
    assert all(0 <= factor <= 1 + 1e-12 for factor in whole)
    assert max(whole[:2]) > 0, "the first steps already move"
    steps = data.draw(st.permutations(range(min(horizon.steps, 20))))
    assert [schedule.factor(step, horizon) for step in steps] == [whole[step] for step in steps], (
        "in any order, as a resume asks"
    )


@pytest.mark.parametrize("name", [name for name in NAMES if "warmup" in registry.find("schedule", name).model_fields])
@pytest.mark.parametrize("warmup", [1, 2, 0.5, 1.25])
def test_warm_up_is_linear_from_almost_zero(name, warmup):
    horizon = Horizon(steps_per_epoch=20, epochs=10)
    rise = round(warmup * 20)
    found = factors(registry.find("schedule", name)(warmup=warmup), horizon)
    assert found[:rise] == pytest.approx([(step + 1) / rise for step in range(rise)], abs=1e-12)
    assert found[rise] == pytest.approx(1, abs=1e-3), "and then the schedule begins at its top"
    assert factors(registry.find("schedule", name)(warmup=0), horizon)[0] == 1


@pytest.mark.parametrize("name", NAMES)
def test_a_run_longer_than_planned_stays_within_bounds(name):
    horizon = Horizon(10, 3)
    assert all(0 <= registry.find("schedule", name)().factor(step, horizon) <= 1 for step in range(30, 100))


# ---------------------------------------------------------------- each against torch's


@pytest.mark.parametrize("end", [0.0, 0.1])
def test_cosine_is_torchs(end):
    ours = factors(Cosine(end=end), Horizon(7, 9))
    assert ours == pytest.approx(
        theirs(lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=63, eta_min=end * LR), 63), abs=1e-9
    )


@pytest.mark.parametrize("end", [0.0, 0.1])
def test_linear_is_torchs(end):
    ours = factors(Linear(end=end), Horizon(7, 9))
    assert ours == pytest.approx(theirs(lambda o: lr_scheduler.LinearLR(o, 1.0, end, total_iters=63), 63), abs=1e-9)


@pytest.mark.parametrize("kind", ["cosine", "linear"])
def test_warm_up_and_decay_are_torchs_in_sequence(kind):
    warmup, steps = 14, 63  # two epochs of seven steps, of nine

    def make(optimizer):
        rise = lr_scheduler.LambdaLR(optimizer, lambda step: (step + 1) / warmup)
        if kind == "cosine":
            fall = lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps - warmup, eta_min=0.1 * LR)
        else:
            fall = lr_scheduler.LinearLR(optimizer, 1.0, 0.1, total_iters=steps - warmup)
        return lr_scheduler.SequentialLR(optimizer, [rise, fall], [warmup])

    ours = factors(registry.find("schedule", kind)(warmup=2, end=0.1), Horizon(7, 9))
    assert ours == pytest.approx(theirs(make, steps), abs=1e-9)


def test_constant_is_torchs():
    assert factors(Constant(), Horizon(7, 9)) == theirs(lambda o: lr_scheduler.ConstantLR(o, 1.0), 63)


@pytest.mark.parametrize(("every", "gamma"), [(1, 0.5), (2, 0.1), (3, 0.9), (20, 0.1)])
def test_step_is_torchs(every, gamma):
    ours = factors(StepDecay(every=every, gamma=gamma), Horizon(7, 9))
    assert ours == pytest.approx(
        theirs(lambda o: lr_scheduler.StepLR(o, step_size=every * 7, gamma=gamma), 63), abs=1e-9
    )


@pytest.mark.parametrize(("peak", "start", "end"), [(0.3, 0.04, 4e-6), (0.5, 0.1, 0.01), (0.11, 1.0, 0.0001)])
@pytest.mark.parametrize("shape", [(7, 9), (1, 20), (100, 1)])
def test_one_cycle_is_torchs(peak, start, end, shape):
    horizon = Horizon(*shape)
    ours = factors(OneCycle(peak=peak, start=start, end=end), horizon)

    def make(optimizer):
        return lr_scheduler.OneCycleLR(
            optimizer,
            LR,
            horizon.steps,
            pct_start=peak,
            div_factor=1 / start,
            final_div_factor=start / end,
            cycle_momentum=False,
        )

    assert ours == pytest.approx(theirs(make, horizon.steps), abs=1e-9)


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5])
def test_one_cycle_of_a_few_steps_never_divides_by_zero(steps):
    """Unlike torch's, whose rise ends at step peak * steps - 1, which is 0 or less here."""
    found = factors(OneCycle(peak=0.25), Horizon(steps, 1))
    assert all(0 <= factor <= 1 for factor in found)


@pytest.mark.parametrize("patience", [0, 1, 3])
@pytest.mark.parametrize("threshold", [0.0, 1e-4, 0.05])
def test_plateau_is_torchs(patience, threshold):
    rng = random.Random(patience)
    losses = [2 * 0.93**epoch + rng.uniform(0, 0.2) + (0.4 if epoch > 20 else 0) for epoch in range(40)]
    losses[5] = losses[4]  # equal is not better
    optimizer = torch.optim.SGD([torch.zeros(1)], LR)
    scheduler = lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=patience, threshold=threshold, eps=0)
    schedule = Plateau(patience=patience, threshold=threshold, gamma=0.5)
    ours, expected = [], []
    for epoch in range(len(losses) + 1):
        ours.append(schedule.factor(epoch * 10, Horizon(10, 41, losses[:epoch])))
        expected.append(optimizer.param_groups[0]["lr"] / LR)
        if epoch < len(losses):
            scheduler.step(losses[epoch])
    assert ours == pytest.approx(expected, abs=1e-9)
    assert min(ours) < 1, "the control: it did fall"
