"""Objective: what a task asks of the last hidden states of a decoder.

Shapes: B samples, T tokens, D hidden width.
"""

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from layer_select.task.batch import TaskBatch


@runtime_checkable
class Objective(Protocol):
    """Losses and metrics of single samples; nothing here averages over them."""

    def loss(self, normed: Float[Tensor, "B T D"], batch: TaskBatch) -> Float[Tensor, " B"]:
        """Negative log-likelihood of each sample, summed over its target tokens; differentiable.

        In float32, or float64 where `normed` is.
        """
        ...

    def metrics(self, normed: Float[Tensor, "B T D"], batch: TaskBatch) -> dict[str, Tensor]:
        """Name → one value for each sample, without gradient."""
        ...

    def drawn(
        self, normed: Float[Tensor, "B T D"], batch: TaskBatch, generator: torch.Generator
    ) -> TaskBatch:
        """The batch with targets drawn from the model's own distribution (Monte-Carlo Fisher)."""
        ...
