"""Numeric feature: a column of numbers, normalised or cut into buckets."""

from typing import Literal

import numpy as np
import pyarrow as pa

from infnet.features.base import Fitted
from infnet.features.columns import numbers
from infnet.features.scaled import ScaledNumber


class NumericFeature(ScaledNumber):
    """x ↦ (t(x) − μ) / σ with t, μ, σ of the config and the training rows; or the bucket of x."""

    type: Literal["numeric"] = "numeric"
    column: str

    def inputs(self) -> tuple[str, ...]:
        """The column."""
        return (self.column,)

    def combine(self, *numbers: np.ndarray) -> np.ndarray:
        """The column as it stands."""
        return numbers[0]

    @property
    def formula(self) -> str:
        """The column."""
        return self.column

    def ids(self, name: str, values: pa.Array, fitted: Fitted) -> np.ndarray:
        """Buckets of raw values."""
        return self.ids_of(numbers(values)[0], fitted)
