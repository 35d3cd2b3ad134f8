"""Prefixes of which lazy layers hold the first and the recent keys only: more of them fit.

A prefix of P > first + recent tokens is judged once, when it is put away: its last token is run
again, alone, behind the others, and a layer whose heads look almost only at the first and the
recent keys (the test of SimLayerKV, see `lazy_kv`) keeps those. Tokens that continue the prefix do
not see the others in that layer, so their h is an approximation; h of the prefix itself is exact,
and so is all with P ≤ first + recent.

Shapes: B rows, H key/value heads, P tokens of the longest prefix, S new tokens, E head width.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import DynamicCache

from layer_select.decoder import Decoder
from layer_select.serve.config import LazyKv
from layer_select.serve.lazy_kv import attention_share, eager, spared_of, threshold_of
from layer_select.serve.prefix_cache import Pair, Prefix


class LazyPrefixes:
    """What is kept of prefixes of one decoder, and how it is looked at again."""

    def __init__(self, decoder: Decoder, config: LazyKv) -> None:
        """Raises ConfigError as `threshold_of`."""
        self._decoder, self.config = decoder, config
        self._threshold = threshold_of(decoder.config, config)
        self._spared = spared_of(decoder.config)

    def trimmed(
        self, key: bytes, ids: Sequence[int], layers: Sequence[Pair], before: Prefix | None
    ) -> Prefix:
        """A prefix to be held.

        Args:
            key: of the prefix.
            ids: its tokens.
            layers: keys and values of all of them; what `before` had dropped is never looked at.
            before: the prefix that this one continues; its lazy layers stay lazy.
        """
        length, first, recent = len(ids), self.config.first, self.config.recent
        if length <= first + recent or self._threshold > 1:
            return Prefix(key, layers, length)
        lazy = set(before.lazy) if before is not None else set[int]()
        shares = self._shares(ids, layers, before)
        lazy |= {n for n, s in enumerate(shares) if s > self._threshold and n not in self._spared}
        kept: list[Pair] = []
        for layer, (keys, values) in enumerate(layers):
            if layer in lazy:
                keys, values = (
                    torch.cat([held[:, :first], held[:, -recent:]], dim=1)
                    for held in (keys, values)
                )
            kept.append((keys, values))
        return Prefix(key, kept, length, frozenset(lazy))

    def _shares(
        self, ids: Sequence[int], layers: Sequence[Pair], before: Prefix | None
    ) -> list[float]:
        """What the last token gives to the first and the recent keys, layer by layer."""
        decoder, cache, last = self._decoder, DynamicCache(), len(ids) - 1
        for layer, (keys, values) in enumerate(layers):
            cache.update(keys[None, :, :last], values[None, :, :last], layer)
        device = decoder.device
        with eager(decoder, True), self.hidden([before], [last], last, 1):
            found: Any = decoder.body(
                input_ids=torch.tensor([[ids[-1]]], device=device),
                position_ids=torch.tensor([[last]], device=device),
                attention_mask=torch.ones(1, len(ids), dtype=torch.int64, device=device),
                past_key_values=cache,
                use_cache=True,
                output_attentions=True,
            )
        return [attention_share(attention, self.config) for attention in found.attentions]

    def whole(self, prefix: Prefix, layer: int, past: int) -> tuple[Tensor, Tensor]:
        """Keys and values of the first `past` tokens, [H, past, E]; zeros for what was dropped."""
        if layer not in prefix.lazy:
            keys, values = prefix.layers[layer]
            return keys[:, :past], values[:, :past]
        first, recent = self.config.first, self.config.recent
        both: list[Tensor] = []
        for held in prefix.layers[layer]:
            full = held.new_zeros(held.shape[0], prefix.length, held.shape[2])
            full[:, :first], full[:, -recent:] = held[:, :first], held[:, first:]
            both.append(full[:, :past])
        return both[0], both[1]

    @contextmanager
    def hidden(
        self, prefixes: Sequence[Prefix | None], pasts: Sequence[int], past: int, new: int
    ) -> Iterator[None]:
        """While the body runs, lazy layers do not see what was dropped.

        Args:
            prefixes: of each row.
            pasts: tokens of each row that are behind the new ones, at the right of `past` columns.
            past: P.
            new: S, the same for all rows.
        """
        lazy = sorted({layer for p in prefixes if p is not None for layer in p.lazy})
        with ExitStack() as stack:
            for layer in lazy:
                mask = self._mask(layer, prefixes, pasts, past, new)
                hook = self._decoder.blocks[layer].register_forward_pre_hook(
                    lambda module, arguments, keywords, mask=mask: (
                        arguments,
                        {**keywords, "attention_mask": mask},
                    ),
                    with_kwargs=True,
                )
                stack.callback(hook.remove)
            yield

    def _mask(
        self,
        layer: int,
        prefixes: Sequence[Prefix | None],
        pasts: Sequence[int],
        past: int,
        new: int,
    ) -> Float[Tensor, "B 1 S keys"]:
        columns = torch.arange(past + new)
        seen = columns[None, :] <= torch.arange(past, past + new)[:, None]
        rows: list[Tensor] = []
        for prefix, own in zip(prefixes, pasts, strict=True):
            place = columns - (past - own)  # of each key in its row; below 0 is padding
            there = seen & (place >= 0)
            if prefix is not None and layer in prefix.lazy:
                dropped = (place >= self.config.first) & (
                    place < prefix.length - self.config.recent
                )
                there = there & ~dropped
            rows.append(there)
        dtype = self._decoder.model.dtype
        mask = torch.zeros(len(rows), 1, new, past + new, dtype=dtype)
        mask.masked_fill_(~torch.stack(rows)[:, None], torch.finfo(dtype).min)
        return mask.to(self._decoder.device)
