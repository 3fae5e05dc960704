"""Table files: every separator gives the same frame, and every row has a location."""

import csv
import gzip
import io
import struct
import time
import zlib

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnx.errors import DataError
from nnx.preprocessing import tables

ROWS = [["size", "kind"], ["1.5", "a"], ["", "b, c"], ["-2", 'say "d"'], ["NA", "two\nlines"], ["3", "é"]]
READ = {"size": ["1.5", None, "-2", None, "3"], "kind": ["a", "b, c", 'say "d"', "two\nlines", "é"]}


def written(rows, separator=",", end="\n"):
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=separator, lineterminator=end).writerows(rows)
    return text.getvalue().encode()


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_separators_are_detected(separator, end):
    assert tables.read(written(ROWS, separator, end)).to_dict(as_series=False) == READ


def test_tsv_has_tabs_whatever_else_is_in_it(tmp_path):
    (tmp_path / "a.tsv").write_text("a,b\tc,d\n1,2\t3,4\n")
    assert tables.read(tmp_path / "a.tsv").rows() == [("1,2", "3,4")]
    assert tables.read(b"a\n1\n2\n").to_dict(as_series=False) == {"a": ["1", "2"]}


def test_files_of_office_programs():
    """A byte order mark, semicolons, decimal commas, spaces around values, blank lines at the end, old Macs' line
    ends."""
    data = "\ufeff size ;kind\n 1,5; a \n -2;b,c\n+3,25;1,2,3\n\n\n".encode()
    expected = {"size": ["1.5", "-2", "+3.25"], "kind": ["a", "b,c", "1,2,3"]}
    assert tables.read(data).to_dict(as_series=False) == expected
    assert tables.read(gzip.compress(data)).to_dict(as_series=False) == expected
    assert tables.read(data.replace(b"\n\n\n", b"").replace(b"\n", b"\r")).to_dict(as_series=False) == expected
    assert tables.read(b'a,b\n"1,5",2\n').rows() == [("1,5", "2")], "not without semicolons: it may group thousands"


def test_columns_with_two_separators_keep_their_text():
    """Issue 15, number 4: 1.234,5 and 12,5 are in one notation, which the whole column shows."""
    data = b"a;b;c\n1.234,5;1,5;1,5\n12,5;2;2\n"
    assert tables.read(data, literal=["c"]).rows() == [("1.234,5", "1.5", "1,5"), ("12,5", "2", "2")]


def test_text_that_begins_like_compressed_data_is_read_as_text():
    assert tables.read(b"x^2,kind\n1,a\n").to_dict(as_series=False) == {"x^2": ["1"], "kind": ["a"]}
    with pytest.raises(DataError):
        tables.read(zlib.compress(b"a,b\n1,2\n", 5))


def test_missing_values():
    rows = [["a", "b"], *([marker, "x"] for marker in tables.MISSING), ["0", "none"]]
    assert tables.read(written(rows))["a"].to_list() == [None] * 9 + ["0"]


def test_in_the_target_only_an_empty_cell_is_missing(tmp_path):
    """Issue 15, number 6: a class may be called None."""
    rows = [["a", "b"], *([marker, marker] for marker in tables.MISSING), ["0", "none"]]
    expected = [None, *tables.MISSING[1:], "none"]
    assert tables.read(written(rows), target="b")["b"].to_list() == expected
    assert tables.read(written(rows), target="b")["a"].to_list() == [None] * 9 + ["0"]
    pl.DataFrame({"a": ["None", None], "b": ["None", None]}).write_parquet(tmp_path / "a.parquet")
    assert tables.read(tmp_path / "a.parquet", target="b").rows() == [(None, "None"), (None, None)]


def test_further_words_for_missing_values():
    frame = pl.DataFrame({"n": [-999.0, 1.0, None], "i": [-999, 1, 2], "t": ["-999", "x", "y"]})
    assert tables.replace_missing(frame, ["-999", "x"]).rows() == [(None, None, None), (1, 1, None), (None, 2, "y")]
    assert tables.replace_missing(frame, ["x"]).rows()[0] == (-999, -999, "-999")


@pytest.mark.parametrize("word", ["-999", "-999.0"])
def test_a_missing_number_may_be_written_with_a_point(word):
    """Text columns, as all of a CSV file are, kept -999.0 as a number where -999 was listed."""
    frame = pl.DataFrame({"t": ["-999", "-999.0", "-999.00", "-999.5", "x"]})
    assert tables.replace_missing(frame, [word])["t"].to_list() == [None, None, None, "-999.5", "x"]
    assert tables.replace_missing(pl.DataFrame({"t": ["00", "0.0"]}), ["0"])["t"].to_list() == ["00", None]


def test_blank_lines_are_no_rows_and_lines_are_counted_all_the_same(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('a,b\n\n1,"two\nlines"\n   \n2,\n\n3,x\n')
    frame = tables.read(path)
    assert frame.rows() == [("1", "two\nlines"), ("2", None), ("3", "x")]
    assert [tables.locate_row(path, row) for row in range(3)] == [f"{path}:{line}" for line in (3, 6, 8)]
    assert tables.locate_row(path, 3) == f"{path}, row 4"
    assert tables.locate_row("-", 3) == "-, row 4"
    path.write_text("a\n1\n\n3\n")
    assert tables.read(path)["a"].to_list() == ["1", None, "3"], "in a single column, a blank line is a missing value"
    assert tables.locate_row(path, 2) == f"{path}:4"


TEXTS = st.text(
    st.characters(codec="utf-8", exclude_characters="\r\0", exclude_categories=["Cc", "Zs", "Zl", "Zp"])
    | st.sampled_from(',;|"\n'),
    max_size=6,
)


TABLES = st.integers(2, 4).flatmap(
    lambda width: st.lists(st.lists(TEXTS, min_size=width, max_size=width), min_size=2, max_size=12)
)


@given(TABLES)
def test_what_the_csv_module_writes_is_read(rows):
    """Quotes, separators and line ends inside values. polars reads the rows, the csv module locates them: they agree
    on the rows."""
    names = [f"column {i}" for i in range(len(rows[0]))]
    read = tables.read(written([names, *rows]))
    strip = lambda text: None if text.strip() in tables.MISSING else text.strip()  # noqa: E731
    assert read.rows() == [tuple(map(strip, row)) for row in rows]


@given(TABLES, st.data())
def test_a_row_of_another_length_is_found(rows, data):
    names = [f"column {i}" for i in range(len(rows[0]))]
    at = data.draw(st.integers(0, len(rows) - 1))
    short = data.draw(st.booleans()) and len(rows[0]) > 2
    rows[at] = ["x", *rows[at][2:]] if short else ["x", *rows[at]]
    line = 1 + written([names, *rows[:at]]).count(b"\n")
    with pytest.raises(
        DataError, match=rf"^data:{line}: has {len(rows[at])} values, but the header names {len(names)} columns"
    ):
        tables.read(written([names, *rows]), "data")


def test_parquet_keeps_numbers_and_writes_the_rest_as_csv_would(tmp_path):
    frame = pl.DataFrame(
        {
            "whole": [1, None, 3],
            "float": [1.5, float("nan"), None],
            "text": [" a", "NA", None],
            "truth": [True, False, None],
            "category": pl.Series(["u", "v", None], dtype=pl.Categorical),
            "date": pl.Series(["2024-01-31", "2024-02-01", None]).str.to_date(),
            "duration": pl.Series([1500, 0, None], dtype=pl.Duration("ms")),
            "nothing": pl.Series([None, None, None], dtype=pl.Null),
            "list": [[1], [2], [3]],
        }
    )
    frame.write_parquet(tmp_path / "a.parquet")
    read = tables.read(tmp_path / "a.parquet")
    assert read.to_dict(as_series=False) == {
        "whole": [1, None, 3],
        "float": [1.5, None, None],
        "text": ["a", None, None],
        "truth": ["true", "false", None],
        "category": ["u", "v", None],
        "date": ["2024-01-31", "2024-02-01", None],
        "duration": [1.5, 0, None],
        "nothing": [None, None, None],
        "list": [[1], [2], [3]],
    }
    assert tables.locate_row(tmp_path / "a.parquet", 4) == f"{tmp_path / 'a.parquet'}, row 5"
    frame.select("text", "truth", "date").write_csv(tmp_path / "a.csv")
    assert tables.read(tmp_path / "a.csv").equals(read.select("text", "truth", "date"))


def test_a_damaged_parquet_takes_nothing_down(monkeypatch):
    """polars aborts the process for some files with a flipped bit (seen in 2.1), so it reads Parquet in a separate
    process."""
    packed = io.BytesIO()
    pl.DataFrame({"a": [1, None, 3], "b": ["x", None, "z"], "c": [True, False, None]}).write_parquet(packed)
    assert len(tables.read(packed.getvalue(), "a.parquet")) == 3
    with pytest.raises(DataError, match=r"^a\.parquet: can't be read as Parquet, the file is damaged"):
        tables.read(packed.getvalue()[:-20], "a.parquet")
    monkeypatch.setattr(tables, "_PARQUET_SCRIPT", "import os; os.kill(os.getpid(), 9)")
    with pytest.raises(DataError, match="the file is damaged"):
        tables.read(packed.getvalue(), "a.parquet")


def test_what_is_too_large_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "a.csv"
    path.write_bytes(b"a,b\n" + b"1,2\n" * 300)
    monkeypatch.setattr(tables, "MAX_BYTES", 1000)
    with pytest.raises(DataError, match=r"is 0\.0 GiB large, the limit for a table is 0 GiB"):
        tables.read(path)
    with pytest.raises(DataError, match=r"when decompressed, is 0\.0 GiB"):
        tables.read(gzip.compress(path.read_bytes()))


def test_equal_values_that_parquet_compresses_are_counted_first(tmp_path):
    """A column of 2^30 zeros takes a few kB."""
    path = tmp_path / "bomb.parquet"
    pl.select(pl.repeat(0, 2**20, dtype=pl.Int8).alias("a")).write_parquet(path)
    assert path.stat().st_size < 5000
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "_PARQUET_SCRIPT", tables._PARQUET_SCRIPT.replace(str(tables.MAX_VALUES), "1000000"))
        with pytest.raises(DataError, match="contains more than 536,870,912 values"):
            tables.read(path)
    assert len(tables.read(path)) == 2**20, "the control"


# ---------------------------------------------------------------- absurd numbers of columns


def wide(columns, separator=","):
    names = separator.join(f"c{n}" for n in range(columns))
    return f"{names}\n{separator.join('1' * columns)}\n".encode()


def varint(number):
    return bytes([number & 0x7F | 0x80, number >> 7 & 0x7F | 0x80, number >> 14])


WIDE = {
    "data.csv": wide(10**6),
    "data.tsv": wide(10**6, "\t"),
    "semicolons.csv": wide(10**6, ";"),
    "bars.csv": wide(10**6, "|"),
    "crlf.csv": wide(10**6).replace(b"\n", b"\r\n"),
    "data.csv.gz": gzip.compress(wide(10**6)),
    "one_line.csv": wide(10**6).splitlines()[0],
    "quoted.csv": b'"a\nb\n",' + wide(10**6 - 1),
    "data.parquet": b"PAR1"
    + (b"\x15\x02\x19\xfc" + varint(10**6 + 1))
    + bytes(999_993)
    + struct.pack("<I", 10**6)
    + b"PAR1",
}


@pytest.mark.parametrize("name", WIDE)
def test_a_million_columns_are_refused_at_once(name, tmp_path):
    (tmp_path / name).write_bytes(WIDE[name])
    begun = time.process_time()
    with pytest.raises(DataError) as caught:
        tables.read(tmp_path / name)
    assert time.process_time() - begun < 0.5
    place = f"{tmp_path / name}" + ":1" * ("parquet" not in name)
    cure = "keep fewer in the file, or save numbers as an array and use the dataset arrays"
    assert str(caught.value) == f"{place}: has 1,000,000 columns, more than 20,000; {cure}"


@pytest.mark.parametrize("columns", [1, 13, 14, 15, 16, 200, 20_000, 20_001])
def test_the_columns_of_a_parquet_file_are_counted_without_reading_it(columns, tmp_path):
    frame = pl.DataFrame([pl.Series(f"c{n}", [1]) for n in range(columns)])
    frame.write_parquet(tmp_path / "a.parquet")
    counted = tables._count_parquet_columns((tmp_path / "a.parquet").read_bytes())
    assert counted == (columns if columns >= 14 else 0)
    if columns > 20_000:
        with pytest.raises(DataError, match="has 20,001 columns, more than 20,000"):
            tables.read(tmp_path / "a.parquet")


@pytest.mark.parametrize("columns", [1, 2, 20_000])
def test_fewer_columns_are_read(columns):
    assert tables.read(wide(columns)).width == columns
    assert tables._count_csv_columns(wide(columns)) == columns


def test_a_quote_that_never_closes_is_no_wide_table():
    with pytest.raises(DataError, match="quote"):
        tables.read(b'a,"b\n' + b"1,2\n" * 30_000)
