"""Delta feature: how far one column is from another."""

from typing import Literal

import numpy as np

from infnet.features.scaled import ScaledNumber


class DeltaFeature(ScaledNumber):
    """a − b of one row, or (a − b) / |b| (`relative`); then as `numeric`.

    Missing where a part is missing, or b is 0 (`relative`).
    """

    type: Literal["delta"] = "delta"
    a: str
    b: str
    relative: bool = False

    def inputs(self) -> tuple[str, ...]:
        """Both."""
        return self.a, self.b

    def combine(self, *numbers: np.ndarray) -> np.ndarray:
        """The difference."""
        a, b = numbers
        if not self.relative:
            return a - b
        quotient = (a - b) / np.where(b == 0, np.nan, np.abs(b))
        return np.where(np.isinf(quotient), np.nan, quotient)

    @property
    def formula(self) -> str:
        """The difference."""
        return f"{self.a} − {self.b}"
