"""Which split a row belongs to: `data.split` of the configuration, applied to raw rows."""

import datetime
import json
from collections.abc import Iterable

import numpy as np
import pyarrow as pa

from infnet.config import ColumnSplit, HashSplit, TimeSplit
from infnet.data.shards import SPLITS
from infnet.features.columns import pc, plain, text
from infnet.features.hashing import hash_values
from rayrun.config import ConfigError
from rayrun.data.columns import Columns, TimeUnit, iso_milliseconds, to_milliseconds

NO_SPLIT = -1
"""Code of a row whose split cannot be told; the others are positions in `SPLITS`."""

LIKELY = (631_152_000_000, 4_102_444_800_000)
"""Milliseconds of 1990 and 2100: what lies outside is rather a wrong unit than a time."""


class Splitter:
    """Codes of rows: 0 train, 1 valid, 2 test, −1 not to be told (a bad row)."""

    def __init__(
        self, split: TimeSplit | ColumnSplit | HashSplit, columns: Columns, schema: pa.Schema
    ) -> None:
        """Check the split against the log's columns; reads no rows.

        Raises:
            ConfigError: a missing column, an unreadable cut, or splits that overlap.
        """
        self.split = split
        self._unit: TimeUnit = "ms"
        if isinstance(split, TimeSplit):
            name = split.column or (columns.time.column if columns.time else "")
            if not name:
                raise ConfigError(
                    "data.split: type time needs a time column, and the log has none; set "
                    "data.source.columns.time, name a column in data.split.column, or split by "
                    "{type: column} or {type: hash}"
                )
            self.column = name
            if columns.time and columns.time.column == name:
                self._unit = columns.time.unit
        else:
            self.column = split.column
        if self.column not in schema.names:
            raise ConfigError(
                f"data.split.column: the log has no column {self.column!r}; it has "
                f"{', '.join(schema.names)}"
            )
        self._kind = schema.field(self.column).type
        if isinstance(split, TimeSplit):
            self._cuts = [self._cut("valid_from"), self._cut("test_from")]
            if not self._cuts[0] < self._cuts[1]:
                raise ConfigError(
                    f"data.split: valid_from ({split.valid_from}) must be before test_from "
                    f"({split.test_from}), or valid and test overlap"
                )
        if isinstance(split, HashSplit):
            low = min(split.valid, split.test)
            if low <= 0 or split.valid + split.test >= 1:
                raise ConfigError(
                    f"data.split: valid ({split.valid}) and test ({split.test}) must be above 0 "
                    "and together below 1, or a split is empty"
                )

    def codes(self, rows: pa.Table) -> np.ndarray:
        """int8 code of each row."""
        if isinstance(self.split, TimeSplit):
            return self._by_time(rows)
        values = plain(rows.column(self.column))
        if isinstance(self.split, ColumnSplit):
            codes = pc.index_in(
                pc.utf8_lower(pc.utf8_trim_whitespace(text(values))), pa.array(SPLITS)
            )
            return pc.fill_null(codes, NO_SPLIT).to_numpy().astype(np.int8)
        place = hash_values(values, seed=self.split.seed).astype(np.float64) / 2.0**64
        test, valid = self.split.test, self.split.test + self.split.valid
        return np.select([place < test, place < valid], [2, 1], 0).astype(np.int8)

    @property
    def trouble(self) -> str:
        """Reason given for a row with code −1."""
        if isinstance(self.split, ColumnSplit):
            return f"{self.column} is not one of {', '.join(SPLITS)}"
        return f"{self.column} is missing or cannot be compared with the cuts of the split"

    def _by_time(self, rows: pa.Table) -> np.ndarray:
        values = self._comparable(plain(rows.column(self.column)))
        valid, test = (pc.greater_equal(values, pa.scalar(cut, values.type)) for cut in self._cuts)
        codes = pc.add(valid.cast(pa.int8()), test.cast(pa.int8()))
        return pc.fill_null(codes, NO_SPLIT).to_numpy().astype(np.int8)

    def _comparable(self, values: pa.Array) -> pa.Array:
        """Milliseconds where the column is a time, else its own numbers."""
        if self._is_number:
            number = values.cast(pa.float64(), safe=False)
            return pc.if_else(pc.is_nan(number), pa.scalar(None, pa.float64()), number)
        return to_milliseconds(values, "iso" if pa.types.is_string(values.type) else self._unit)

    @property
    def _is_number(self) -> bool:
        """A column of numbers that is not the time column: a calendar day such as 20220419."""
        kind = self._kind
        number = pa.types.is_integer(kind) or pa.types.is_floating(kind)
        return number and isinstance(self.split, TimeSplit) and bool(self.split.column)

    def _cut(self, key: str) -> int | float:
        value = str(getattr(self.split, key)).strip()
        try:
            number = float(value)
        except ValueError:
            number = None
        if self._is_number:
            if number is None:
                raise ConfigError(
                    f"data.split.{key}: {self.column} holds numbers, so a number is needed, "
                    f"found {value!r}"
                )
            return number
        if number is not None and not pa.types.is_string(self._kind) and self._unit != "iso":
            unit = self._unit
            return to_milliseconds(pa.array([int(number)]), unit)[0].as_py()
        found = iso_milliseconds(value)
        if found is None:
            raise ConfigError(
                f"data.split.{key} must be an ISO date or date-time (2022-04-19, "
                f"2022-04-19T00:00+08:00) or an integer in the unit of {self.column}, "
                f"found {value!r}"
            )
        return found


def as_written(split: TimeSplit | ColumnSplit | HashSplit) -> str:
    """A split as it stands in YAML, on one line."""
    parts = [
        f"{key}: {json.dumps(value, ensure_ascii=False)}" if key != "type" else f"type: {value}"
        for key, value in split.to_dict().items()
        if value != ""
    ]
    return "{" + ", ".join(parts) + "}"


def about_unit(columns: Columns, spans: Iterable[tuple[int, int] | None]) -> str:
    """A hint where times (first and last, milliseconds) are those of a wrong unit; else nothing."""
    ends = [end for span in spans if span for end in span]
    if columns.time is None or all(LIKELY[0] <= end < LIKELY[1] for end in ends):
        return ""
    return (
        f", or correct data.source.columns.time.unit ({columns.time.unit}): no log has such times "
        f"in {columns.time.column}"
    )


def moment(milliseconds: int) -> str:
    """A moment as people read it (UTC)."""
    return datetime.datetime.fromtimestamp(milliseconds / 1000, datetime.UTC).strftime(
        "%Y-%m-%d %H:%M:%S UTC"
    )
