"""Objective: the network and what its logits are trained for, as one module that DDP and ZeRO wrap.

The weighting of the tasks may have parameters of its own; inside the module they are trained,
clipped, exchanged and partitioned like those of the network.

Shapes: T tasks.
"""

import contextlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from infnet.batch import Batch
from infnet.model.inputs import Inputs
from infnet.tasks import BaseTask
from infnet.train.step import task_losses
from infnet.weighting import Weighting


class Objective(nn.Module):
    """From embedded rows to this part's share of the training loss."""

    def __init__(
        self,
        network: nn.Module,
        weighting: Weighting,
        tasks: Mapping[str, BaseTask],
        *,
        bf16: bool = False,
    ) -> None:
        """With `bf16` matrix products are in bf16; parameters, logits, losses and gradients stay
        float32.
        """
        super().__init__()
        self.network = network
        self.weighting = weighting.build(tasks)
        self.tasks = tasks
        self.bf16 = bf16

    def forward(
        self, inputs: Inputs, batch: Batch, global_weights: Tensor, share: float
    ) -> tuple[Tensor, Tensor]:
        """The loss to differentiate, and each task's part of its mean loss (T numbers, detached).

        `global_weights` are `step.observed_weights` over all workers; `share` is 1 / the number of
        parts the global batch is cut into.
        """
        autocast = (
            torch.autocast(batch.weight.device.type, dtype=torch.bfloat16)
            if self.bf16
            else contextlib.nullcontext()
        )
        with autocast:
            logits = self.network(inputs)
        losses = task_losses(logits, batch, self.tasks, global_weights)
        total = self.weighting(dict(zip(self.tasks, losses, strict=True)), share=share)
        return total, losses.detach()
