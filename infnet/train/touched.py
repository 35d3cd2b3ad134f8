"""Gradients of the rows that a batch touched: distinct rows, each with the sum of its gradients.

Sums are made in one order, whoever makes them: the passes of a worker first, then rank by rank.

Shapes: R distinct rows, D width of a table.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor


class Touched(NamedTuple):
    """Gradient of one table: distinct rows in ascending order, and the sum of the gradients of
    each.
    """

    rows: Int64[Tensor, " R"]
    gradients: Float[Tensor, "R D"]


def coalesced(name: str, weight: Tensor) -> Touched:
    """What a backward pass has left in `weight.grad`.

    Raises:
        ValueError: the gradient is dense.
    """
    gradient = weight.grad
    if gradient is None:
        empty = torch.empty(0, dtype=torch.int64, device=weight.device)
        return Touched(empty, weight.new_empty(0, weight.shape[1]))
    if not gradient.is_sparse:
        raise ValueError(
            f"the gradient of embedding table {name} is dense, a step would cost time in all of "
            "its rows; build it with nn.Embedding(sparse=True)"
        )
    # Sorts the ids (stably) and adds equal ones in order: the same bits every time, on CPU and GPU.
    gradient = gradient.coalesce()
    return Touched(gradient.indices()[0], gradient.values())


def added(rows: Int64[Tensor, " _"], gradients: Float[Tensor, "_ D"]) -> Touched:
    """Equal rows added up, in the order in which they come."""
    if not len(rows):
        return Touched(rows, gradients)
    size = (int(rows.max()) + 1, gradients.shape[1])
    summed = torch.sparse_coo_tensor(rows[None], gradients, size, check_invariants=False).coalesce()
    return Touched(summed.indices()[0], summed.values())
