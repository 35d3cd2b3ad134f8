"""Learner: what is trained, and the losses of packed rows.

Shapes: K losses, each a mean over its own targets of the whole batch, so that the sum over passes
and workers does not depend on how rows are shared out among them.
"""

from abc import abstractmethod
from collections.abc import Iterable
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn


@runtime_checkable
class Batch(Protocol):
    """Rows that can be shared out."""

    def __len__(self) -> int:
        """Rows."""
        ...

    def __getitem__(self, part: slice) -> "Batch":
        """Some of the rows."""
        ...

    def to(self, device: torch.device) -> "Batch":
        """The same rows on a device."""
        ...

    @property
    def num_tokens(self) -> int:
        """Without padding."""
        ...


class Learner(nn.Module):
    """A model with its losses."""

    names: tuple[str, ...]
    """Of the K losses."""
    bf16 = False
    """Compute losses in bf16 where that is safe."""

    @abstractmethod
    def counts(self, batch: Any) -> Float[Tensor, " K"]:
        """Targets of each loss in a whole batch."""

    @abstractmethod
    def losses(self, rows: Any, counts: Float[Tensor, " K"]) -> Float[Tensor, " K"]:
        """The part of these rows in the means; `counts` are those of the whole batch."""

    @abstractmethod
    def weighted(self, losses: Float[Tensor, " K"]) -> Float[Tensor, ""]:
        """The one loss."""

    @abstractmethod
    def decayed(self) -> Iterable[nn.Parameter]:
        """Parameters that weight decay applies to."""

    def forward(self, rows: Any, counts: Float[Tensor, " K"]) -> Float[Tensor, " K"]:
        """`losses`, in the precision that is set."""
        with torch.autocast(counts.device.type, torch.bfloat16, enabled=self.bf16):
            return self.losses(rows, counts)

    def trained(self) -> dict[str, nn.Parameter]:
        """Parameters that are trained, each once."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}


def optimizer_of(learner: Learner, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 2019) over what is trained."""
    inside = {id(p) for p in learner.decayed()}
    parameters = list(learner.trained().values())
    groups = [
        {"params": [p for p in parameters if id(p) in inside], "weight_decay": weight_decay},
        {"params": [p for p in parameters if id(p) not in inside], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=lr, eps=1e-8)
