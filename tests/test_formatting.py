"""The format of figures, and their confidence intervals."""

import math

import pytest
from scipy import stats

from nnx import formatting


@pytest.mark.parametrize(("right", "samples"), [(9794, 10_000), (0, 10), (360, 360), (1, 3)])
def test_interval_is_wilsons(right, samples):
    theirs = stats.binomtest(right, samples).proportion_ci(method="wilson")
    assert formatting.wilson(right / samples, samples) == pytest.approx((theirs.low, theirs.high), abs=1e-6)


@pytest.mark.parametrize(
    ("loss", "text"),
    [
        (0.12345, "0.1235"),
        (2.30259, "2.303"),
        (1234.0, "1234"),
        (0.1, "0.1000"),
        (1.2345e-5, "1.234e-05"),
        (math.nan, "nan"),
    ],
)
def test_losses_have_four_digits(loss, text):
    assert formatting.loss(loss) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (512, "512 B"), (73_600, "73.6 kB"), (43_120_000, "43.1 MB"), (2.5e9, "2.5 GB"), (5e12, "5,000.0 GB")],
)
def test_sizes_have_three_digits(count, text):
    assert formatting.size(count) == text
