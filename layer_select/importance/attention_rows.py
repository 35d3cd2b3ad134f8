"""Attention weights of single query rows, from the queries and keys that a layer's attention works
with: rotated, normed and grouped as the family does it, for they are noted where they are used.

    a_t = softmax_j(s(q_t · k_j · c) + m_tj),   s(z) = cap · tanh(z / cap) where the family caps

A learned sink of a head (gpt-oss) takes part in the softmax and is then left out, so its rows sum
to less than 1. R rows take H·R·T numbers in place of the H·T² that eager attention forms, and no
other kind of attention (sdpa, flash) tells its weights at all.

Shapes: B samples, H heads, G heads of keys, T tokens, E width of a head, R rows.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

WATCHED = "layer_select_watched"
"""Name under which the attention of a watched block is known to transformers meanwhile."""


@dataclass(frozen=True)
class Attended:
    """What the attention of one layer was called with, for a micro-batch."""

    query: Float[Tensor, "B H T E"]
    key: Float[Tensor, "B G T E"]
    scaling: float
    softcap: float | None
    sinks: Float[Tensor, " H"] | None
    mask: Tensor | None
    """B (or 1) × 1 × T × T: bool, or added to the logits; None: causal."""
    real: Int64[Tensor, "B T"]
    """0 at padding."""

    def rows(
        self, sample: int, rows: Int64[Tensor, " R"]
    ) -> tuple[Float[Tensor, "H R T"], Bool[Tensor, "R T"]]:
        """Attention weights of some query rows of a sample, in float32 or better, and which keys
        each row may see.
        """
        query, key = _wide(self.query[sample][:, rows]), _wide(self.key[sample])
        logits = query @ key.repeat_interleave(len(query) // len(key), 0).mT * self.scaling
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        visible = self._visible(sample, rows)
        logits = logits.masked_fill(~visible, -torch.inf)
        if self.sinks is not None:
            sinks = self.sinks.to(logits)[:, None, None].expand(-1, len(rows), 1)
            return torch.cat([logits, sinks], -1).softmax(-1)[..., :-1], visible
        return logits.softmax(-1), visible

    def _visible(self, sample: int, rows: Tensor) -> Tensor:
        tokens = self.real.shape[1]
        if self.mask is None:
            causal = torch.arange(tokens, device=rows.device) <= rows[:, None]
            return causal & self.real[sample].bool()
        mask = self.mask[sample if len(self.mask) > 1 else 0, 0][rows][:, :tokens]
        if mask.dtype == torch.bool:
            return mask
        return mask > max(torch.finfo(mask.dtype).min / 2, -1e30)


@contextmanager
def watched(block: nn.Module, real: Int64[Tensor, "B T"]) -> Iterator[list[Attended]]:
    """While the block is open, what its attention is called with is noted; nothing else changes.

    Args:
        block: a decoder layer.
        real: 0 at padding, of the micro-batch that goes through it.
    """
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    module: Any = next(m for m in block.modules() if type(m).__name__.endswith("Attention"))
    config = module.config
    kind = config._attn_implementation
    eager = sys.modules[type(module).__module__].eager_attention_forward
    base = ALL_ATTENTION_FUNCTIONS.get_interface(kind, eager)
    seen: list[Attended] = []

    def watching(
        module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **named: Any
    ) -> Any:
        scaling, softcap, sinks = (named.get(n) for n in ("scaling", "softcap", "s_aux"))
        scaling = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
        seen.append(Attended(query, key, scaling, softcap, sinks, mask, real))
        return base(module, query, key, value, mask, **named)

    ALL_ATTENTION_FUNCTIONS[WATCHED] = watching
    config._attn_implementation = WATCHED
    try:
        yield seen
    finally:
        config._attn_implementation = kind
        del ALL_ATTENTION_FUNCTIONS[WATCHED]


def spread_rows(real: Int64[Tensor, " T"], count: int) -> Int64[Tensor, " R"]:
    """At most `count` of a sample's real rows: evenly spaced, the last among them."""
    places = real.nonzero()[:, 0]
    if len(places) <= count:
        return places
    steps = torch.arange(1, count + 1, device=places.device)
    return places[steps * len(places) // count - 1]


def _wide(value: Tensor) -> Tensor:
    return value if value.dtype == torch.float64 else value.float()
