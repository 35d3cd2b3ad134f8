"""Tokens: every input of INFNet as vectors of one width.

Shapes: B rows, n events of one behaviour type, T tasks, D token width, E width of an event's
embeddings side by side.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from infnet.model.gated import GatedTokens
from infnet.model.layers import ParallelLinear


class Tokens(NamedTuple):
    """The three kinds of tokens, C, S and T of the paper."""

    categorical: GatedTokens
    sequence: GatedTokens
    task: GatedTokens


class FeatureTokens(nn.Module):
    """One token per named feature: x W_f + b_f, where its width is not already the token width.

    Features of equal width are projected together; the tokens come out in that order: by width,
    then as named.
    """

    def __init__(self, widths: Mapping[str, int], dim: int, *, keep_dim: bool) -> None:
        super().__init__()
        self.groups = {w: [n for n in widths if widths[n] == w] for w in sorted({*widths.values()})}
        self.projections = nn.ModuleList(
            nn.Identity() if keep_dim and width == dim else ParallelLinear(len(names), width, dim)
            for width, names in self.groups.items()
        )

    def forward(self, features: Mapping[str, Float[Tensor, "B _"]]) -> list[Float[Tensor, "B _ D"]]:
        """Tokens of each group of equal width."""
        return [
            projection(torch.cat([features[name] for name in names], 1).unflatten(1, (-1, width)))
            for (width, names), projection in zip(
                self.groups.items(), self.projections, strict=True
            )
        ]


class SequenceTokens(nn.Module):
    """Tokens of one behaviour type: s_t = w_t (e_t W + b + p_t) at events, 0 at padding.

    e_t are the event's embeddings side by side, p_t an optional learned position counted from the
    most recent event, w_t = exp(−λ Δt) an optional decay over its age Δt in days.
    """

    def __init__(self, width: int, dim: int, *, max_length: int, positions: bool, decay: float):
        super().__init__()
        self.project = nn.Linear(width, dim)
        self.positions = nn.Embedding(max_length, dim) if positions else None
        if self.positions is not None:
            nn.init.normal_(self.positions.weight, std=0.02)
        self.decay = decay

    def forward(
        self,
        events: Float[Tensor, "B n E"],
        valid: Bool[Tensor, "B n"],
        ages: Float[Tensor, "B n"],
    ) -> Float[Tensor, "B n D"]:
        """Project, place in time, and zero the padding."""
        tokens = self.project(events)
        if self.positions is not None:
            # 0 is the most recent event: events after t, which is how many are valid in t+1…
            after = valid.flip(1).long().cumsum(1).flip(1) - 1
            tokens = tokens + self.positions(after.clamp(min=0))
        strength = valid.to(tokens.dtype)
        if self.decay:
            strength = strength * torch.exp(-self.decay * ages)
        return tokens * strength[..., None]


class TaskTokens(nn.Module):
    """T learned task tokens and N_s learned shared tokens, N(0, 0.02²), the same for every row.

    With `shared_from_tasks`, shared token j starts as a copy of task token j mod T.
    """

    def __init__(self, num_tasks: int, num_shared: int, dim: int, *, shared_from_tasks: bool):
        super().__init__()
        self.task = nn.Parameter(torch.empty(num_tasks, dim).normal_(std=0.02))
        if shared_from_tasks:
            shared = self.task.detach()[torch.arange(num_shared) % num_tasks].clone()
        else:
            shared = torch.empty(num_shared, dim).normal_(std=0.02)
        self.shared = nn.Parameter(shared)

    def forward(
        self, rows: Float[Tensor, "B _ _"]
    ) -> tuple[Float[Tensor, "B T D"], Float[Tensor, "B _ D"]]:
        """Task tokens and shared tokens, repeated for each of `rows`, whose values do not matter.

        Not their number: an exported graph must not take it as fixed.
        """
        number = rows.shape[0]
        return self.task.expand(number, -1, -1), self.shared.expand(number, -1, -1)
