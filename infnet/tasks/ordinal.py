"""Ordinal task: a level 0 … K−1 whose order counts and whose distances do not (stars, quartiles).

Shapes: B rows, O = K−1 logits.
"""

from typing import Literal

from jaxtyping import Float
from pydantic import model_validator

from infnet.tasks.base import BaseTask
from infnet.tasks.tensor import Tensor


class OrdinalTask(BaseTask):
    """K−1 yes-or-no questions "is it at least level j?" that cannot contradict each other.

        P(y ≥ j) = σ(b_j),   b_1 = x_1,   b_j = b_{j−1} − softplus(x_j)
        L = Σ_j BCE(1[y ≥ j], P(y ≥ j))

    The loss of rank-consistent ordinal regression (Cao, Mirjalili and Raschka 2020,
    arXiv:1901.07884); there the b_j differ by constants, here also by row. ŷ = E[level] = Σ_j P(y ≥
    j).
    """

    type: Literal["ordinal"] = "ordinal"
    levels: int

    @model_validator(mode="after")
    def _has_levels(self) -> "OrdinalTask":
        if self.levels < 2:
            raise ValueError(f"levels must be at least 2, found {self.levels}")
        return self

    @property
    def num_logits(self) -> int:
        """One per question."""
        return self.levels - 1

    @property
    def metrics(self) -> tuple[str, ...]:
        """Headline first."""
        return ("mae", "rmse", "r2")

    @property
    def label_range(self) -> tuple[float, float]:
        """0 … K−1."""
        return (0.0, float(self.levels - 1))

    def loss(
        self, logits: Float[Tensor, "B O"], labels: Float[Tensor, " B"]
    ) -> Float[Tensor, " B"]:
        """Sum of the questions' cross-entropies, in nats per row."""
        import torch
        import torch.nn.functional as F

        question = torch.arange(1, self.levels, device=labels.device)
        at_least = (labels[:, None] >= question).to(logits.dtype)
        return F.binary_cross_entropy_with_logits(
            self._ordered(logits), at_least, reduction="none"
        ).sum(dim=1)

    def predict(self, logits: Float[Tensor, "B O"]) -> Float[Tensor, " B"]:
        """The expected level, in [0, K−1]."""
        return self._ordered(logits).sigmoid().sum(dim=1)

    def _ordered(self, logits: Float[Tensor, "B O"]) -> Float[Tensor, "B O"]:
        import torch
        import torch.nn.functional as F

        steps = torch.cat([logits[:, :1], -F.softplus(logits[:, 1:])], dim=1)
        return steps.cumsum(dim=1)
