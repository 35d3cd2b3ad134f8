"""How the values of a log's columns stand in JSON: what is accepted, and what is told otherwise.

Strict where Arrow is lenient: `true` is no number, `"7"` is no number, 7 is no text, 1.5 is not
cut to 1, a number is no date. JSON has one kind of number, so 7.0 is the integer 7.
"""

import datetime
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from infnet.features.columns import as_numpy
from rayrun.config import ConfigError, Json

EXACT = 2**53
"""Up to here every integer is a float64 of its own."""

_REFUSALS = (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError, TypeError, ValueError)


class BadValueError(Exception):
    """A value of a column is not what it must be."""

    def __init__(self, at: int, found: Any, inside: str = "") -> None:
        """Of the values, the one `at` this place is wrong, or what stands `inside` it (`[2]`)."""
        super().__init__(at, found, inside)
        self.at, self.found, self.inside = at, found, inside


@dataclass(frozen=True)
class JsonType:
    """The JSON form of one Arrow type. Null stands for an unknown value of any type."""

    arrow: pa.DataType
    needed: str
    """What a value must be, in words."""
    schema: Json
    """JSON Schema (2020-12) of a value that is there; its `description`, if any, is the unit."""
    one: Callable[[Any], Any]
    """One value, not null, as Arrow takes it; ValueError if it is not as needed."""
    ready: frozenset[type] = frozenset()
    """Python types whose values go to Arrow as they are."""
    item: "JsonType | None" = None
    """Of the elements, if a value is an array."""

    @property
    def nullable(self) -> Json:
        """JSON Schema of a value that may be unknown."""
        return {**self.schema, "type": [self.schema["type"], "null"]}

    def array(self, values: Sequence[Any]) -> pa.Array:
        """Values in the type of the log.

        Raises:
            BadValueError: the first one that is not as needed.
        """
        if self.item and set(map(type, values)) <= {list, type(None)}:
            return self._lists(values, self.item)
        found = self.whole(values)
        if found is not None:
            return found
        return pa.array([self._checked(at, v) for at, v in enumerate(values)], self.arrow)

    def whole(self, values: Sequence[Any]) -> pa.Array | None:
        """`array`, if Arrow takes all values as they are: no look at each of them is needed."""
        types = set(map(type, values)) - {type(None)}
        if not types <= self.ready:
            return None
        try:
            found = pa.array(values, self.arrow)
        except _REFUSALS:
            return None
        if float in types and not np.isfinite(as_numpy(found.drop_null())).all():
            return None
        return found

    def _checked(self, at: int, value: Any) -> Any:
        if value is None:
            return None
        try:
            return self.one(value)
        except ValueError:
            raise BadValueError(at, value) from None

    def _lists(self, values: Sequence[Any], item: "JsonType") -> pa.Array:
        for at, value in enumerate(values):
            self._checked(at, value)
        lengths = np.array([len(v) if v else 0 for v in values], dtype=np.int64)
        try:
            elements = item.array(list(itertools.chain.from_iterable(v for v in values if v)))
        except BadValueError as bad:
            ends = np.cumsum(lengths)
            at = int(np.searchsorted(ends, bad.at, side="right"))
            step = bad.at - int(ends[at] - lengths[at])
            raise BadValueError(at, bad.found, f"[{step}]{bad.inside}") from None
        offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
        absent = pa.array([v is None for v in values], pa.bool_())
        return pa.ListArray.from_arrays(offsets, elements, mask=absent).cast(self.arrow)


def json_type(arrow: pa.DataType, column: str) -> JsonType:
    """The JSON form of a column's type.

    Raises:
        ConfigError: JSON has none (a duration, a time of day, bytes).
    """
    types = pa.types
    if types.is_integer(arrow):
        return _integer(arrow)
    if types.is_floating(arrow):
        return _number(arrow)
    if types.is_string(arrow):
        return _plain(arrow, str, "text in quotation marks", "string")
    if types.is_boolean(arrow):
        return _plain(arrow, bool, "true or false", "boolean")
    if types.is_date(arrow):
        return _date(arrow)
    if types.is_timestamp(arrow):
        return _moment(arrow)
    if types.is_list(arrow) or types.is_fixed_size_list(arrow):
        return _list(arrow, json_type(arrow.value_type, column))
    raise ConfigError(
        f"the column {column!r} has the type {arrow}, which a JSON request cannot hold; write it "
        "to the log as a number, text, a truth value, a date-time or a list of these, and train "
        "again"
    )


def _plain(arrow: pa.DataType, accepted: type, needed: str, name: str) -> JsonType:
    def one(value: Any) -> Any:
        if type(value) is not accepted:
            raise ValueError
        return value

    return JsonType(arrow, needed, {"type": name}, one, frozenset([accepted]))


def _integer(arrow: pa.DataType) -> JsonType:
    limits = np.iinfo(arrow.to_pandas_dtype())
    low, high = int(limits.min), int(limits.max)

    def one(value: Any) -> int:
        if type(value) is float and value.is_integer() and abs(value) <= EXACT:
            value = int(value)
        if type(value) is not int or not low <= value <= high:
            raise ValueError
        return value

    if arrow == pa.int64():
        needed, schema = "a 64-bit integer", {"type": "integer", "format": "int64"}
    else:
        needed = f"an integer from {low} to {high}"
        schema = {"type": "integer", "minimum": low, "maximum": high}
    return JsonType(arrow, needed, schema, one, frozenset([int]))


def _number(arrow: pa.DataType) -> JsonType:
    largest = float(np.finfo(arrow.to_pandas_dtype()).max)

    def one(value: Any) -> float:
        if type(value) not in (int, float):
            raise ValueError
        try:
            number = float(value)
        except OverflowError:
            raise ValueError from None
        if not abs(number) <= largest or not math.isfinite(number):
            raise ValueError
        return number

    needed, schema = "a finite number", {"type": "number"}
    if arrow != pa.float64():
        needed = f"a number within ±{largest:.2g}"
        schema |= {"minimum": -largest, "maximum": largest}
    return JsonType(arrow, needed, schema, one, frozenset([float, int]))


def _date(arrow: pa.DataType) -> JsonType:
    def one(value: Any) -> datetime.date:
        if type(value) is not str:
            raise ValueError
        return datetime.date.fromisoformat(value)

    schema = {"type": "string", "format": "date"}
    return JsonType(arrow, 'an ISO 8601 date such as "2022-04-20"', schema, one)


def _moment(arrow: pa.DataType) -> JsonType:
    def one(value: Any) -> datetime.datetime:
        if type(value) is not str:
            raise ValueError
        moment = datetime.datetime.fromisoformat(value)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=datetime.UTC)
        try:
            pa.scalar(moment, arrow)  # nanoseconds end in 2262
        except _REFUSALS:
            raise ValueError from None
        return moment

    schema = {"type": "string", "format": "date-time"}
    needed = 'an ISO 8601 date-time such as "2022-04-20T12:00:00Z"'
    return JsonType(arrow, needed, schema, one)


def _list(arrow: pa.DataType, item: JsonType) -> JsonType:
    count = arrow.list_size if pa.types.is_fixed_size_list(arrow) else None

    def one(value: Any) -> list[Any]:
        if type(value) is not list or count not in (None, len(value)):
            raise ValueError
        return value

    schema: Json = {"type": "array", "items": item.nullable}
    if count is not None:
        schema |= {"minItems": count, "maxItems": count}
    many = "" if count is None else f" {count}"
    needed = f"an array of{many} values, each {item.needed} or null"
    return JsonType(arrow, needed, schema, one, item=item)
