"""Binary task: one logit, a cross-entropy, a probability."""

from typing import Annotated, Literal

from jaxtyping import Float
from pydantic import Field, model_validator

from infnet.tasks.base import BaseTask
from infnet.tasks.tensor import Tensor
from rayrun.config import Config


class CrossEntropy(Config):
    """L = −w y ln p − (1−y) ln(1−p), p = σ(logit), w = `positive_weight`.

    With w ≠ 1 the prediction is no longer calibrated: it tends to w p / (w p + 1 − p).
    """

    type: Literal["cross_entropy"] = "cross_entropy"
    positive_weight: float = 1.0

    @model_validator(mode="after")
    def _weight_is_positive(self) -> "CrossEntropy":
        if self.positive_weight <= 0:
            raise ValueError(f"positive_weight must be above 0, found {self.positive_weight}")
        return self

    def __call__(
        self, logit: Float[Tensor, " B"], label: Float[Tensor, " B"]
    ) -> Float[Tensor, " B"]:
        """Loss of each row."""
        import torch.nn.functional as F

        weight = logit.new_tensor(self.positive_weight) if self.positive_weight != 1 else None
        return F.binary_cross_entropy_with_logits(logit, label, pos_weight=weight, reduction="none")


class Focal(Config):
    """L = −α y (1−p)^γ ln p − (1−α)(1−y) p^γ ln(1−p) (Lin et al. 2017, arXiv:1708.02002).

    Rows already right count less. The prediction is not calibrated.
    """

    type: Literal["focal"] = "focal"
    alpha: float = 0.25
    gamma: float = 2.0

    @model_validator(mode="after")
    def _in_range(self) -> "Focal":
        if not 0 < self.alpha < 1 or self.gamma < 0:
            raise ValueError(
                "focal loss needs alpha in (0, 1) and gamma at least 0, found "
                f"{self.alpha} and {self.gamma}"
            )
        return self

    def __call__(
        self, logit: Float[Tensor, " B"], label: Float[Tensor, " B"]
    ) -> Float[Tensor, " B"]:
        """Loss of each row."""
        import torch.nn.functional as F

        missed = -self.alpha * (-logit).sigmoid() ** self.gamma * F.logsigmoid(logit)
        false = -(1 - self.alpha) * logit.sigmoid() ** self.gamma * F.logsigmoid(-logit)
        return label * missed + (1 - label) * false


BinaryObjective = Annotated[CrossEntropy | Focal, Field(discriminator="type")]


class BinaryTask(BaseTask):
    """Did it happen: click, like, convert. In nats per row."""

    type: Literal["binary"] = "binary"
    objective: BinaryObjective = CrossEntropy()
    """What is minimised."""

    @property
    def metrics(self) -> tuple[str, ...]:
        """Headline first."""
        return ("auc", "gauc_impressions", "gauc_users", "gauc_positives", "logloss", "ne", "ece")

    @property
    def label_range(self) -> tuple[float, float]:
        """0 or 1 (a soft label between is allowed)."""
        return (0.0, 1.0)

    def loss(
        self, logits: Float[Tensor, "B O"], labels: Float[Tensor, " B"]
    ) -> Float[Tensor, " B"]:
        """The objective of each row."""
        return self.objective(logits[:, 0], labels)

    def predict(self, logits: Float[Tensor, "B O"]) -> Float[Tensor, " B"]:
        """σ(logit), in (0, 1)."""
        return logits[:, 0].sigmoid()
