"""Table files to frames: CSV with any separator, and Parquet. polars reads them; what is wrong with them is said with
its line.

    frame = read("plant.csv")  # columns of text, missing values null; of Parquet numbers, too

The standard library's csv module goes over a file a second time, but only where it looks ragged or its lines have to be
counted: polars fills short rows up with nulls, and names no line for long ones.
"""

import codecs
import csv
import gzip
import io
import stat
import subprocess
import sys
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from nnx.errors import DataError

if TYPE_CHECKING:
    import polars as pl

MAX_BYTES = 4 * 2**30  # of a file, unpacked: all of it is read into memory
MAX_VALUES = 2**29  # of Parquet, which packs a column of equal values into nothing: 4 GiB as float64
MISSING = ("", "NA", "N/A", "nan", "NaN", "null", "None", "?", "-")
SEPARATORS = (",", ";", "\t", "|")
_DECIMAL_COMMA = r"^([+-]?\d+),(\d+)$"
_MARKS = {  # how the files begin that are taken for tables
    b"version https://git-lfs": "is a Git LFS pointer, not the file itself; run `git lfs pull`",
    b"PK\x03\x04": "is a zip, as spreadsheets are; save it as CSV",
    b"\xff\xfe": "is UTF-16 text; save it as UTF-8",
    b"\xfe\xff": "is UTF-16 text; save it as UTF-8",
}
# In a process of its own, as polars 2.1 takes the whole process down (SIGABRT) for some files with a single flipped
# bit.
_PARQUET = f"""
import io, sys, polars
data = sys.stdin.buffer.read()
lazy = polars.scan_parquet(io.BytesIO(data))
if lazy.select(polars.len()).collect().item() * len(lazy.collect_schema()) > {MAX_VALUES}: sys.exit(3)
polars.read_parquet(io.BytesIO(data)).write_ipc_stream(sys.stdout.buffer)
"""


def read(file: str | Path | bytes, name: str = "") -> "pl.DataFrame":
    """A table file, or the bytes of one called `name`, as a frame with a row for each of its rows, in their order.

    Of text, which may be gzipped, all columns are text without space around it. Separators are found out; .tsv has
    tabs. After semicolons, 1,5 is 1.5. Of Parquet, numbers stay numbers, and what has a CSV form (truth values, times,
    categories) is text. MISSING values are null.

    Raises DataError, naming the file and the line, for what is no table: empty, no text, no rows, ragged, two columns
    of one name.
    """
    name = name or (str(file) if not isinstance(file, bytes) else "table")
    data = file if isinstance(file, bytes) else _read(Path(file), name)
    frame = _parquet(data, name) if data.startswith(b"PAR1") else _text(_plain(data, name), name)
    if not frame.height:
        raise DataError(f"{name}: has a header, but no rows; give it some")
    return frame


def place(name: str | Path, row: int) -> str:
    """Where row `row` of the table `name` stands, counted from 0: "data.csv:57", or "data.parquet, row 56" where there
    are no lines."""
    try:
        data = _read(Path(name), str(name))
        if not data.startswith(b"PAR1"):
            text = _plain(data, str(name))
            lines = (line for line, fields in _records(text, _separator(text, str(name))) if fields)
            return f"{name}:{next(islice(lines, row + 1, None))}"  # the header is the first
    except (DataError, csv.Error, UnicodeDecodeError, StopIteration):  # it came from elsewhere, as standard input does
        pass
    return f"{name}, row {row + 1}"


def places(file: str | Path | bytes, name: str, rows: int) -> list[str]:
    """Where each of the `rows` rows of a table stands that `read` has read from `file`, as `place` says it."""
    try:
        data = file if isinstance(file, bytes) else _read(Path(file), name)
        if not data.startswith(b"PAR1"):
            text = _plain(data, name)
            lines = [f"{name}:{line}" for line, fields in _records(text, _separator(text, name)) if fields]
            if len(lines) == rows + 1:  # the header is the first
                return lines[1:]
    except (DataError, csv.Error, UnicodeDecodeError):  # what polars reads otherwise than the csv module does
        pass
    return [f"{name}, row {row}" for row in range(1, rows + 1)]


def number(text: str) -> float | None:
    """What `text` is as a number, if it is one."""
    try:
        return float(text)
    except ValueError:
        return None


def _read(path: Path, name: str) -> bytes:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise DataError(
                f"{name}: is {'a folder' if stat.S_ISDIR(status.st_mode) else 'no regular file'}; name a .csv, .tsv or .parquet"
            )
        if status.st_size > MAX_BYTES:
            raise DataError(f"{name}: is {_too_large(status.st_size)}")
        return path.read_bytes()
    except FileNotFoundError:
        raise DataError(
            f"{name}: no such file (looked for {path.absolute()}); correct the path, or start nnx in the right folder"
        ) from None
    except (OSError, ValueError) as error:
        raise DataError(f"{name}: can't be read ({getattr(error, 'strerror', None) or error})") from None


def _too_large(size: int) -> str:
    return f"{size / 2**30:.1f} GiB, more than the {MAX_BYTES // 2**30} that a table may have; take a sample of its rows, or fewer columns"


def _parquet(data: bytes, name: str) -> "pl.DataFrame":
    import polars as pl

    done = subprocess.run(
        [sys.executable, "-P", "-c", _PARQUET], input=data, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    if done.returncode == 3:
        raise DataError(f"{name}: holds more than {MAX_VALUES:,} values; take a sample of its rows, or fewer columns")
    if done.returncode:
        raise DataError(f"{name}: can't be read as Parquet; it is damaged, get it again")
    frame = pl.read_ipc_stream(io.BytesIO(done.stdout))
    _check_names(frame.columns, name)
    texts = [
        column
        for column, kind in frame.schema.items()
        if not kind.is_numeric() and not kind.is_nested() and kind != pl.Binary
    ]
    floats = [column for column, kind in frame.schema.items() if kind.is_float()]
    return _with_nulls(frame.with_columns(pl.col(texts).cast(pl.String), pl.col(floats).fill_nan(None)), texts)


def _with_nulls(frame: "pl.DataFrame", texts: list[str]) -> "pl.DataFrame":
    """`frame` with its columns `texts` stripped of space, and null where they hold one of MISSING."""
    import polars as pl

    return frame.with_columns(pl.col(texts).str.strip_chars().replace(dict.fromkeys(MISSING)))


# ---------------------------------------------------------------- text


def _plain(data: bytes, name: str) -> bytes:
    """UTF-8 text out of a file's bytes: unpacked, without mark, lines ended by \\n. Raises DataError for what is no
    text."""
    if data.startswith(b"\x1f\x8b"):
        try:
            data = gzip.GzipFile(fileobj=io.BytesIO(data)).read(MAX_BYTES + 1)
        except (OSError, EOFError, zlib.error):
            raise DataError(f"{name}: is a damaged gzip; get it again") from None
        if len(data) > MAX_BYTES:
            raise DataError(f"{name}: is, unpacked, {_too_large(len(data))}")
    data = data.removeprefix(codecs.BOM_UTF8)
    for mark, what in _MARKS.items():
        if data.startswith(mark):
            raise DataError(f"{name}: {what}")
    if b"\0" in data[:65536]:
        raise DataError(f"{name}: is not text; name a .csv, .tsv or .parquet")
    if not data.strip():
        raise DataError(f"{name}: is empty; give it a header and rows")
    if b"\r" in data:
        data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    return data.rstrip(b"\r\n") + b"\n"  # polars takes a separator at the very end for nothing


def _text(data: bytes, name: str) -> "pl.DataFrame":
    import polars as pl

    if data[:1] in b"\r\n":
        raise DataError(f"{name}:1: is blank; the first line has to name the columns")
    separator = _separator(data, name)
    try:
        # with a mark, or polars unpacks what begins as zlib does, with x^2 for instance, and however large it gets
        frame = pl.read_csv(codecs.BOM_UTF8 + data, has_header=False, separator=separator, infer_schema=False)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError):
        _check_rows(data, name, separator)
        raise DataError(
            f"{name}: can't be read as CSV; put text that holds quotes into quotes, and double those inside"
        ) from None
    uneven = (
        frame[:, -1].has_nulls() if b'"' in data else data.count(separator.encode()) != frame.height * (frame.width - 1)
    )
    if uneven:
        filled = _check_rows(data, name, separator)
        if len(filled) != frame.height:
            raise DataError(f"{name}: can't be read as CSV; a quote is opened inside of a value, or never closed")
        frame = frame.filter(pl.Series(filled))
    names = [(column or "").strip() for column in frame.row(0)]
    _check_names(names, f"{name}:1")
    frame = frame.slice(1)
    frame.columns = names
    if separator == ";":
        frame = frame.with_columns(pl.all().str.strip_chars().str.replace(_DECIMAL_COMMA, "$1.$2"))
    return _with_nulls(frame, names)


def _check_names(names: list[str], where: str) -> None:
    if twice := [column for column, count in Counter(names).items() if count > 1]:
        what = f"two columns are called {twice[0]!r}" if twice[0] else "two columns have no name"
        cure = "give each a name of its own" if None in map(number, names) else "the first line has to name the columns"
        raise DataError(f"{where}: {what}; {cure}")


def _separator(data: bytes, name: str) -> str:
    """What parts the values: that by which the first lines have the same number of values, and the most of them."""
    if Path(name.removesuffix(".gz")).suffix.lower() in (".tsv", ".tab"):
        return "\t"
    end = data.find(b"\n", 65536)
    head = data[:end] if end > 0 else data
    best, found = (False, 1), ","
    for separator in SEPARATORS:
        counts: list[int] = []
        with suppress(csv.Error, UnicodeDecodeError):
            counts.extend(len(fields) for _, fields in islice(_records(head, separator), 20) if fields)
        rank = (len(set(counts)) == 1, counts[0] if counts else 0)
        if rank[1] > 1 and rank > best:
            best, found = rank, separator
    return found


def _records(data: bytes, separator: str) -> Iterator[tuple[int, list[str]]]:
    """Each record of CSV text, with the line that it begins in; a blank line has no fields, unless the table has a
    single column.

    Raises csv.Error(what, line), UnicodeDecodeError.
    """
    reader = csv.reader(io.TextIOWrapper(io.BytesIO(data), "utf-8", newline=""), delimiter=separator, strict=True)
    line, width = 1, 0
    try:
        for fields in reader:
            width = width or len(fields)
            blank = width > 1 and len(fields) < 2 and not "".join(fields).strip()
            yield line, [] if blank else fields or [""]
            line = reader.line_num + 1
    except csv.Error as error:
        raise csv.Error(str(error), line) from None


def _check_rows(data: bytes, name: str, separator: str) -> list[bool]:
    """Whether each record is more than a blank line.

    Raises DataError for the first that has not as many values as the header, or is no UTF-8, or whose quotes don't
    match.
    """
    filled, width = [], 0
    try:
        for line, fields in _records(data, separator):
            width = width or len(fields)
            filled.append(bool(fields))
            if fields and len(fields) != width:
                cure = (
                    "add what is missing"
                    if len(fields) < width
                    else f"put values that hold a {separator!r} into quotes"
                )
                values = f"{len(fields)} value{'s' * (len(fields) != 1)}"
                raise DataError(f"{name}:{line}: has {values}, but the header names {width} columns; {cure}")
    except UnicodeDecodeError:
        line = data.count(b"\n", 0, _not_utf8(data)) + 1
        raise DataError(f"{name}:{line}: is not UTF-8 text; save the file as UTF-8") from None
    except csv.Error as error:
        what, line = error.args
        raise DataError(
            f"{name}:{line}: its quotes don't match ({what}); put text that holds quotes into quotes, and double those"
        ) from None
    return filled


def _not_utf8(data: bytes) -> int:
    """Where `data` stops being UTF-8."""
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start
    return len(data)
