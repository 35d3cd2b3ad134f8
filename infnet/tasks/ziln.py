"""Zero-inflated lognormal task: amounts of which most are zero, and the rest spread over decades.

Shapes: B rows, O = 3 logits: p (will there be any), μ and s (how much).
"""

import math
from typing import Literal

from jaxtyping import Float
from pydantic import model_validator

from infnet.tasks.base import BaseTask
from infnet.tasks.tensor import Tensor

MIN_SIGMA = 1e-7**0.5  # the floor of google/lifetime_value: √(float32 epsilon of Keras)


class ZilnTask(BaseTask):
    """ZILN (Wang, Liu and Miao 2019, arXiv:1912.07753), with the reference code's floor under σ.

        L = BCE(1[y>0], σ(p)) − 1[y>0] ln LogNormal(y; μ, σ),   σ = max(softplus(s), 3.16·10⁻⁴)
        ŷ = σ(p) exp(μ + ½ softplus(s)²)

    ln LogNormal(y) = −ln y − ln σ − ½ ln 2π − (ln y − μ)²/(2σ²), a density: the loss may be
    negative. Beyond the reference, and without effect at its values: softplus(s) is capped by
    `max_sigma`, in loss and prediction, and the exponent of the prediction by `max_exponent`, so
    that one odd row cannot be infinite.
    """

    type: Literal["ziln"] = "ziln"
    max_sigma: float = 5.0
    max_exponent: float = 20.0

    @model_validator(mode="after")
    def _caps_are_positive(self) -> "ZilnTask":
        if self.max_sigma <= MIN_SIGMA or self.max_exponent <= 0:
            raise ValueError(
                "max_sigma and max_exponent must be above 0, found "
                f"{self.max_sigma} and {self.max_exponent}"
            )
        return self

    @property
    def num_logits(self) -> int:
        """p, μ, s."""
        return 3

    @property
    def metrics(self) -> tuple[str, ...]:
        """Headline first."""
        return ("gini", "rmse", "mae", "r2")

    @property
    def label_range(self) -> tuple[float, float]:
        """0 and more."""
        return (0.0, float("inf"))

    def loss(
        self, logits: Float[Tensor, "B O"], labels: Float[Tensor, " B"]
    ) -> Float[Tensor, " B"]:
        """Negative log-likelihood of each row, in nats."""
        import torch.nn.functional as F

        any_, mu, spread = logits.unbind(dim=1)
        positive = labels > 0
        sigma = F.softplus(spread).clamp(MIN_SIGMA, self.max_sigma)
        log_amount = labels.where(positive, labels.new_ones(())).log()
        log_density = (
            -log_amount
            - sigma.log()
            - 0.5 * math.log(2 * math.pi)
            - ((log_amount - mu) / sigma).square() / 2
        )
        occurs = positive.to(logits.dtype)
        return (
            F.binary_cross_entropy_with_logits(any_, occurs, reduction="none")
            - occurs * log_density
        )

    def predict(self, logits: Float[Tensor, "B O"]) -> Float[Tensor, " B"]:
        """The expected amount, in the unit of the label."""
        import torch.nn.functional as F

        any_, mu, spread = logits.unbind(dim=1)
        sigma = F.softplus(spread).clamp(max=self.max_sigma)
        return any_.sigmoid() * (mu + sigma.square() / 2).clamp(max=self.max_exponent).exp()
