"""Ranks and their agreement."""

from jaxtyping import Float
from torch import Tensor


def ranks(values: Float[Tensor, " L"]) -> Float[Tensor, " L"]:
    """Ranks 1 … L in float64, the lowest value first; ties share the mean of their ranks."""
    exact = values.double()
    below = (exact[:, None] > exact).sum(1)
    equal = (exact[:, None] == exact).sum(1)
    return below + (equal.double() + 1) / 2


def spearman(left: Float[Tensor, " L"], right: Float[Tensor, " L"]) -> float | None:
    """Spearman's rank correlation; None where one side does not vary."""
    a, b = (ranks(side) - (len(side) + 1) / 2 for side in (left, right))
    scale = (a.square().sum() * b.square().sum()).sqrt()
    return None if scale == 0 else float((a * b).sum() / scale)
