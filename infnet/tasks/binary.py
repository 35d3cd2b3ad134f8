"""Binary task: one logit, cross-entropy, a probability."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from infnet.tasks.base import BaseTask
from typing import Literal


class BinaryTask(BaseTask):
    """Did it happen: click, like, convert. L = −y ln σ(x) − (1−y) ln(1−σ(x)), in nats per row."""

    type: Literal["binary"] = "binary"

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
        """Cross-entropy of each row."""
        return F.binary_cross_entropy_with_logits(logits[:, 0], labels, reduction="none")

    def predict(self, logits: Float[Tensor, "B O"]) -> Float[Tensor, " B"]:
        """σ(logit), in (0, 1)."""
        return logits[:, 0].sigmoid()
