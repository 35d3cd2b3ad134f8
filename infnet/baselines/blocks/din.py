"""Target attention of DIN: how much each past event matters for this candidate.

Shapes: B rows, n events, D width of an event and of the target.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from infnet.model.layers import MLP, masked_softmax


class TargetAttention(nn.Module):
    """Σ_t a_t e_t with a_t = MLP([q, e_t, q − e_t, q ⊙ e_t]) (Zhou et al. 2018, arXiv:1706.06978).

    The order of the four parts is FuxiCTR's. The weights are not normalised, as in the paper, so
    that a strong interest gives a long vector; `softmax` normalises over the valid events. ReLU
    stands for the paper's Dice, which needs batch statistics: a row's score must not depend on its
    batch. An empty history gives 0.
    """

    def __init__(
        self, dim: int, *, hidden: Sequence[int], dropout: float = 0.0, softmax: bool = False
    ) -> None:
        super().__init__()
        assert hidden
        self.first = nn.Linear(4 * dim, hidden[0])
        self.rest = MLP(hidden[0], hidden[1:], 1, dropout=dropout)
        self.dropout = nn.Dropout(dropout)
        self.softmax = softmax

    def forward(
        self,
        target: Float[Tensor, "B D"],
        events: Float[Tensor, "B n D"],
        valid: Bool[Tensor, "B n"],
    ) -> Float[Tensor, "B D"]:
        """The history as seen by the target."""
        # The first layer is linear in its four parts, so what depends on q alone is computed once a
        # row.
        of_target, of_event, of_difference, of_product = self.first.weight.chunk(4, dim=1)
        hidden = F.linear(target, of_target + of_difference, self.first.bias)[:, None] + F.linear(
            torch.cat([events, target[:, None] * events], dim=-1),
            torch.cat([of_event - of_difference, of_product], dim=1),
        )
        scores = self.rest(self.dropout(hidden.relu())).transpose(1, 2)
        shares = masked_softmax(scores, valid) if self.softmax else scores * valid[:, None]
        return (shares @ events)[:, 0]
