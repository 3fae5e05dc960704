"""Which test samples are in the training data too: against a Python set of bytes."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nnx import datasets
from nnx.datasets import Mapped, Split, _statistics


def split(inputs) -> Split:
    return Split(inputs, np.zeros(len(inputs), np.int64))


def by_set(known, test) -> int:
    seen = {row.tobytes() for inputs in known for row in inputs}
    return sum(row.tobytes() in seen for row in test)


def count(known, test) -> int | None:
    duplicates = datasets.find_duplicates(known, test)
    return duplicates and duplicates.count


# few values and few places, so that equal samples are drawn often; sizes that are, and are not, whole 64-bit words
SHAPES = st.sampled_from([(1, 1, 1), (1, 2, 2), (3, 1, 3), (1, 8, 8), (1,), (2,), (3,), (5,)])


@st.composite
def parts(draw):
    shape = draw(SHAPES)
    dtype, values = (
        (np.uint8, st.sampled_from([0, 1, 255])) if len(shape) == 3 else (np.float32, st.sampled_from([0.0, -0.0, 1.5]))
    )
    lengths = draw(st.tuples(*[st.integers(1, 12)] * 3))
    return [draw(hnp.arrays(dtype, (n, *shape), elements=values, fill=values)) for n in lengths]


@given(parts=parts(), compared=st.sampled_from([1, 20, 2**26]), hashed=st.sampled_from([1, 30, 2**20]))
@example(parts=[np.zeros((4, 1, 2, 2), np.uint8)] * 3, compared=1, hashed=1)
def test_it_counts_what_a_set_of_bytes_counts(parts, compared, hashed):
    train, validation, test = parts
    with pytest.MonkeyPatch.context() as patch:  # however it is cut
        patch.setattr(_statistics, "COMPARED", compared)
        patch.setattr(_statistics, "HASHED", hashed)
        assert count([split(train), split(validation)], split(test)) == by_set([train, validation], test)


def test_samples_whose_hashes_are_all_equal_are_told_apart(monkeypatch):
    monkeypatch.setattr(_statistics, "_hashes", lambda inputs: np.zeros(len(inputs), np.uint64))
    rng = np.random.default_rng(0)
    train, test = (rng.integers(0, 4, (200, 1, 1, 3), np.uint8) for _ in range(2))
    found = count([split(train)], split(test))
    assert found == by_set([train], test)
    assert 0 < found < 200


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 5, 7)])
def test_hashes_of_different_samples_differ(shape):
    """Also where they differ in a pixel or two only, those that become the highest bits of a word among them."""
    rng = np.random.default_rng(1)
    one = rng.integers(0, 256, shape, np.uint8)
    some = [one]
    for place in range(one.size):
        for other in range(0, one.size, 7):
            changed = one.copy().reshape(-1)
            changed[place] ^= 1 << (place % 8)
            changed[other] ^= 0x81
            some.append(changed.reshape(shape))
    samples = np.unique(np.stack(some), axis=0)
    assert len(np.unique(_statistics._hashes(samples))) == len(samples) > 500


@pytest.mark.parametrize(("values", "columns"), [(4, 5), (2, 16), (10, 4), (40, 3)])
def test_hashes_of_rows_of_small_numbers_differ(values, columns):
    rows = np.stack(np.meshgrid(*[np.arange(values, dtype=np.float32)] * columns), -1).reshape(-1, columns)
    for samples in (rows, -rows / 4):
        assert len(np.unique(_statistics._hashes(samples))) == len(rows) == values**columns


def test_samples_in_a_file_are_read_from_it(tmp_path):
    rng = np.random.default_rng(2)
    np.save(tmp_path / "x.npy", rng.integers(0, 2, (300, 1, 2, 3), np.uint8))
    whole = np.load(tmp_path / "x.npy", mmap_mode="r")
    train, test = Mapped(whole, np.arange(0, 300, 3)), Mapped(whole, np.arange(299, 0, -2))
    assert count([split(train)], split(test)) == by_set([np.asarray(train)], np.asarray(test)) > 0
    assert count([split(np.asarray(train))], split(np.asarray(test))) == by_set([np.asarray(train)], np.asarray(test))


def test_files_that_are_too_large_are_not_read(monkeypatch):
    rows = np.ones((10, 3), np.float32)
    mapped = split(Mapped(rows, np.arange(10)))
    assert count([mapped], mapped) == 10
    monkeypatch.setattr(_statistics, "MAX_READ", 2 * rows.nbytes - 1)
    assert count([mapped], mapped) is None
    assert count([split(rows)], split(rows)) == 10  # what is in memory is looked at, whatever its size
