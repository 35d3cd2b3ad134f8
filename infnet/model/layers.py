"""Small layers that every network here is made of. Nothing in them mixes rows of a batch.

Shapes: B rows, N tokens, P queries, G features of one width, W that width, D token width.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn


class MLP(nn.Sequential):
    """Linear layers with ReLU and dropout between them; without hidden layers, one Linear."""

    def __init__(
        self, width: int, hidden: Sequence[int], out: int, *, dropout: float = 0.0
    ) -> None:
        layers: list[nn.Module] = []
        for following in hidden:
            layers += [nn.Linear(width, following), nn.ReLU()]
            if dropout:
                layers.append(nn.Dropout(dropout))
            width = following
        super().__init__(*layers, nn.Linear(width, out))


class ParallelLinear(nn.Module):
    """One Linear per feature, all of the same width, in one product: y_g = W_g x_g + b_g."""

    def __init__(self, num: int, width: int, out: int) -> None:
        super().__init__()
        bound = width**-0.5  # as nn.Linear starts
        self.weight = nn.Parameter(torch.empty(num, width, out).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(num, out).uniform_(-bound, bound))

    def forward(self, features: Float[Tensor, "B G W"]) -> Float[Tensor, "B G D"]:
        """Project each feature with weights of its own."""
        return torch.matmul(features.transpose(0, 1), self.weight).transpose(0, 1) + self.bias


def masked_softmax(
    scores: Float[Tensor, "B P N"], valid: Bool[Tensor, "B N"]
) -> Float[Tensor, "B P N"]:
    """Softmax over the valid tokens of each row; exactly 0 elsewhere, and 0 in a row without any.

    No infinities, so neither the result nor a gradient can be NaN.
    """
    kept = valid[:, None, :]
    lowest = torch.finfo(scores.dtype).min
    return scores.masked_fill(~kept, lowest).softmax(dim=-1) * kept
