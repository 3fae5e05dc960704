"""The faster dropout, compared with torch's."""

import pytest
import torch

from nnx.models._layers import Dropout
from nnx.system.dropout import VALUES, draw_mask, dropout


@pytest.mark.parametrize("p", [0.1, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("shape", [(200_001,), (128, 1568), (40, 50, 101)])
def test_it_zeroes_the_share_p_and_keeps_the_mean(p: float, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    y = dropout(torch.ones(shape), p)
    kept = y != 0
    n = y.numel()
    assert float(kept.float().mean()) == pytest.approx(1 - p, abs=4 * (p * (1 - p) / n) ** 0.5)
    assert y[kept].unique().tolist() == pytest.approx([1 / (1 - p)], rel=1e-4)


def test_neighbours_that_share_a_random_number_are_independent() -> None:
    torch.manual_seed(1)
    kept = (draw_mask((4, 250_000), 0.3, torch.ones(1)) != 0).double().t().flatten().view(-1, 4)
    words = (draw_mask((1_000_000,), 0.3, torch.ones(1)) != 0).double().view(-1, 4)
    for samples in (kept, words):
        correlation = torch.corrcoef(samples.t()) - torch.eye(4)
        assert float(correlation.abs().max()) < 4 / len(samples) ** 0.5


def test_the_gradient_is_zero_where_the_value_is() -> None:
    x = torch.randn(1000, requires_grad=True)
    y = Dropout(0.5)(x)
    y.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad != 0, y != 0)
    assert x.grad.unique().tolist() == [0, 2]


def test_equal_seeds_give_equal_masks_and_evaluation_changes_nothing() -> None:
    layer, x = Dropout(0.4), torch.randn(77, 13)
    masks = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        masks.append(layer(x))
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])
    assert layer.eval()(x) is x


def test_a_probability_near_1_never_divides_by_zero() -> None:
    mask = draw_mask((10 * VALUES,), 1 - 1e-9, torch.ones(1))
    assert bool(mask.isfinite().all())
    assert set(mask.unique().tolist()) <= {0, VALUES}
