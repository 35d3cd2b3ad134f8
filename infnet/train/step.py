"""The loss of a training step, written so that one worker and N workers compute the same sum.

    L_t = Σ_rows w·o_t·ℓ_t / Σ_rows w·o_t        over the rows of the whole global batch

w is a row's weight, o_t says whether task t is observed there, ℓ_t is the loss of the row. The
denominator is known before any backward pass (`observed_weights`, summed over the workers), so the
loss of a micro-batch is a part of L_t: parts add up, whatever rows and labels each worker happens
to hold, none included.

Shapes: B rows, T tasks, O logits of a task.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from infnet.batch import Batch
from infnet.tasks import BaseTask, observed_losses


def observed_weights(batch: Batch) -> Float[Tensor, " T"]:
    """Σ w·o_t of each task over the rows of a batch, in float64 so that sums of workers are
    exact.
    """
    return (batch.observed * batch.weight[:, None]).sum(dim=0, dtype=torch.float64)


def task_losses(
    logits: Mapping[str, Tensor],
    batch: Batch,
    tasks: Mapping[str, BaseTask],
    global_weights: Float[Tensor, " T"],
) -> Float[Tensor, " T"]:
    """Each task's part of its mean loss over the global batch; 0 for a task that is observed
    nowhere.

    Summed over all micro-batches and workers this is the weighted mean loss per task. λ_t does not
    enter.
    """
    parts = []
    for column, (name, task) in enumerate(tasks.items()):
        losses = task.loss(logits[name].float(), batch.labels[:, column])
        total = observed_losses(losses, batch.observed[:, column], batch.weight)
        weight = global_weights[column]
        parts.append(total / weight.where(weight > 0, torch.ones_like(weight)).to(total.dtype))
    return torch.stack(parts)
