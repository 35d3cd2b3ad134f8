"""Regression task: one logit, an amount.

Shapes: B rows, O = 1 logit.
"""

from typing import Annotated, Literal

from jaxtyping import Float
from pydantic import Field, model_validator

from infnet.tasks.base import BaseTask
from infnet.tasks.tensor import Tensor
from rayrun.config import Config

KNEE = 100.0
MAX_EXPONENT = 20.0


def smooth(amount: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """g(y) = y up to 100, then 100 + ln(y − 99): a few huge amounts do not rule the loss."""
    import torch

    return torch.where(amount > KNEE, KNEE + amount.clamp(min=KNEE).sub(KNEE - 1).log(), amount)


def unsmooth(smoothed: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """g⁻¹; the exponent is capped at 20, so an amount is at most about 4.9·10⁸."""
    import torch

    tail = (smoothed - KNEE).clamp(0.0, MAX_EXPONENT).exp() + (KNEE - 1)
    return torch.where(smoothed > KNEE, tail, smoothed)


class Squared(Config):
    """L = r²."""

    type: Literal["mse"] = "mse"

    def __call__(self, residual: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        """Loss of each row."""
        return residual.square()


class Huber(Config):
    """L = ½ r² for |r| < δ, else δ |r| − ½ δ²."""

    type: Literal["huber"] = "huber"
    delta: float = 1.0

    @model_validator(mode="after")
    def _delta_is_positive(self) -> "Huber":
        if self.delta <= 0:
            raise ValueError(f"delta must be above 0, found {self.delta}")
        return self

    def __call__(self, residual: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        """Loss of each row."""
        import torch
        import torch.nn.functional as F

        return F.huber_loss(
            residual, torch.zeros_like(residual), delta=self.delta, reduction="none"
        )


RegressionObjective = Annotated[Squared | Huber, Field(discriminator="type")]


class RegressionTask(BaseTask):
    """How much: watch time, spend. Residual r = x − g(y)/scale, prediction g⁻¹(scale · x)."""

    type: Literal["regression"] = "regression"
    objective: RegressionObjective = Huber()
    """What is minimised, in units of `scale`."""
    target: Literal["amount", "smoothed"] = "amount"
    """g: the amount itself, or its logarithm from 100 on (see `smooth`)."""
    scale: float = 1.0
    """A typical amount: the network's output is in this unit, so that it starts near the labels."""
    non_negative: bool = False
    """Predictions below 0 are shown as 0. The loss still sees them."""

    @model_validator(mode="after")
    def _scale_is_positive(self) -> "RegressionTask":
        if self.scale <= 0:
            raise ValueError(f"scale must be above 0, found {self.scale}")
        return self

    @property
    def metrics(self) -> tuple[str, ...]:
        """Headline first."""
        return ("rmse", "mae", "r2", "gini")

    @property
    def label_range(self) -> tuple[float, float]:
        """Any number; 0 and more with `non_negative`."""
        return (0.0 if self.non_negative else float("-inf"), float("inf"))

    def loss(
        self, logits: Float[Tensor, "B O"], labels: Float[Tensor, " B"]
    ) -> Float[Tensor, " B"]:
        """Mean over rows is the caller's; squared or Huber in units of `scale`."""
        target = smooth(labels) if self.target == "smoothed" else labels
        return self.objective(logits[:, 0] - target / self.scale)

    def predict(self, logits: Float[Tensor, "B O"]) -> Float[Tensor, " B"]:
        """The amount, in the unit of the label."""
        amount = logits[:, 0] * self.scale
        if self.target == "smoothed":
            amount = unsmooth(amount)
        return amount.clamp(min=0.0) if self.non_negative else amount
