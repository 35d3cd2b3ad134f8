"""Generation with less memory for keys and values: lazy layers keep the first and the recent ones.

SimLayerKV (Zhang et al. 2024, arXiv:2410.13846). At the first generated token, a layer is *lazy* if
its heads look, on average, almost only at the first and the most recent keys:

    (1/H) Σ_h Σ_{t < first or t ≥ T − recent} a_h[t] > threshold

It then keeps only those keys and values, 4 + 1024 by default, and so from then on. The paper counts
the two ranges apart, which counts keys twice where T < first + recent; here each counts once. A
prompt that fits into both is generated exactly, as is any with a threshold above 1. Recommending
generates nothing; there the same test decides what prefixes that are held keep (`lazy_prefix`).
Both are off unless they are asked for.

Shapes: B rows, H heads, T keys.
"""

from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from layer_select.decoder import Decoder
from layer_select.serve.config import LazyKv
from rayrun.config import ConfigError

THRESHOLDS = {"llama": 0.9, "mistral": 0.8, "qwen2": 0.85, "qwen3": 0.85, "qwen3_moe": 0.85}
"""By family: the authors' for Llama 3, Mistral and Qwen 2, whose last layer they never trim."""


class LazyLayer(DynamicLayer):
    """Keys and values of one layer, trimmed from the moment it is called lazy."""

    is_croppable = False

    def __init__(self, config: LazyKv) -> None:
        super().__init__()
        self.config = config
        self.seen = 0
        """Tokens so far, trimmed ones included: the position of the next."""
        self.lazy = False

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Append; the tokens of this call still see all that was there."""
        found = super().update(key_states, value_states, *args, **kwargs)
        self.seen += key_states.shape[-2]
        if self.lazy:
            self._trim()
        return found

    def get_seq_length(self) -> int:
        """`seen`, so that positions go on as if nothing had been trimmed."""
        return self.seen

    def reset(self) -> None:
        """As new."""
        super().reset()
        self.seen, self.lazy = 0, False

    def become_lazy(self) -> None:
        """Trim now and after every token."""
        self.lazy = True
        self._trim()

    def _trim(self) -> None:
        assert self.keys is not None
        assert self.values is not None
        first, recent = self.config.first, self.config.recent
        if self.keys.shape[-2] > first + recent:
            self.keys, self.values = (
                torch.cat([held[..., :first, :], held[..., -recent:, :]], dim=-2)
                for held in (self.keys, self.values)
            )


@dataclass(frozen=True)
class Generated:
    """A continuation and what it took."""

    ids: list[int]
    """New tokens."""
    lazy: list[int]
    """Layers that were trimmed."""
    cache_bytes: int
    """Keys and values at the end."""


def attention_share(attention: Float[Tensor, "1 H 1 T"], config: LazyKv) -> float:
    """Mean over heads of what the last token gives to the first and the recent keys; in [0, 1]."""
    keys = attention.shape[-1]
    near = torch.zeros(keys, dtype=torch.bool, device=attention.device)
    near[: config.first] = True
    near[max(keys - config.recent, 0) :] = True
    return float(attention[..., near].double().sum(-1).mean())


@torch.no_grad()
def generate(
    decoder: Decoder,
    ids: Sequence[int],
    *,
    new_tokens: int,
    lazy: LazyKv | None = None,
    end: int | None = None,
) -> Generated:
    """Continue a prompt greedily.

    Args:
        decoder: a model of full attention in every layer.
        ids: tokens of the prompt, at least one.
        new_tokens: at most so many, at least one.
        lazy: trims lazy layers; None: exact, as with a threshold above 1.
        end: token that ends the continuation.

    Raises:
        ConfigError: a layer has a sliding window (which bounds its keys already), or the prompt is
            empty.
    """
    kind = lazy or LazyKv(threshold=2.0)
    threshold = threshold_of(decoder.config, kind)
    if not ids:
        raise ConfigError("a prompt needs at least one token to be continued, found none")
    layers = [LazyLayer(kind) for _ in decoder.blocks]
    cache = Cache(layers=list(layers))
    token = _step(decoder, torch.tensor([list(ids)]), cache)[0]
    found = [token]
    spared = spared_of(decoder.config)
    while len(found) < new_tokens and found[-1] != end:
        asked = len(found) == 1 and threshold <= 1
        token, attentions = _step(decoder, torch.tensor([[found[-1]]]), cache, attentions=asked)
        for index, attention in enumerate(attentions):
            if index not in spared and attention_share(attention, kind) > threshold:
                layers[index].become_lazy()
        found.append(token)
    return Generated(
        found,
        [index for index, layer in enumerate(layers) if layer.lazy],
        sum(t.numel() * t.element_size() for one in layers for t in (one.keys, one.values)),  # pyright: ignore[reportOptionalMemberAccess]
    )


def _step(
    decoder: Decoder, ids: Tensor, cache: Cache, attentions: bool = False
) -> tuple[int, Sequence[Tensor]]:
    """The best next token, and with `attentions` what each layer looked at."""
    seen = cache.get_seq_length()
    told: dict[str, Any] = {}
    if seen:  # one token, which sees every key there is: layers may hold differently many
        told["attention_mask"] = torch.zeros(1, 1, 1, 1, dtype=decoder.model.dtype)
    with eager(decoder, attentions):
        found: Any = decoder.body(
            input_ids=ids.to(decoder.device),
            position_ids=torch.arange(seen, seen + ids.shape[1], device=decoder.device)[None],
            past_key_values=cache,
            use_cache=True,
            output_attentions=attentions,
            **{name: value.to(decoder.device) for name, value in told.items()},
        )
    best = int(decoder.logits(found.last_hidden_state[0, -1]).argmax())
    return best, found.attentions if attentions else ()


@contextmanager
def eager(decoder: Decoder, needed: bool) -> Any:
    """Only eager attention tells what it looked at."""
    before: Any = decoder.model.config._attn_implementation
    if needed:
        decoder.model.set_attn_implementation("eager")
    try:
        yield
    finally:
        if needed:
            decoder.model.set_attn_implementation(before)


def spared_of(config: Any) -> set[int]:
    """Layers that are never trimmed: the last of Qwen."""
    last = {int(config.num_hidden_layers) - 1}
    return last if config.model_type.startswith("qwen") else set[int]()


def threshold_of(config: Any, lazy: LazyKv) -> float:
    """The share above which a layer of this model is lazy.

    Raises:
        ConfigError: a layer has a sliding window, or the family has no threshold of its own.
    """
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    window = config.model_type == "mistral" and config.sliding_window
    if kinds != {"full_attention"} or window:
        raise ConfigError(
            f"lazy layers are those of full attention; {config.model_type} has layers with a "
            "sliding window, which bounds their keys already: generate with transformers, and "
            "leave serve.engine.lazy_kv out"
        )
    if lazy.threshold is None and config.model_type not in THRESHOLDS:
        raise ConfigError(
            f"lazy_kv.threshold must be given for {config.model_type}: the authors have none; .9 "
            "trims the layers that look almost only at the first and the recent keys"
        )
    return THRESHOLDS[config.model_type] if lazy.threshold is None else lazy.threshold
