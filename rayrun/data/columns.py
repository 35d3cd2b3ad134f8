# pyarrow comes without types:
# pyright: basic, reportAttributeAccessIssue=false
"""What the columns of a log mean: their roles, and how text becomes typed values."""

import datetime
import difflib
from collections.abc import Iterable
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from rayrun.config import Config, ConfigError

TimeUnit = Literal["s", "ms", "us", "iso"]
ColumnType = Literal[
    "int", "float", "text", "bool", "list", "list[int]", "list[float]", "list[text]"
]

ARROW: dict[str, pa.DataType] = {
    "int": pa.int64(),
    "float": pa.float64(),
    "text": pa.string(),
    "bool": pa.bool_(),
    "list": pa.list_(pa.string()),
    "list[text]": pa.list_(pa.string()),
    "list[int]": pa.list_(pa.int64()),
    "list[float]": pa.list_(pa.float64()),
}


class TimeColumn(Config):
    """The column that says when a row happened."""

    column: str
    unit: TimeUnit = "ms"
    """Unit of a number since 1970-01-01 UTC; `iso` for ISO 8601 text (UTC unless it says
    otherwise). Parquet dates and timestamps carry their own unit and ignore this."""


class Columns(Config):
    """Roles of the columns. Every role is optional; what needs an absent one says so."""

    user: str | None = None
    item: str | None = None
    time: TimeColumn | None = None
    request_id: str | None = None
    """Rows shown together, for ranking metrics."""
    group: str | None = None
    """Whatever grouped metrics group by, when it is not the user."""
    weight: str | None = None

    def names(self) -> dict[str, str]:
        """Role → column, of the roles that are set."""
        roles = {
            "user": self.user,
            "item": self.item,
            "time": self.time.column if self.time else None,
            "request_id": self.request_id,
            "group": self.group,
            "weight": self.weight,
        }
        return {role: column for role, column in roles.items() if column is not None}


def nearest(name: str, known: Iterable[str]) -> str:
    """`; the nearest is 'x'`, or nothing when no known name comes close."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; the nearest is {close[0]!r}" if close else ""


def missing_column(name: str, known: Iterable[str], *, where: str, wanted_by: str) -> ConfigError:
    """The one error for a column that is not there."""
    there = list(known)
    shown = ", ".join(there[:40]) + (f", … ({len(there)} in all)" if len(there) > 40 else "")
    return ConfigError(
        f"{where} has no column {name!r}, which {wanted_by} needs{nearest(name, there)}. "
        f"Columns there: {shown}"
    )


def plain(type_: pa.DataType) -> pa.DataType:
    """The simple form of an Arrow type: no dictionaries, no large offsets, no views."""
    if pa.types.is_dictionary(type_):
        return plain(type_.value_type)
    if pa.types.is_large_string(type_) or pa.types.is_string_view(type_):
        return pa.string()
    if pa.types.is_null(type_):
        return pa.string()
    if pa.types.is_list(type_) or pa.types.is_large_list(type_):
        return pa.list_(plain(type_.value_type))
    if pa.types.is_fixed_size_list(type_):
        return pa.list_(plain(type_.value_type), type_.list_size)
    if pa.types.is_decimal(type_) or pa.types.is_float16(type_):
        return pa.float64()
    return type_


def to_milliseconds(values: pa.Array | pa.ChunkedArray, unit: TimeUnit) -> pa.Array:
    """Times as int64 ms since 1970-01-01 UTC; null where there is none or it cannot be read.

    Finer times are cut down (floor). Parquet timestamps and dates are taken as they are; ISO text
    without an offset counts as UTC.
    """
    array = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    type_ = array.type
    if pa.types.is_date(type_):
        return array.cast(pa.date32()).cast(pa.timestamp("ms")).cast(pa.int64())
    if pa.types.is_timestamp(type_):
        number = array.cast(pa.int64())
        if type_.unit == "s":
            return pc.multiply(number, 1000)
        return _floor_divide(number, {"ms": 1, "us": 1000, "ns": 1_000_000}[type_.unit])
    if unit == "iso":
        return pa.array([iso_milliseconds(v) for v in array.to_pylist()], pa.int64())
    if pa.types.is_string(type_):
        array = pa.array([_number(v) for v in array.to_pylist()], pa.float64())
        type_ = array.type
    if pa.types.is_floating(type_):
        scale = {"s": 1000.0, "ms": 1.0, "us": 0.001}[unit]
        scaled = pc.floor(pc.multiply(array.cast(pa.float64()), scale))
        sane = pc.and_(pc.is_finite(scaled), pc.less(pc.abs(scaled), 2.0**62))
        return pc.if_else(sane, scaled, None).cast(pa.int64())
    number = array.cast(pa.int64())
    if unit == "s":
        sane = pc.less(pc.abs(number), 2**52)
        return pc.multiply(pc.if_else(sane, number, None), 1000)
    return _floor_divide(number, 1000) if unit == "us" else number


def _floor_divide(number: pa.Array, by: int) -> pa.Array:
    if by == 1:
        return number
    cut = pc.divide(number, by)
    behind = pc.less(number, pc.multiply(cut, by))  # pc.divide rounds towards zero
    return pc.subtract(cut, behind.cast(pa.int64()))


def iso_milliseconds(value: Any) -> int | None:
    """One ISO 8601 date or date-time in milliseconds since 1970 UTC, or None."""
    if not isinstance(value, str):
        return None
    try:
        moment = datetime.datetime.fromisoformat(value.strip())
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=datetime.UTC)
    epoch = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    return (moment - epoch) // datetime.timedelta(milliseconds=1)


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None
