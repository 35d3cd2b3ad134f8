"""Numeric feature: a column of numbers, normalised or cut into buckets."""

from typing import Literal

import numpy as np
import pyarrow as pa

from infnet.features.base import Fitted, Problem
from infnet.features.columns import column, numbers
from infnet.features.scaled import ScaledNumber, transformed


class NumericFeature(ScaledNumber):
    """x ↦ (t(x) − μ) / σ with t, μ, σ of the config and the training rows; or the bucket of x."""

    type: Literal["numeric"] = "numeric"
    column: str

    def columns(self, name: str) -> frozenset[str]:
        """The column."""
        return frozenset([self.column])

    def raw_values(self, rows: pa.Table) -> np.ndarray:
        """The column as it stands."""
        return numbers(column(rows, self.column))[0]

    def problems(self, name: str, rows: pa.Table) -> list[Problem]:
        """Text that is no number, infinities, and values that log1p has no answer for."""
        return self.unreadable(rows, self.column) + self.beyond_log1p(rows, self.column)

    def ids(self, name: str, values: pa.Array, fitted: Fitted) -> np.ndarray:
        """Buckets of raw values."""
        return self._bucket_ids(transformed(numbers(values)[0], self.transform), fitted)
