"""Ratio feature: one column over another."""

from typing import Literal

import numpy as np
import pyarrow as pa
from pydantic import model_validator

from infnet.features.base import Problem
from infnet.features.columns import column, numbers
from infnet.features.scaled import ScaledNumber


class RatioFeature(ScaledNumber):
    """numerator / (denominator + smoothing), of one row; then as `numeric`.

    0/0, any division by 0, and a missing part give a missing value.
    """

    type: Literal["ratio"] = "ratio"
    numerator: str
    denominator: str
    smoothing: float = 0.0
    """Added to the denominator: keeps ratios of small counts small."""

    @model_validator(mode="after")
    def _smoothing_is_possible(self) -> "RatioFeature":
        if self.smoothing < 0:
            raise ValueError(f"smoothing must be at least 0, found {self.smoothing}")
        return self

    def columns(self, name: str) -> frozenset[str]:
        """Both."""
        return frozenset([self.numerator, self.denominator])

    def raw_values(self, rows: pa.Table) -> np.ndarray:
        """The quotient."""
        above = numbers(column(rows, self.numerator))[0]
        below = numbers(column(rows, self.denominator))[0] + self.smoothing
        quotient = above / np.where(below == 0, np.nan, below)
        return np.where(np.isinf(quotient), np.nan, quotient)

    def problems(self, name: str, rows: pa.Table) -> list[Problem]:
        """Parts that are no finite numbers, and quotients that log1p has no answer for."""
        found = self.unreadable(rows, self.numerator, self.denominator)
        return found + self.beyond_log1p(rows, f"{self.numerator} / {self.denominator}")
