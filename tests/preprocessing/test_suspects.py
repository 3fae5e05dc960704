"""Columns that identify rows or dates rather than describe them."""

import numpy as np
import polars as pl
import pytest

from nnx.preprocessing import suspects

N = 60
RNG = np.random.default_rng(0)
NUMBERS = {  # values: what is suspicious about them
    "row numbers": (np.arange(N), suspects.ORDER),
    "from the last": (-np.arange(N), suspects.ORDER),
    "times": (np.cumsum(RNG.uniform(0, 60, N)), suspects.ORDER),
    "row numbers, two swapped": (np.r_[1, 0, np.arange(2, N)], suspects.ORDER),
    "row numbers, some missing": (np.where(np.arange(N) % 7, np.arange(N), np.nan), suspects.ORDER),
    "ids": (RNG.permutation(N), suspects.DISTINCT),
    "dates": (20240100 + RNG.integers(1, 31, N), suspects.DATES),
    "seconds since 1970": (1.7e9 + RNG.integers(0, 1000, N), suspects.DATES),
    "milliseconds since 1970": (1.7e12 + RNG.integers(0, 1000, N), suspects.DATES),
    "microseconds since 1970": (1.7e15 + RNG.integers(0, 10**9, N), suspects.DATES),
    "nanoseconds since 1970": (1.7e18 + RNG.integers(0, 10**12, N), suspects.DATES),
    "fractions of seconds since 1970": (1.7e9 + RNG.uniform(0, 1000, N), suspects.DATES),
    "dates with minutes": (202401010000 + RNG.integers(1, 28, N) * 10_000 + 1230, suspects.DATES),
    "days first": (12024 + RNG.integers(1, 28, N) * 10**6 + 10_000, suspects.DATES),
    "years of two digits": (240100 + RNG.integers(0, 9, N) * 10_000 + RNG.integers(1, 28, N), suspects.DATES),
    "years": (RNG.integers(1980, 2025, N), suspects.YEARS),
    "pulse": (101 + np.arange(N) * 7 % 31, None),
    "two years": (2020 + np.arange(N) % 2, None),
    "sale_date": (RNG.integers(40_000, 45_000, N), suspects.DATES),
    "day, with fractions": (45_000 + RNG.normal(size=N), suspects.DATES),
    "price": (45_000 + RNG.normal(size=N), None),
    "update": (RNG.normal(size=N), None),
    "ids, some twice": (np.r_[RNG.permutation(N - 2), 3, 4], suspects.DISTINCT),
    "large measurements, some twice": (np.r_[RNG.choice(10**6, N - 2, replace=False), 3, 3], None),
    "ten groups in order": (np.arange(N) // 6, suspects.ORDER),
    "pairs of rows": (np.arange(N) // 2, suspects.ORDER),
    "measurements": (RNG.normal(size=N), None),
    "counts": (RNG.integers(0, 9, N), None),
    "groups in order": (np.arange(N) // 20, None),
    "few rows": (np.arange(10), None),
    "a constant": (np.zeros(N), None),
    "nothing": (np.full(N, np.nan), None),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers(name):
    values, problem = NUMBERS[name]
    assert suspects.find({name: values.astype(float)}, {}) == ({problem: [name]} if problem else {})


TEXTS = {
    "2024-01-{:02}": suspects.DATES,
    "{}.1.2024": suspects.DATES,
    "1/{}/24 12:30": suspects.DATES,
    "2024-01-{:02}T12:30:00Z": suspects.DATES,
    "{:02} Jan 2024": suspects.DATES,
    "January {}, 2024": suspects.DATES,
    "{}-Sep-24": suspects.DATES,
    "Mon, {:02} May 2024 12:30:00 +0000": suspects.DATES,
    "{:02}:30": suspects.DATES,
    "2024-W{:02}": suspects.DATES,
    "20{:02} Q1": suspects.DATES,
    "Q2/20{:02}": suspects.DATES,
    "05/20{:02}": suspects.DATES,
    "{:02}.05.": suspects.DATES,
    "{}. Januar 2024": suspects.DATES,
    "{} de enero de 2024": suspects.DATES,
    "Civic 20{:02}": None,
    "{:02}.50": None,
    "{}/32": None,
    "Mark 2{}": None,
    "10{}:30": None,
    "1.{}": None,
    "a{}": None,
}


@pytest.mark.parametrize("pattern", TEXTS)
def test_texts(pattern):
    series = pl.Series([pattern.format(n % 23 + 1) for n in range(N)])
    problem = TEXTS[pattern]
    assert suspects.find({}, {"x": series}) == ({problem: ["x"]} if problem else {})


def test_names_of_rows():
    names = [f"name {n}" for n in range(N)]
    assert suspects.find({}, {"x": pl.Series([*names, names[0]])}) == {suspects.DISTINCT: ["x"]}


def test_large_tables_are_checked_quickly():
    values = np.arange(1e6)
    assert suspects.find({"x": values, "y": values % 1000}, {}) == {suspects.ORDER: ["x"]}
