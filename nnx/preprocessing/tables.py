"""Reads table files into frames: CSV with any separator, and Parquet. Errors name the line.

    frame = read("plant.csv")  # columns of text, missing values null; Parquet has columns of numbers, too

polars parses the file. The standard library's csv module parses it a second time, but only if rows look ragged or lines
must be counted: polars fills short rows with nulls, and does not name the line of a long one.
"""

import codecs
import csv
import gzip
import io
import re
import stat
import subprocess
import sys
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from nnx.errors import DataError

if TYPE_CHECKING:
    import polars as pl

MAX_BYTES = 4 * 2**30  # of a decompressed file: all of it is read into memory
MAX_VALUES = 2**29  # of a Parquet file, which stores a column of equal values in almost no space: 4 GiB as float64
MAX_COLUMNS = 20_000  # of a file: twice what a network takes; polars reads 100,000 columns of 20 rows in 18 s
MISSING = ("", "NA", "N/A", "nan", "NaN", "null", "None", "?", "-")
SEPARATORS = (",", ";", "\t", "|")
WHOLE = re.compile(r"^(-?\d+)\.0+$")
_DECIMAL_COMMA = r"^([+-]?\d+),(\d+)$"
_TWO_SEPARATORS = r"^[+-]?\d{1,3}([.,]\d{3})+[.,]\d+$"  # such as 1.234,5: its column is parsed as a whole
_UNSUPPORTED = {  # the first bytes of other files that people pass as tables
    b"version https://git-lfs": "is a Git LFS pointer, not the file itself; run `git lfs pull`",
    b"PK\x03\x04": "is a zip file, such as a spreadsheet; save it as CSV",
    b"\xff\xfe": "is UTF-16 text; save it as UTF-8",
    b"\xfe\xff": "is UTF-16 text; save it as UTF-8",
}
# Runs in a separate process: for some files with a single flipped bit, polars 2.1 aborts the whole process (SIGABRT).
_PARQUET_SCRIPT = f"""
import io, sys, polars
data = sys.stdin.buffer.read()
lazy = polars.scan_parquet(io.BytesIO(data))
if lazy.select(polars.len()).collect().item() * len(lazy.collect_schema()) > {MAX_VALUES}: sys.exit(3)
polars.read_parquet(io.BytesIO(data)).write_ipc_stream(sys.stdout.buffer)
"""


def read(file: str | Path | bytes, name: str = "", target: str = "", literal: Sequence[str] = ()) -> "pl.DataFrame":
    """A table file, or the bytes of one called `name` -> a frame with the same rows in the same order.

    From text, which may be gzipped, every column is text without surrounding spaces. The separator is detected; .tsv
    files have tabs. In files with semicolons, 1,5 means 1.5, except in the columns `literal`. From Parquet, numbers
    stay numbers, durations become seconds; booleans, times and categories become text as in CSV. MISSING values become
    null; in the column `target`, where a class may be called None, only empty ones do.

    Raises DataError with the file and the line for a file that is empty, not text, ragged or without rows, or that has
    two columns of the same name.
    """
    name = name or (str(file) if not isinstance(file, bytes) else "table")
    data = file if isinstance(file, bytes) else _read_bytes(Path(file), name)
    is_parquet = data.startswith(b"PAR1")
    frame = _read_parquet(data, name) if is_parquet else _read_csv(_unpack_text(data, name), name, literal)
    if not frame.height:
        raise DataError(f"{name}: has a header, but no rows; add some")
    words = replace_missing(frame.drop(target, strict=False), MISSING)
    return frame.with_columns(words.get_columns())


def replace_missing(frame: "pl.DataFrame", words: Sequence[str]) -> "pl.DataFrame":
    """`frame` with null for each value that is one of `words`: in columns of numbers, for each equal number. -999 and
    -999.0 are one word."""
    import polars as pl

    numbers = [number for word in words if (number := parse_number(word)) is not None]
    texts = [column for column, kind in frame.schema.items() if kind == pl.String]
    numeric = [column for column, kind in frame.schema.items() if kind.is_numeric()] if numbers else []
    frame = frame.with_columns(pl.col(texts).replace(dict.fromkeys(words)))
    whole = {WHOLE.sub(r"\1", word) for word in words} if numbers else set()
    return frame.with_columns(
        *(pl.when(~pl.col(column).cast(pl.Float64).is_in(numbers)).then(pl.col(column)) for column in numeric),
        *(
            pl.when(~pl.col(column).str.replace(WHOLE.pattern, "$1").is_in(whole)).then(pl.col(column))
            for column in (texts if any(map(WHOLE.fullmatch, (f"{word}.0" for word in whole))) else [])
        ),
    )


def locate_row(name: str | Path, row: int) -> str:
    """The location of row `row`, counted from 0, of the table `name`: "data.csv:57", or "data.parquet, row 56" for a
    file without lines."""
    try:
        data = _read_bytes(Path(name), str(name))
        if not data.startswith(b"PAR1"):
            text = _unpack_text(data, str(name))
            records = _read_records(text, _detect_separator(text, str(name)))
            lines = (line for line, fields in records if fields)
            return f"{name}:{next(islice(lines, row + 1, None))}"  # the first is the header
    except (DataError, csv.Error, UnicodeDecodeError, StopIteration):  # not a file, as for standard input
        pass
    return f"{name}, row {row + 1}"


def locate_rows(file: str | Path | bytes, name: str, rows: int) -> list[str]:
    """The location of each of the `rows` rows that `read` has read from `file`, in the form of `locate_row`."""
    try:
        data = file if isinstance(file, bytes) else _read_bytes(Path(file), name)
        if not data.startswith(b"PAR1"):
            text = _unpack_text(data, name)
            records = _read_records(text, _detect_separator(text, name))
            lines = [f"{name}:{line}" for line, fields in records if fields]
            if len(lines) == rows + 1:  # the first is the header
                return lines[1:]
    except (DataError, csv.Error, UnicodeDecodeError):  # polars reads some files that the csv module does not
        pass
    return [f"{name}, row {row}" for row in range(1, rows + 1)]


def parse_number(text: str) -> float | None:
    """`text` as a number, or None if it is not one."""
    try:
        return float(text)
    except ValueError:
        return None


def _read_bytes(path: Path, name: str) -> bytes:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
            raise DataError(f"{name}: is {kind}; give a .csv, .tsv or .parquet file")
        if status.st_size > MAX_BYTES:
            raise DataError(f"{name}: {_too_large_message(status.st_size)}")
        return path.read_bytes()
    except FileNotFoundError:
        problem = f"no such file ({path.absolute()})"
        raise DataError(f"{name}: {problem}; correct the path, or start nnx in the right folder") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{name}: can't be read ({getattr(error, 'strerror', None) or error})") from None


def _too_large_message(size: int, prefix: str = "is") -> str:
    limit = f"the limit for a table is {MAX_BYTES // 2**30} GiB"
    return f"{prefix} {size / 2**30:.1f} GiB large, {limit}; take a sample of its rows, or fewer columns"


def _check_width(columns: int, name: str) -> None:
    """Raises DataError for a table of more columns than a network can use."""
    if columns > MAX_COLUMNS:
        cure = "keep fewer in the file, or save numbers as an array and use the dataset arrays"
        raise DataError(f"{name}: has {columns:,} columns, more than {MAX_COLUMNS:,}; {cure}")


def _read_parquet(data: bytes, name: str) -> "pl.DataFrame":
    import polars as pl

    _check_width(_count_parquet_columns(data), name)
    process = subprocess.run(
        [sys.executable, "-P", "-c", _PARQUET_SCRIPT], input=data, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    if process.returncode == 3:
        problem = f"contains more than {MAX_VALUES:,} values"
        raise DataError(f"{name}: {problem}; take a sample of its rows, or fewer columns")
    if process.returncode:
        raise DataError(f"{name}: can't be read as Parquet, the file is damaged; get it again")
    frame = pl.read_ipc_stream(io.BytesIO(process.stdout))
    _check_names(frame.columns, name)
    durations = [column for column, kind in frame.schema.items() if isinstance(kind, pl.Duration)]
    frame = frame.with_columns(pl.col(durations).dt.total_nanoseconds() / 1e9)
    texts = [
        column
        for column, kind in frame.schema.items()
        if not kind.is_numeric() and not kind.is_nested() and kind != pl.Binary
    ]
    floats = [column for column, kind in frame.schema.items() if kind.is_float()]
    return _strip(frame.with_columns(pl.col(texts).cast(pl.String), pl.col(floats).fill_nan(None)), texts)


def _count_parquet_columns(data: bytes) -> int:
    """The number of columns that the end of a Parquet file states, 0 if it is less than 14 or can't be read.

    FileMetaData begins with the version and the list of columns, which has the table itself as its first element, in
    Thrift's compact protocol (apache/parquet-format, apache/thrift).
    """
    length = int.from_bytes(data[-8:-4], "little")
    head = data[-8 - length :][:20] if length + 8 <= len(data) else b""
    match = re.match(rb"\x15[\x80-\xff]*[\x00-\x7f]\x19\xfc([\x80-\xff]*[\x00-\x7f])", head)
    return sum((byte & 0x7F) << 7 * place for place, byte in enumerate(match[1])) - 1 if match else 0


def _strip(frame: "pl.DataFrame", texts: list[str]) -> "pl.DataFrame":
    """`frame` with spaces stripped from its columns `texts`, and empty values in them replaced by null."""
    import polars as pl

    return frame.with_columns(pl.col(texts).str.strip_chars().replace("", None))


# ---------------------------------------------------------------- text


def _unpack_text(data: bytes, name: str) -> bytes:
    """A file's bytes -> UTF-8 text: decompressed, without byte order mark, with \\n line ends. Raises DataError if it
    is not text."""
    if data.startswith(b"\x1f\x8b"):
        try:
            data = gzip.GzipFile(fileobj=io.BytesIO(data)).read(MAX_BYTES + 1)
        except (OSError, EOFError, zlib.error):
            raise DataError(f"{name}: is a damaged gzip file; get it again") from None
        if len(data) > MAX_BYTES:
            raise DataError(f"{name}: {_too_large_message(len(data), 'when decompressed, is')}")
    data = data.removeprefix(codecs.BOM_UTF8)
    for start, problem in _UNSUPPORTED.items():
        if data.startswith(start):
            raise DataError(f"{name}: {problem}")
    if b"\0" in data[:65536]:
        raise DataError(f"{name}: is not text; give a .csv, .tsv or .parquet file")
    if not data.strip():
        raise DataError(f"{name}: is empty; add a header and rows")
    if b"\r" in data:
        data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    return data.rstrip(b"\r\n") + b"\n"  # polars ignores a separator at the very end of the file


def _read_csv(data: bytes, name: str, literal: Sequence[str] = ()) -> "pl.DataFrame":
    import polars as pl

    if data[:1] in b"\r\n":
        raise DataError(f"{name}:1: is blank; the first line must name the columns")
    _check_width(_count_csv_columns(data), f"{name}:1")
    separator = _detect_separator(data, name)
    try:
        # The byte order mark stops polars from decompressing text that begins like zlib data, such as x^2, to any size.
        frame = pl.read_csv(codecs.BOM_UTF8 + data, has_header=False, separator=separator, infer_schema=False)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError):
        _check_rows(data, name, separator)
        cure = "quote the values that contain quotes, and double the quotes in them"
        raise DataError(f"{name}: can't be read as CSV; {cure}") from None
    if b'"' in data:
        ragged = frame[:, -1].has_nulls()
    else:
        ragged = data.count(separator.encode()) != frame.height * (frame.width - 1)
    if ragged:
        filled = _check_rows(data, name, separator)
        if len(filled) != frame.height:
            raise DataError(f"{name}: can't be read as CSV; a quote opens inside a value, or never closes")
        frame = frame.filter(pl.Series(filled))
    names = [(column or "").strip() for column in frame.row(0)]
    _check_names(names, f"{name}:1")
    frame = frame.slice(1)
    frame.columns = names
    if separator == ";":
        texts = [column.str.strip_chars() for column in frame.get_columns() if column.name not in literal]
        simple = [column for column in texts if not column.str.contains(_TWO_SEPARATORS).any()]
        frame = frame.with_columns(column.str.replace(_DECIMAL_COMMA, "$1.$2") for column in simple)
    return _strip(frame, names)


def _count_csv_columns(data: bytes) -> int:
    """At most how many columns the first record names, whatever separates them. Does not parse it."""
    first_line = end = data.find(b"\n") + 1
    quotes = data.count(b'"', 0, end)
    while end and quotes % 2:  # the line ends inside quotes
        start, end = end, data.find(b"\n", end) + 1
        quotes += data.count(b'"', start, end)
    return 1 + max(data.count(separator.encode(), 0, end or first_line) for separator in SEPARATORS)


def _check_names(names: list[str], where: str) -> None:
    if repeated := [column for column, count in Counter(names).items() if count > 1]:
        problem = f"two columns are called {repeated[0]!r}" if repeated[0] else "two columns have no name"
        all_numbers = None not in map(parse_number, names)
        cure = "the first line must name the columns" if all_numbers else "give each column its own name"
        raise DataError(f"{where}: {problem}; {cure}")


def _detect_separator(data: bytes, name: str) -> str:
    """The separator that splits the first lines into equal numbers of values, and into the most of them."""
    if Path(name.removesuffix(".gz")).suffix.lower() in (".tsv", ".tab"):
        return "\t"
    end = data.find(b"\n", 65536)
    head = data[:end] if end > 0 else data
    best_rank = (False, 1)
    best = ","
    for separator in SEPARATORS:
        counts: list[int] = []
        with suppress(csv.Error, UnicodeDecodeError):
            counts.extend(len(fields) for _, fields in islice(_read_records(head, separator), 20) if fields)
        rank = (len(set(counts)) == 1, counts[0] if counts else 0)
        if rank[1] > 1 and rank > best_rank:
            best_rank = rank
            best = separator
    return best


def _read_records(data: bytes, separator: str) -> Iterator[tuple[int, list[str]]]:
    """The first line and the fields of each record of CSV text. A blank line has no fields, unless the table has only
    one column.

    Raises csv.Error(message, line), UnicodeDecodeError.
    """
    reader = csv.reader(io.TextIOWrapper(io.BytesIO(data), "utf-8", newline=""), delimiter=separator, strict=True)
    line = 1
    width = 0
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

    Raises DataError for the first record whose number of values differs from the header's, that is not UTF-8, or whose
    quotes do not match.
    """
    filled = []
    width = 0
    try:
        for line, fields in _read_records(data, separator):
            width = width or len(fields)
            filled.append(bool(fields))
            if fields and len(fields) != width:
                short = len(fields) < width
                cure = "add the missing ones" if short else f"quote the values that contain {separator!r}"
                values = f"{len(fields)} value{'s' * (len(fields) != 1)}"
                raise DataError(f"{name}:{line}: has {values}, but the header names {width} columns; {cure}")
    except UnicodeDecodeError:
        line = data.count(b"\n", 0, _first_invalid_byte(data)) + 1
        raise DataError(f"{name}:{line}: is not UTF-8 text; save the file as UTF-8") from None
    except csv.Error as error:
        message, line = error.args
        cure = "quote the values that contain quotes, and double the quotes in them"
        raise DataError(f"{name}:{line}: the quotes don't match ({message}); {cure}") from None
    return filled


def _first_invalid_byte(data: bytes) -> int:
    """The position of the first byte of `data` that is not UTF-8."""
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start
    return len(data)
