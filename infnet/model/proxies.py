"""Proxies: a few vectors that stand for all tokens of one kind.

Shapes: B rows, M categorical tokens, n events of one behaviour type, F behaviour types, m
categorical proxies, k sequence proxies per behaviour type, P task proxies, T tasks, D token width.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from infnet.model.layers import MLP, masked_softmax


class Proxies(NamedTuple):
    """C̃, S̃ and T̃ of the paper."""

    categorical: Float[Tensor, "B m D"]
    sequence: Float[Tensor, "B Fk D"]
    task: Float[Tensor, "B P D"]


class FlattenedProxies(nn.Module):
    """C̃ = Reshape(φ(Flatten(C))), φ an MLP R^{M·D} → R^{m·D}. Also pools task tokens."""

    def __init__(
        self, num_tokens: int, num_proxies: int, dim: int, *, hidden: Sequence[int], dropout: float
    ) -> None:
        super().__init__()
        self.shape = (num_proxies, dim)
        self.mlp = MLP(num_tokens * dim, hidden, num_proxies * dim, dropout=dropout)

    def forward(self, tokens: Float[Tensor, "B M D"]) -> Float[Tensor, "B m D"]:
        """Mix all tokens of a row into its proxies."""
        return self.mlp(tokens.flatten(1)).unflatten(1, self.shape)


class SequenceProxies(nn.Module):
    """S̃_a = Σ_t φ(s_{a,t}), φ one projection without bias shared by all behaviour types a.

    φ is linear, so it is applied once to the pooled events instead of to each: φ(Σ_t s_t). Beside
    the paper's `sum` there are `mean` (its scale does not grow with the history) and `attention`
    (softmax over events of a learned score, one per proxy). An empty history gives 0 in all three.
    k > 1 proxies per behaviour type have k projections (the paper has k = 1).
    """

    def __init__(self, dim: int, per_behaviour: int, poolings: Sequence[str]) -> None:
        super().__init__()
        bound = dim**-0.5
        self.weight = nn.Parameter(torch.empty(per_behaviour, dim, dim).uniform_(-bound, bound))
        self.poolings = tuple(poolings)
        self.score = nn.Linear(dim, per_behaviour) if "attention" in poolings else None

    def forward(
        self, tokens: Sequence[Float[Tensor, "B _ D"]], valid: Sequence[Bool[Tensor, "B _"]]
    ) -> Float[Tensor, "B Fk D"]:
        """Pool the events of each behaviour type, then project to its k proxies, side by side."""
        pooled = torch.stack(
            [self._pool(*each) for each in zip(self.poolings, tokens, valid, strict=True)], dim=1
        )
        return torch.einsum("bfkd,kde->bfke", pooled, self.weight).flatten(1, 2)

    def _pool(
        self, pooling: str, tokens: Float[Tensor, "B n D"], valid: Bool[Tensor, "B n"]
    ) -> Float[Tensor, "B k D"]:
        if self.score is not None and pooling == "attention":
            return masked_softmax(self.score(tokens).transpose(1, 2), valid) @ tokens
        shares = valid[:, None].to(tokens.dtype)
        if pooling == "mean":
            shares = shares / valid.sum(dim=1).clamp(min=1)[:, None, None]
        return (shares @ tokens).expand(-1, len(self.weight), -1)
