"""Uncertainty weighting: each task learns how noisy it is, and counts the less the noisier.

Shapes: T tasks.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from infnet.tasks import BaseTask, RegressionTask
from infnet.weighting.base import BaseWeighting


class UncertaintyWeighting(BaseWeighting):
    """L = Σ λ_i c_i (L_i e^{−s_i} + s_i), s_i from 0 on (Kendall et al. 2018, arXiv:1705.07115).

    s_i = ln σ_i². c_i is ½ for regressions (the paper's form) and 1 for likelihoods, whose s_i it
    halves instead: that only scales σ. λ_i is the task's `weight`.
    """

    type: Literal["uncertainty"] = "uncertainty"

    def build(self, tasks: Mapping[str, BaseTask]) -> "UncertaintySum":
        """One parameter per task."""
        return UncertaintySum(
            {
                name: task.weight * (0.5 if isinstance(task, RegressionTask) else 1.0)
                for name, task in tasks.items()
            }
        )


class UncertaintySum(nn.Module):
    """L = Σ w_i (L_i e^{−s_i} + s_i)."""

    def __init__(self, weights: Mapping[str, float]) -> None:
        super().__init__()
        self.weights = dict(weights)
        self.log_variance = nn.Parameter(torch.zeros(len(self.weights)))

    def forward(
        self, losses: dict[str, Float[Tensor, ""]], share: float = 1.0
    ) -> Float[Tensor, ""]:
        """`share` of this part in the step: s_i counts once a step, however that is cut."""
        total = self.log_variance.new_zeros(())
        for (name, weight), s in zip(self.weights.items(), self.log_variance, strict=True):
            total = total + weight * (losses[name] * torch.exp(-s) + s * share)
        return total
