"""Window feature: a list of fixed length per row, for instance the last 20 steps of a number."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pyarrow as pa
from pydantic import model_validator

from infnet.features import summaries
from infnet.features.base import Feature, Fitted, Problem, Slots
from infnet.features.columns import as_numpy, check_number, column, lists, numbers, pc, ranges
from infnet.features.scaled import (
    Normalise,
    Transform,
    block,
    normalisation,
    scaled,
    transformed,
)
from infnet.schema import DenseSlot
from rayrun.config import ConfigError, Json

MAX_LENGTH = 512


class WindowFeature(Feature):
    """`length` numbers, oldest first, side by side in the dense block, then a missing indicator.

    The indicator is 1 where the window is missing. All steps share one normalisation; a missing
    step is 0 after normalising.
    """

    type: Literal["window"] = "window"
    column: str
    length: int = 20
    transform: Transform = "none"
    """As of `numeric`."""
    normalise: Normalise = "standard"
    """As of `numeric`, over the steps of all training rows."""
    short: Literal["refuse", "pad"] = "refuse"
    """A list of fewer steps is a bad row, or lacks its oldest steps. A longer one is a bad row."""

    @model_validator(mode="after")
    def _length_is_possible(self) -> "WindowFeature":
        if not 1 <= self.length <= MAX_LENGTH:
            raise ValueError(f"length must be 1 to {MAX_LENGTH}, found {self.length}")
        return self

    def columns(self, name: str) -> frozenset[str]:
        """The list column."""
        return frozenset([self.column])

    def check_columns(self, name: str, schema: pa.Schema) -> None:
        """Lists of numbers."""
        kind = schema.field(self.column).type
        if not (pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind)):
            raise ConfigError(
                f"features.{name}.column: {self.column} must hold lists of {self.length} numbers, "
                f"found the type {kind}; a single number per row is `type: numeric`"
            )
        steps = pa.schema([(self.column, kind.value_type)])
        check_number(steps, self.column, f"features.{name}.column (its steps)")
        if pa.types.is_fixed_size_list(kind) and kind.list_size != self.length:
            raise ConfigError(
                f"features.{name}.length is {self.length}, but {self.column} holds lists "
                f"of {kind.list_size}; set length to {kind.list_size}"
            )

    def problems(self, name: str, rows: pa.Table) -> list[Problem]:
        """Lists of another length, and steps that are no finite numbers."""
        values, lengths, absent = self._steps(rows)
        wrong = (lengths > self.length) | (self.short == "refuse") & (lengths < self.length)
        reason = f"the window {self.column} has another number of steps than {self.length}"
        steps, bad = values
        if self.transform == "log1p":
            bad = bad | (steps <= -1)
        row = np.repeat(np.arange(len(lengths)), lengths)
        bad_rows = np.bincount(row[bad], minlength=len(lengths)) > 0
        unreadable = f"the window {self.column} has a step that is no finite number" + (
            " above -1 (under log1p)" if self.transform == "log1p" else ""
        )
        return [Problem(wrong & ~absent, reason), Problem(bad_rows, unreadable)]

    def summarise(self, name: str, rows: pa.Table) -> Json:
        """Moments over all steps."""
        return summaries.moments(self._block(rows)[0].reshape(-1))

    def merge(self, parts: Sequence[Json]) -> Json:
        """The same of all rows."""
        return summaries.merge_moments(parts)

    def fit(self, name: str, summary: Json) -> Json:
        """{shift, scale}."""
        return normalisation(summary, self.normalise)

    def slots(self, name: str, fitted: Fitted) -> Slots:
        """`length` + 1 dense columns."""
        return Slots(dense=(DenseSlot(name=name, width=self.length + 1, kind="window"),))

    def encode(self, name: str, rows: pa.Table, fitted: Fitted) -> dict[str, pa.Array]:
        """`d.<name>`: the steps, then the indicator. A window of wrong length counts as missing."""
        steps, absent = self._block(rows)
        both = np.concatenate([scaled(steps, fitted.state), absent[:, None]], axis=1)
        return {f"d.{name}": block(both)}

    def _steps(
        self, rows: pa.Table
    ) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray, np.ndarray]:
        found = column(rows, self.column)
        elements, lengths = lists(found, 2**31)
        return numbers(elements), lengths, as_numpy(pc.is_null(found))

    def _block(self, rows: pa.Table) -> tuple[np.ndarray, np.ndarray]:
        """(transformed [rows, length], NaN where missing, right-aligned; whole window missing)."""
        (values, _), lengths, absent = self._steps(rows)
        short = self.length if self.short == "refuse" else 1
        fits = ~absent & (lengths >= short) & (lengths <= self.length)
        steps = np.full((len(lengths), self.length), np.nan)
        start = np.cumsum(lengths) - lengths
        place = np.arange(len(lengths)) * self.length + (self.length - lengths)
        steps.reshape(-1)[ranges(place[fits], lengths[fits])] = values[
            ranges(start[fits], lengths[fits])
        ]
        return transformed(steps, self.transform), ~fits
