# pyarrow comes without types:
# pyright: basic, reportAttributeAccessIssue=false
"""Text into typed values, a column at a time; what does not parse becomes null with a reason."""

import json
import math
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from rayrun.data.columns import ARROW

LARGEST_INT = 2**63 - 1


class Unreadable(ValueError):
    """One value that is not of its column's type."""


def parse(
    text: pa.Array, type_: str, *, missing: frozenset[str], separator: str
) -> tuple[pa.Array, dict[int, str]]:
    """A column of text as `type_` (a `ColumnType`), and position → text of what cannot be read."""
    if type_ == "text":
        return pc.if_else(pc.equal(text, ""), None, text), {}
    trimmed = pc.utf8_trim_whitespace(text)
    null = pc.is_in(trimmed, value_set=pa.array(sorted(missing | {""})))
    clean = pc.if_else(null, None, trimmed)
    if type_ in ("int", "float"):
        try:
            values = pc.cast(clean, ARROW[type_])
            if type_ == "int" or pc.all(pc.is_finite(values)).as_py() in (True, None):
                return values, {}
        except pa.ArrowInvalid:
            pass  # at least one value is odd: look at each
    return parse_each(clean.to_pylist(), type_, separator)


def parse_each(
    values: list[Any], type_: str, separator: str = ","
) -> tuple[pa.Array, dict[int, str]]:
    """The same value by value, for columns with odd values and for JSON."""
    read = _READ.get(type_)
    bad: dict[int, str] = {}
    result: list[Any] = []
    for at, value in enumerate(values):
        if value is None:
            result.append(None)
            continue
        try:
            if read is not None:
                result.append(read(value))
            else:
                result.append(_list(value, type_, separator))
        except (ValueError, TypeError, OverflowError):
            result.append(None)
            bad[at] = str(value)[:60]
    return pa.array(result, ARROW[type_]), bad


def _numeral(text: str) -> str:
    if "_" in text:  # Python reads 12_3 as 123, but in a log it is a name
        raise Unreadable(text)
    return text.strip()


def _int(value: Any) -> int:
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, str):
        text = _numeral(value)
        try:
            number = int(text)
        except ValueError:
            number = float(text)
    else:
        number = value
    if isinstance(number, float):
        if not number.is_integer():
            raise Unreadable(value)
        number = int(number)
    if not isinstance(number, int) or abs(number) > LARGEST_INT:
        raise Unreadable(value)
    return number


def _float(value: Any) -> float:
    number = float(_numeral(value) if isinstance(value, str) else value)
    if not math.isfinite(number):
        raise Unreadable(value)
    return number


def _bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    text = str(value).strip().lower()
    if text in ("true", "1", "yes", "t", "y"):
        return True
    if text in ("false", "0", "no", "f", "n"):
        return False
    raise Unreadable(value)


def _text(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else str(value)
    text.encode()  # JSON can spell half a character (a lone surrogate), which no column holds
    return text


_READ: dict[str, Callable[[Any], Any]] = {
    "int": _int,
    "float": _float,
    "bool": _bool,
    "text": _text,
}
_ELEMENT: dict[str, Callable[[Any], Any]] = {
    "list": _text,
    "list[text]": _text,
    "list[int]": _int,
    "list[float]": _float,
}


def _list(value: Any, type_: str, separator: str) -> list[Any]:
    read = _ELEMENT[type_]
    if isinstance(value, list):
        return [read(v) for v in value]
    text = str(value).strip()
    if text[:1] in "[(" and text[-1:] in "])":
        text = text[1:-1]
    if not text.strip():
        return []
    return [read(part.strip().strip("'\"")) for part in text.split(separator)]


def guess(values: pa.Array, missing: frozenset[str]) -> str | None:
    """The type of a column by a sample of its text: `int`, `float`, `bool`, `text`; None: no value.

    A column is of numbers when at least 99 % of its values are; the rest are then bad values and
    not a reason to read the column as text. Whole numbers with a leading zero (007) or beyond 64
    bits are names, and make it text.
    """
    known = [
        v.strip() for v in values.to_pylist() if v is not None and v.strip() not in missing | {""}
    ]
    if not known:
        return None
    allowed = len(known) // 100
    if sum(_is_name(v) for v in known) > allowed:
        return "text"
    for type_ in ("int", "float"):
        wrong = 0
        for value in known:
            try:
                if type_ == "int":
                    int(_numeral(value))
                else:
                    _float(value)
            except (ValueError, OverflowError):
                wrong += 1
                if wrong > allowed:
                    break
        if wrong <= allowed:
            return type_
    if all(v.lower() in ("true", "false") for v in known):
        return "bool"
    return "text"


def _is_name(value: str) -> bool:
    digits = value.lstrip("+-")
    too_large = (len(digits), digits) > (len(str(LARGEST_INT)), str(LARGEST_INT))
    return digits.isdecimal() and (too_large or (len(value) > 1 and value[0] == "0"))
