"""Gated tokens: the many vectors of one kind and, apart from them, the one that gates them all.

Shapes: B rows, H bases, N tokens, P queries, D token width. H is B, or a divisor of it: B/H rows
that follow each other then share a base, as the candidates of one request (H = 1) do a history.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True)
class GatedTokens:
    """Tokens X = S ⊙ G: `base` S as the features made them, and G, the product of all gates since.

    A gate is one vector per row, the same for all its tokens, so whoever reads the tokens by
    products can gate the few queries and results instead, which changes nothing but rounding:

        Q Xᵀ = (Q ⊙ G) Sᵀ          A X = (A S) ⊙ G

    No block passes over the tokens to gate them. And as S stays what it was, rows with the same S
    need it once: the products are then of all their queries together with one S.
    """

    base: Float[Tensor, "H N D"]
    gate: Float[Tensor, "B 1 D"] | None = None
    """None: not gated yet."""
    valid: Bool[Tensor, "H N"] | None = None
    """False at padding, where `base` must be 0. None: every token counts."""

    @property
    def gated(self) -> Float[Tensor, "B N D"]:
        """X, for tokens of which each row has its own (H = B)."""
        return self.base if self.gate is None else self.base * self.gate

    def by(self, gate: Float[Tensor, "B 1 D"]) -> "GatedTokens":
        """X ⊙ gate."""
        return replace(self, gate=gate if self.gate is None else self.gate * gate)

    def map(self, function: Callable[[Tensor], Tensor]) -> "GatedTokens":
        """f(X) for what is no product, such as a normalisation; padding stays 0. Needs H = B."""
        after = function(self.gated)
        if self.valid is not None:
            after = after * self.valid[..., None]
        return replace(self, base=after, gate=None)

    def read(self, queries: Float[Tensor, "B P D"]) -> Float[Tensor, "B P D"]:
        """softmax(Q Xᵀ) X over the valid tokens; a row without any reads 0, as padding is 0."""
        rows, number, dim = queries.shape
        bases = self.base.shape[0]
        if self.gate is not None:
            queries = queries * self.gate
        asked = queries.reshape(bases, rows // max(1, bases) * number, dim)
        scores = asked @ self.base.transpose(1, 2)
        if self.valid is not None:
            lowest = torch.finfo(scores.dtype).min  # for padding, whose score is 0 without it
            scores = scores + lowest * (~self.valid)[:, None].to(scores.dtype)
        read = (scores.softmax(-1) @ self.base).reshape(rows, number, dim)
        return read if self.gate is None else read * self.gate


def repeat(each: Float[Tensor, "H P D"], rows: Float[Tensor, "B _ _"]) -> Float[Tensor, "B P D"]:
    """What each base gives, for all of the `rows` that share it; their values do not matter."""
    bases, number, dim = each.shape
    shared = each[:, None].expand(-1, rows.shape[0] // max(1, bases), -1, -1)
    return shared.reshape(rows.shape[0], number, dim)
