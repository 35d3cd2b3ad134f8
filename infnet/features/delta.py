"""Delta feature: how far one column is from another."""

from typing import Literal

import numpy as np
import pyarrow as pa

from infnet.features.base import Problem
from infnet.features.columns import column, numbers
from infnet.features.scaled import ScaledNumber


class DeltaFeature(ScaledNumber):
    """a − b of one row, or (a − b) / |b| (`relative`); then as `numeric`.

    Missing where a part is missing, or b is 0 (`relative`).
    """

    type: Literal["delta"] = "delta"
    a: str
    b: str
    relative: bool = False

    def columns(self, name: str) -> frozenset[str]:
        """Both."""
        return frozenset([self.a, self.b])

    def raw_values(self, rows: pa.Table) -> np.ndarray:
        """The difference."""
        a, b = (numbers(column(rows, c))[0] for c in (self.a, self.b))
        if not self.relative:
            return a - b
        quotient = (a - b) / np.where(b == 0, np.nan, np.abs(b))
        return np.where(np.isinf(quotient), np.nan, quotient)

    def problems(self, name: str, rows: pa.Table) -> list[Problem]:
        """Parts that are no finite numbers, and differences that log1p has no answer for."""
        found = self.unreadable(rows, self.a, self.b)
        return found + self.beyond_log1p(rows, f"{self.a} − {self.b}")
