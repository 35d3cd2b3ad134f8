"""Ratio feature: one column over another."""

from typing import Literal

import numpy as np
from pydantic import model_validator

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

    def inputs(self) -> tuple[str, ...]:
        """Both."""
        return self.numerator, self.denominator

    def combine(self, *numbers: np.ndarray) -> np.ndarray:
        """The quotient."""
        above, below = numbers
        below = below + self.smoothing
        quotient = above / np.where(below == 0, np.nan, below)
        return np.where(np.isinf(quotient), np.nan, quotient)

    @property
    def formula(self) -> str:
        """The quotient."""
        return f"{self.numerator} / {self.denominator}"
