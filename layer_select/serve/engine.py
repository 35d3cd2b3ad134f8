"""h, the last hidden state of each prompt, by the model's implementation in `transformers`.

Prompts that wait together run together: new ones of about the same length, padded on the left, and
those that continue a prefix with equally many tokens. A row's h does not depend on the others (to
1e-5: a matrix product rounds differently in another shape), nor on whether its prefix was held,
unless lazy layers drop some of a long one (`serve.engine.lazy_kv`, off by default).

Shapes: B rows, P tokens of the longest prefix, S new tokens, D width, H key/value heads, E head
width.
"""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import DynamicCache

from layer_select.decoder import Decoder
from layer_select.serve.config import LazyKv
from layer_select.serve.lazy_prefix import LazyPrefixes
from layer_select.serve.prefix_cache import Pair, Prefix, PrefixCache, Prompt

SHORTEST_SHARE = 0.75
"""Of the longest row in a pass: at most a quarter of its tokens is padding."""


class Engine(ABC):
    """What computes h."""

    @abstractmethod
    def last_hidden(self, prompts: Sequence[Prompt], *, reuse: bool = True) -> Float[Tensor, "B D"]:
        """The h of each prompt, float32 in main memory; `reuse`: prefixes may be continued."""

    @abstractmethod
    def embedding(self) -> Any:
        """The model's input embedding, called with token ids."""


@dataclass(frozen=True)
class _Row:
    place: int
    prompt: Prompt
    prefix: Prefix | None

    @property
    def past(self) -> int:
        """Tokens that need no computing; the last one always does."""
        return min(self.prefix.length, self.total - 1) if self.prefix else 0

    @property
    def total(self) -> int:
        return len(self.prompt.ids)

    @property
    def new(self) -> int:
        return self.total - self.past


class TransformersEngine(Engine):
    """A decoder on a processor or a GPU. One thread at a time."""

    def __init__(
        self,
        decoder: Decoder,
        *,
        batch_tokens: int,
        prefix_cache_bytes: int,
        lazy_kv: LazyKv | None = None,
    ) -> None:
        """`batch_tokens`: of one pass, padding and prefixes included; a row alone may have more.

        Raises:
            ConfigError: `lazy_kv` of a model that has sliding windows, or no threshold.
        """
        self._decoder = decoder
        self._lazy = None if lazy_kv is None else LazyPrefixes(decoder, lazy_kv)
        self._batch_tokens = batch_tokens
        self.prefixes = PrefixCache(prefix_cache_bytes) if prefix_cache_bytes else None

    def embedding(self) -> Any:
        """See `Engine`."""
        return self._decoder.body.embed_tokens

    @torch.no_grad()
    def last_hidden(self, prompts: Sequence[Prompt], *, reuse: bool = True) -> Float[Tensor, "B D"]:
        """See `Engine`. Where the GPU's memory does not suffice, passes are halved, with a warning.

        Raises:
            torch.OutOfMemoryError: it does not suffice for one row.
        """
        prefixes = self.prefixes if reuse else None
        rows = [
            _Row(place, prompt, prefixes.longest(prompt) if prefixes is not None else None)
            for place, prompt in enumerate(prompts)
        ]
        found: list[Tensor] = [torch.empty(0)] * len(rows)
        for group in self._groups(rows):
            for row, hidden in zip(group, self._halving(group, prefixes), strict=True):
                found[row.place] = hidden
        return torch.stack(found)

    def _groups(self, rows: Sequence[_Row]) -> Iterator[list[_Row]]:
        """Rows of one pass: all new, or all with as many new tokens behind a prefix.

        Padding then lies on the left of everything, where sliding windows do not count it.
        """
        group: list[_Row] = []
        for row in sorted(rows, key=lambda r: (r.past > 0, r.new if r.past else 0, r.total)):
            fits = bool(group) and (len(group) + 1) * row.total <= self._batch_tokens
            if fits and row.past:
                fits = group[0].past > 0 and group[0].new == row.new
            elif fits:
                fits = group[0].total >= SHORTEST_SHARE * row.total
            if not fits:
                if group:
                    yield group
                group = []
            group.append(row)
        if group:
            yield group

    def _halving(self, rows: list[_Row], prefixes: PrefixCache | None) -> list[Tensor]:
        try:
            return self._pass(rows, prefixes)
        except torch.OutOfMemoryError:
            if len(rows) == 1:
                raise
        half = len(rows) // 2
        self._batch_tokens = max(1, half * max(row.total for row in rows))
        warnings.warn(
            f"the GPU's memory does not suffice for {len(rows)} prompts at once; "
            f"serve.batch_tokens is {self._batch_tokens} from here on",
            stacklevel=2,
        )
        torch.cuda.empty_cache()
        return self._halving(rows[:half], prefixes) + self._halving(rows[half:], prefixes)

    def _pass(self, rows: list[_Row], prefixes: PrefixCache | None) -> list[Tensor]:
        device = self._decoder.device
        past, new = max(r.past for r in rows), max(r.new for r in rows)
        ids = torch.zeros(len(rows), new, dtype=torch.int64)
        positions = torch.zeros_like(ids)
        mask = torch.zeros(len(rows), past + new, dtype=torch.int64)
        for number, row in enumerate(rows):
            ids[number, new - row.new :] = torch.tensor(row.prompt.ids[row.past :])
            positions[number, new - row.new :] = torch.arange(row.past, row.total)
            mask[number, past + new - row.total :] = 1
        # Every layer keeps all keys, also one with a sliding window, whose mask does the rest.
        cache = DynamicCache() if prefixes is not None else None
        if cache is not None and past:
            for layer, (keys, values) in enumerate(self._padded(rows, past)):
                cache.update(keys, values, layer)
        with ExitStack() as stack:
            if self._lazy is not None and past:
                pasts = [row.past for row in rows]
                stack.enter_context(self._lazy.hidden([r.prefix for r in rows], pasts, past, new))
            found: Any = self._decoder.body(
                input_ids=ids.to(device),
                attention_mask=mask.to(device),
                position_ids=positions.to(device),
                past_key_values=cache,
                use_cache=cache is not None,
            )
        if cache is not None and prefixes is not None:
            self._keep(rows, cache, prefixes)
        return list(found.last_hidden_state[:, -1].float().cpu())

    def _padded(self, rows: Sequence[_Row], past: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Keys and values of each layer, [B, H, P, E], on the left what is never looked at."""
        assert rows[0].prefix is not None
        for layer, (like, _) in enumerate(rows[0].prefix.layers):
            keys = like.new_zeros(len(rows), like.shape[0], past, like.shape[2])
            values = torch.zeros_like(keys)
            for number, row in enumerate(rows):
                assert row.prefix is not None
                held = row.prefix.layers[layer]
                if self._lazy is not None:
                    held = self._lazy.whole(row.prefix, layer, row.past)
                for whole, own in zip((keys, values), held, strict=True):
                    whole[number, :, past - row.past :] = own[:, : row.past]
            yield keys, values

    def _keep(self, rows: Sequence[_Row], cache: DynamicCache, prefixes: PrefixCache) -> None:
        for number, row in enumerate(rows):
            if not row.prompt.ends or (row.prefix and row.prefix.length >= row.prompt.ends[-1]):
                continue
            layers: list[Pair] = []
            held: Any = cache.layers
            length = row.prompt.ends[-1]
            for layer in held:
                keys, values = layer.keys, layer.values
                start = keys.shape[2] - row.total
                own = slice(start, start + length)
                layers.append((keys[number, :, own].clone(), values[number, :, own].clone()))
            key = row.prompt.keys()[-1]
            prefix = Prefix(key, layers, length)
            if self._lazy is not None:
                prefix = self._lazy.trimmed(key, row.prompt.ids[:length], layers, row.prefix)
            prefixes.put(prefix, continues=row.prefix)
