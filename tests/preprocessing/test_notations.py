"""Numbers with decimal commas, separated thousands and units: read where a column shows one notation."""

import polars as pl
import pytest

from nnx.preprocessing.notations import Doubt, Notation, detect, parse

READ = {  # values: (their notation, the numbers)
    ("5,1", "3", "1,234"): (Notation(","), [5.1, 3, 1.234]),
    ("0,512", "0,123"): (Notation(","), [0.512, 0.123]),
    ("1234,567", "1,000"): (Notation(","), [1234.567, 1]),
    ("−5,5", "1e3", ",5"): (Notation(","), [-5.5, 1000, 0.5]),
    ("1.234,5", "1.234"): (Notation(",", grouped=True), [1234.5, 1234]),
    ("1.234.567", "5"): (Notation(",", grouped=True), [1234567, 5]),
    ("1,234.5", "1,234", "7"): (Notation(".", grouped=True), [1234.5, 1234, 7]),
    ("12,34,567", "2,345"): (Notation(".", grouped=True), [1234567, 2345]),
    ("1 234", "5"): (Notation(), [1234, 5]),
    ("1\u202f234,5", "5"): (Notation(","), [1234.5, 5]),
    ("$1,234.50", "-$3", "$-4"): (Notation(".", grouped=True, unit="$"), [1234.5, -3, -4]),
    ("1.234,5 €", "12,0 €"): (Notation(",", grouped=True, unit="€"), [1234.5, 12]),
    ("CHF 1'234.50", "CHF 2"): (Notation(unit="CHF"), [1234.5, 2]),
    ("12 %", "13,5%"): (Notation(",", unit="%"), [12, 13.5]),
    ("5.1cm", "6 cm", "0"): (Notation(unit="cm"), [5.1, 6, 0]),
    ("–5", "−7.5", "-1"): (Notation(), [-5, -7.5, -1]),
    ("(1,200.50)", "3"): (Notation(grouped=True), [-1200.5, 3]),
    ("5 kg/m3", "7.5 kg/m3"): (Notation(unit="kg/m3"), [5, 7.5]),
    ("3'466.–", "12.--", "7.50"): (Notation(), [3466, 12, 7.5]),
    ("1.200,- €", "7,50 €"): (Notation(",", grouped=True, unit="€"), [1200, 7.5]),
    ("1_234", "5_000_000"): (Notation(), [1234, 5_000_000]),
    ("1,028E+04", "2,5E-1"): (Notation(","), [10280, 0.25]),
    ("1.5×10^3", "2 x 10^-2", "3*10**−1"): (Notation(), [1500, 0.02, 0.3]),
    ("1.5D+03", "1.5D-03"): (Notation(), [1500, 0.0015]),
    ("４２", "－１．５"): (Notation(), [42, -1.5]),
    ("١٢٫٥", "١٬٢٣٤"): (Notation(), [12.5, 1234]),
    ("۱۲", "۳"): (Notation(), [12, 3]),
    ("१२.५", "३"): (Notation(), [12.5, 3]),
    (*(f"{i}.5" for i in range(20)), "7.25-", "1,000.00-"): (
        Notation(grouped=True),
        [*(i + 0.5 for i in range(20)), -7.25, -1000],
    ),
    ("4.5 x10^3/uL", "5.5 x10^3/uL"): (Notation(unit="x10^3/uL"), [4.5, 5.5]),
}


@pytest.mark.parametrize("texts", READ)
def test_clear_notations_are_read(texts):
    notation, numbers = READ[texts]
    assert detect(pl.Series(texts)) == notation
    assert parse(pl.Series([*texts, None]), notation).to_list() == [*map(pytest.approx, numbers), None]
    nested = {"decimal": notation.decimal, "grouped": notation.grouped, "unit": notation.unit}
    assert Notation.from_dict(nested) == notation


DOUBTS = {
    ("1,234", "2,345", "5"): ("1,234", "2,345"),
    ("1.234 kg", "2.345 kg"): ("1.234 kg", "2.345 kg"),
    ("5,1", "5.2"): ("5.2", "5,1"),
    (*(f"{i},5" for i in range(20)), *["n.d."] * 9): ("0,5", "n.d."),
    (*(f"{i}.5" for i in range(20)), "<1", "<2", "<3"): ("0.5", "<1"),
    tuple(f"{i} {unit}" for i in range(9) for unit in ("g", "kg")): ("0 g", "0 kg"),
    ("1.028E+04", "1,5"): ("1.028E+04", "1,5"),
    tuple(f"{i}-{i + 10}" for i in range(10, 30)): ("10-20", "11-21"),
    tuple(f"0x{i:x}" for i in range(16, 36)): ("0x10", "0x11"),
    tuple(f"{i}/64" for i in range(11, 30)): ("11/64", "12/64"),
    tuple(f"~{i}" for i in range(10, 30)): ("~10", "~11"),
}


@pytest.mark.parametrize("texts", DOUBTS)
def test_what_is_not_clear_is_a_doubt_with_two_examples(texts):
    doubt = detect(pl.Series(texts))
    assert isinstance(doubt, Doubt)
    assert doubt.examples == DOUBTS[texts]


@pytest.mark.parametrize(
    "texts",
    [
        ("a", "b"),
        ("1st", "2nd", "3rd"),
        ("2020-01-01", "2020-01-02"),
        ("31.12.2024", "01.02.2024"),
        ("12:30", "13:30"),
        ("10-20", "20-30"),
        ("ID1", "ID2"),
        ("1.2.3.4",),
        ("1", "2", "2-", "3-", "1-"),
        tuple(f"{i % 24:02}:{i:02}" for i in range(50)),
        tuple(f"a{i}" for i in range(50)),
        ("5,1", "x", "y"),
        (),
    ],
)
def test_what_is_not_numbers_has_no_notation(texts):
    assert detect(pl.Series(texts, dtype=pl.String)) is None


def test_values_that_do_not_follow_the_notation_are_refused():
    """5.1 can't be mistaken for a grouped number, 5.123 can; other units are others."""
    texts = pl.Series(["5.1", "5.123", "1.234,5", "7,1 cm", None, "x"])
    assert parse(texts, Notation(",")).to_list() == [5.1, None, None, None, None, None]


@pytest.mark.parametrize(
    "data", [{}, {"decimal": ";", "grouped": False, "unit": ""}, {"decimal": ".", "grouped": 1, "unit": ""},
             {"decimal": ".", "grouped": False, "unit": "x" * 21}, {"decimal": ".", "unit": ""}]
)  # fmt: skip
def test_invalid_notations_are_refused(data):
    with pytest.raises((ValueError, TypeError)):
        Notation.from_dict(data)
