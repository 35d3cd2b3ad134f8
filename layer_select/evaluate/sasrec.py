"""SASRec: the next item by causal self-attention over the item ids of a history (Kang and McAuley
2018, arXiv:1808.09781).

    x_t = M[s_t] + P_t                          their Eq. 1; P_0 belongs to the newest event
    x ← x + drop(attention(norm(x)))            causal, their Eq. 2–4
    x ← x + drop(W₂ relu(W₁ norm(x) + b₁) + b₂) their Eq. 5
    score(i | s) = norm(x_T) · M[i]             the item embedding M is shared with the input, Eq. 7

Trained by full-softmax cross-entropy over the catalogue at every event, where the paper contrasts
each target with one drawn item by binary cross-entropy: on the usual sets the former is clearly the
stronger rival.

Shapes: B users, S events of the longest history, D width, H heads, I items, N targets.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from layer_select.evaluate.config import SasRec
from rayrun.data.sequences import Ints

INITIAL_SD = 0.02


class SasRecNetwork(nn.Module):
    """See the top of the file."""

    def __init__(self, config: SasRec, num_items: int) -> None:
        """Weights are drawn from torch's global generator."""
        super().__init__()
        self.config = config
        self.items = nn.Embedding(num_items, config.width)
        self.positions = nn.Embedding(config.max_length, config.width)
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.drop = nn.Dropout(config.dropout)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=INITIAL_SD)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def forward(self, items: Int64[Tensor, "B S"], valid: Bool[Tensor, "B S"]) -> Tensor:
        """States after each event, [B, S, D]; histories end at the last column."""
        length = items.shape[1]
        newest_first = torch.arange(length - 1, -1, -1, device=items.device)
        x = self.drop(self.items(items) + self.positions(newest_first))
        causal = torch.ones(length, length, dtype=torch.bool, device=items.device).tril()
        own = torch.eye(length, dtype=torch.bool, device=items.device)
        sees = (causal & valid[:, None, :]) | own  # padding sees itself: a row of nothing is NaN
        for block in self.blocks:
            x = block(x, sees[:, None])
        return self.norm(x)

    def of_states(self, states: Float[Tensor, "N D"]) -> Float[Tensor, "N I"]:
        """Scores of all items."""
        return states @ self.items.weight.T

    @torch.no_grad()
    def scores(self, histories: Sequence[Ints]) -> Float[Tensor, "B I"]:
        """Scores of all items after each history (one event at least)."""
        items, valid = padded(histories, self.config.max_length)
        device = self.items.weight.device
        states = self(items.to(device), valid.to(device))
        return self.of_states(states[:, -1])


class _Block(nn.Module):
    """One layer: attention, then a feed-forward net of the same width."""

    def __init__(self, config: SasRec) -> None:
        super().__init__()
        width = config.width
        self.heads, self.dropout = config.heads, config.dropout
        self.attention_norm, self.forward_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.inward, self.outward = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)
        self.drop = nn.Dropout(config.dropout)

    def forward(self, x: Float[Tensor, "B S D"], sees: Bool[Tensor, "B 1 S S"]) -> Tensor:
        """[B, S, D]."""
        rows, length, width = x.shape
        split = (rows, length, 3, self.heads, width // self.heads)
        query, key, value = self.inward(self.attention_norm(x)).view(split).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(
            query, key, value, attn_mask=sees, dropout_p=self.dropout if self.training else 0.0
        )
        x = x + self.drop(self.outward(mixed.transpose(1, 2).reshape(rows, length, width)))
        return x + self.drop(self.second(F.relu(self.first(self.forward_norm(x)))))


def padded(
    histories: Sequence[Ints], max_length: int
) -> tuple[Int64[Tensor, "B S"], Bool[Tensor, "B S"]]:
    """The most recent events of each history, padded on the left, and where events stand."""
    shown = [history[-max_length:] for history in histories]
    length = max(1, *map(len, shown))
    items = np.zeros((len(shown), length), np.int64)
    valid = np.zeros((len(shown), length), bool)
    for row, history in enumerate(shown):
        if len(history):
            items[row, -len(history) :] = history
            valid[row, -len(history) :] = True
    return torch.from_numpy(items), torch.from_numpy(valid)
