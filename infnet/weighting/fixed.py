"""Fixed weights: L = Σ λ_i L_i."""

from collections.abc import Mapping
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

from infnet.tasks import BaseTask
from infnet.weighting.base import BaseWeighting


class FixedWeighting(BaseWeighting):
    """λ_i is the task's `weight`, 1 if it says nothing."""

    type: Literal["fixed"] = "fixed"

    def build(self, tasks: Mapping[str, BaseTask]) -> "FixedSum":
        """No parameters."""
        return FixedSum({name: task.weight for name, task in tasks.items()})


class FixedSum(nn.Module):
    """L = Σ λ_i L_i."""

    def __init__(self, weights: Mapping[str, float]) -> None:
        super().__init__()
        self.weights = dict(weights)

    def forward(
        self, losses: dict[str, Float[Tensor, ""]], share: float = 1.0
    ) -> Float[Tensor, ""]:
        """Linear in the losses, so parts of a batch may be summed; `share` changes nothing."""
        return sum(
            (self.weights[name] * loss for name, loss in losses.items()), start=_zero(losses)
        )


def _zero(losses: dict[str, Tensor]) -> Tensor:
    return next(iter(losses.values())).new_zeros(())
