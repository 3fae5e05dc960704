"""Numbers that people write in other ways than 1234.5: with a decimal comma, thousands separators or a unit.

    notation = detect(pl.Series(["1.234,5 €", "12,0 €"]))  # Notation(decimal=",", grouped=True, unit="€")
    parse(pl.Series(["7,25 €"]), notation)  # 7.25

A column of text is parsed only where its values show one notation: "1,234" alone may be 1.234 or 1234.
"""

import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import polars as pl

MOSTLY = 0.9  # from this share of numbers on, the other values of a column count as mistakes
MAX_UNIT = 20  # characters
MAX_UNITS = 5  # of a column that is worth a warning: more are names, such as 5a, 5b, 7c
MIXED = "are mixed with other text"
UNKNOWN = "are not read in this notation"
MIN_DISTINCT = 10  # values of a column with several units that is worth a warning: fewer are categories, such as 1st
_MINUS = "−–－‐‑"  # minus signs, en dashes, hyphens that are not that of ASCII
_SIGN = rf"([+\-{_MINUS}]?)"
_CURRENCY = r"(?:[A-Z]{0,3}\p{Sc}|(?:USD|EUR|GBP|CHF|JPY|CNY|INR|CAD|AUD|SEK|NOK|DKK|PLN|CZK|BRL|Rs\.?))"
_BODY = r"((?:[0-9][0-9.,'’_\s]*)?[0-9][.,]?|[.,][0-9]+)"
_UNIT = r"[\p{L}%‰°\p{Sc}][\p{L}\p{Sc}%‰°²³·/^* .\-0-9]*"
_NO_CENTS = rf"([0-9])[.,][\-—{_MINUS}]{{1,2}}(\s|$)"  # 5,- or 5.– is 5.00
_TRAILING_MINUS = rf"[0-9][\-{_MINUS}]$"  # 12.50- is -12.5 in accounts
_PARTS = rf"^{_SIGN}\s*({_CURRENCY})?\s*{_SIGN}{_BODY}([eE][+\-{_MINUS}]?[0-9]+)?(?:([\-{_MINUS}])|\s*({_UNIT}))?$"
_POWER = rf"\s*[×x*]\s*10(?:\^|\*\*)([+\-{_MINUS}]?[0-9]+)$"
_FORTRAN = r"([0-9.,])[dD]([+\-][0-9]+)$"  # 1.5D+03 is 1500
_FOREIGN = r"[\p{Nd}--[0-9]]"
# Numbers in some notation: digits without letters that are no time of day, or with a prefix such as 0x
_DIGITS = r"^[^\p{L}]*[0-9][^\p{L}]*$|^0[xX][0-9a-fA-F]+$|^0[bB][01]+$"
_TIME = r"^[0-9]{1,2}:[0-9]{2}(:[0-9]{2})?$"
_AMBIGUOUS = r"^[1-9][0-9]{0,2}[.,][0-9]{3}$"


@dataclass(frozen=True)
class Notation:
    """How a column writes its numbers."""

    decimal: str = "."  # or ","
    grouped: bool = False  # whether the other one of the two separates thousands
    unit: str = ""  # a currency or unit that the values carry

    def __str__(self) -> str:
        parts = ["decimal comma"] if self.decimal == "," else []
        parts += [f"{'point' if self.decimal == ',' else 'comma'} between thousands"] if self.grouped else []
        return (
            ", ".join([*parts, *([f"unit {self.unit}"] if self.unit else [])])
            or "separated thousands, other minus signs or digits"
        )

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Notation":
        """Inverse of `dataclasses.asdict`. Raises ValueError or TypeError if `data` is not valid."""
        notation = cls(**data)
        valid = notation.decimal in (".", ",") and type(notation.grouped) is bool and type(notation.unit) is str
        if not valid or len(notation.unit) > MAX_UNIT or data.keys() != {"decimal", "grouped", "unit"}:
            raise ValueError("not a notation")
        return notation


@dataclass(frozen=True)
class Doubt:
    """Two values of a column of numbers that can't be parsed safely, and why."""

    examples: tuple[str, str]
    problem: str


def parse(texts: "pl.Series", notation: Notation) -> "pl.Series":
    """The numbers in a column of text, float64. Null for missing values and for text that does not follow `notation`.

    Accepts values without the unit, and plain numbers that can't be mistaken for grouped ones.
    """
    import polars as pl

    parts = _split(texts)
    grammar = _grammar(notation.decimal, grouped=notation.grouped)
    thousands = r"[\s'’_,]" if notation.decimal == "." else r"[\s'’_.]"
    body = pl.col("body")
    plain = ~body.str.contains(_AMBIGUOUS) & body.str.contains(r"^[0-9]*\.?[0-9]*$")
    number = (
        pl.when(body.str.contains(grammar))
        .then(body.str.replace_all(thousands, "").str.replace(",", ".", literal=True))
        .when(plain)
        .then(body)
    )
    return parts.select(
        pl.when((pl.col("unit") == "") | (pl.col("unit") == notation.unit)).then(
            pl.concat_str(pl.col("sign"), number, pl.col("exponent")).cast(pl.Float64, strict=False)
        )
    ).to_series()


def detect(texts: "pl.Series") -> Notation | Doubt | None:
    """The notation in which nearly all values of a column of text are numbers, with the doubt if there are several or
    only most values are numbers; None if they are not."""
    import polars as pl

    counts = texts.drop_nulls().value_counts(name="count").sort("count", texts.name, descending=[True, False])
    frame = pl.concat([_split(counts[texts.name]), counts.select("count")], how="horizontal")
    total = _count(frame)
    if len(frame) <= MIN_DISTINCT:  # 2- is a mark, too
        has_sign = pl.col("text").str.contains(_TRAILING_MINUS)
        frame = frame.with_columns(pl.when(~has_sign).then(pl.col("body")).alias("body"))
    unknown = _find_unknown(frame, total)
    others = frame.filter(pl.col("body").is_null())
    frame = frame.filter(pl.col("body").is_not_null())
    if not total or _count(frame) < MOSTLY * total:
        is_mixed = _count(frame) > total / 2 and len(frame) > MIN_DISTINCT
        return Doubt((frame["text"][0], others["text"][0]), MIXED) if is_mixed else unknown
    units = frame.group_by("unit", maintain_order=True).agg(pl.col("text").first(), pl.col("count").sum())
    unit = units.sort("count", descending=True, maintain_order=True)["unit"][0]
    is_zero = pl.col("body").str.contains(r"^[0.,]+$")
    one_unit = frame.filter((pl.col("unit") == unit) | ((pl.col("unit") == "") & is_zero))
    if len(unit) > MAX_UNIT or _count(one_unit) < MOSTLY * total:
        is_measured = len(units) <= MAX_UNITS and len(frame) > MIN_DISTINCT
        return Doubt((units["text"][0], units["text"][1]), "have different units") if is_measured else unknown
    return _detect_decimal(one_unit, unit, MOSTLY * total) or unknown


def _find_unknown(frame: "pl.DataFrame", total: int) -> Doubt | None:
    """The doubt about a column of many values that nearly all are digits without letters, such as 10-20 or 3/8, or
    hexadecimal: they may be numbers."""
    import polars as pl

    text = pl.col("text")
    digits = frame.filter(text.str.contains(_DIGITS) & ~text.str.contains(_TIME))
    if len(digits) <= MIN_DISTINCT or _count(digits) < MOSTLY * total:
        return None
    return Doubt((digits["text"][0], digits["text"][1]), UNKNOWN)


def _detect_decimal(frame: "pl.DataFrame", unit: str, enough: float) -> Notation | Doubt | None:
    """The notation of the values in `frame`, which have one unit; `enough` of them must follow it."""
    import polars as pl

    has_exponent = pl.col("exponent") != ""  # then nothing separates thousands
    point, comma = (
        pl.when(has_exponent)
        .then(pl.col("body").str.contains(_grammar(decimal, grouped=False)))
        .otherwise(pl.col("body").str.contains(_grammar(decimal, grouped=True)))
        for decimal in ".,"
    )
    only_point = frame.filter(point & ~comma)
    only_comma = frame.filter(comma & ~point)
    ambiguous = frame.filter(pl.col("body").str.contains(_AMBIGUOUS) & ~has_exponent)
    if _count(frame.filter(point | comma)) < enough:
        return None
    if len(only_point) and len(only_comma):
        return Doubt((only_point["text"][0], only_comma["text"][0]), "have different decimal separators")
    if len(ambiguous) and not len(only_point) and not len(only_comma):
        examples = ambiguous["text"].head(2).to_list()
        return Doubt((examples[0], examples[-1]), "may contain thousands or decimals")
    decimal = "," if len(only_comma) else "."
    separated = frame.filter(comma if decimal == "," else point)
    if _count(separated) < enough:
        return None
    thousands = "." if decimal == "," else ","
    return Notation(decimal, bool(separated["body"].str.contains(thousands, literal=True).any()), unit)


def _count(frame: "pl.DataFrame") -> int:
    """The number of rows with the distinct values in `frame`."""
    return int(frame["count"].sum())


def _split(texts: "pl.Series") -> "pl.DataFrame":
    """The columns text, sign, body, exponent and unit of each value; a null body where the text is not a number."""
    import polars as pl

    ascii_text = pl.col("ascii").str.replace(r"^\((.+)\)$", "-$1")  # (5) is -5 in accounts
    ascii_text = ascii_text.str.replace(_NO_CENTS, "${1}$2").str.replace(_POWER, "e$1").str.replace(_FORTRAN, "${1}e$2")
    groups = ascii_text.str.extract_groups(_PARTS)

    def group(n: int) -> "pl.Expr":
        return groups.struct.field(str(n)).fill_null("")

    return pl.DataFrame({"text": texts, "ascii": _with_ascii_digits(texts)}).select(
        "text",
        pl.concat_str(group(1), group(3), group(6)).str.replace_all(f"[{_MINUS}]", "-").alias("sign"),
        groups.struct.field("4").alias("body"),
        group(5).str.replace_all(f"[{_MINUS}]", "-").alias("exponent"),
        pl.concat_str(group(2), group(7)).str.strip_chars().alias("unit"),
    )


def _with_ascii_digits(texts: "pl.Series") -> "pl.Series":
    """The texts with full-width, Arabic and other digits as 0 to 9, and with the point and comma of these scripts."""
    foreign = texts.filter(texts.str.contains(_FOREIGN)).str.extract_all(_FOREIGN).explode().unique().drop_nulls()
    if foreign.is_empty():
        return texts
    digits = {char: str(unicodedata.decimal(char)) for char in foreign}
    return texts.str.replace_many(digits | {"٫": ".", "．": ".", "٬": "'", "，": ","})


def _grammar(decimal: str, *, grouped: bool) -> str:
    """A pattern of numbers with this decimal separator. The other one separates thousands if `grouped`; spaces and
    apostrophes always may. 12,34,567 is Indian."""
    thousands = r"[1-9][0-9]{0,2}(?:[\s'’_][0-9]{3})+"
    if grouped:
        separator = "," if decimal == "." else r"\."
        thousands += rf"|[1-9][0-9]{{0,2}}(?:{separator}[0-9]{{2,3}})*{separator}[0-9]{{3}}"
    return rf"^(?:{thousands}|[0-9]+)?(?:{'[.]' if decimal == '.' else ','}[0-9]*)?$"
