"""The configuration of `transformers` from the metadata of a GGUF file.

What the metadata does not say is what llama.cpp computes with for that architecture, for it is its
format: experts' weights normalised (qwen3moe), windows by the layer's index, gpt-oss's activation.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from layer_select.families import Family, by_gguf
from layer_select.sources.gguf_rope import llama_factors, rope
from rayrun.config import ConfigError

GEMMA2_27B, GEMMA3_27B = 46, 62
"""Blocks of the models whose queries are scaled by the width of a head's share, not of a head."""


class Metadata:
    """The entries of one architecture, with messages."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        """Find the architecture; see `by_gguf`."""
        self.values, self.where = values, where
        self.architecture = str(values.get("general.architecture"))
        self.family: Family = by_gguf(self.architecture, where)

    def get(self, name: str, default: Any = None) -> Any:
        """The entry `{arch}.name`; a list of equal values, one for each layer, is one value."""
        value = self.values.get(f"{self.architecture}.{name}", default)
        if isinstance(value, list):
            if len(set(value)) != 1:
                raise ConfigError(
                    f"{self.where}: {self.architecture}.{name} differs from layer to layer, which "
                    f"this family does not have: {str(value)[:80]}"
                )
            value = value[0]
        return decimal(value)

    def need(self, name: str, default: int | float | None = None) -> Any:
        """A positive number, which must be there unless there is a default."""
        value = self.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise ConfigError(
                f"{self.where}: the metadata key {self.architecture}.{name} must be a positive "
                f"number, found {value!r}; the file is incomplete: convert the model again"
            )
        return value


def decimal(value: Any) -> Any:
    """A float32 as the shortest decimal that rounds to it: 1e-6, not 9.999999974752427e-07."""
    return float(str(np.float32(value))) if isinstance(value, float) else value


def config_from(
    values: Mapping[str, Any], tensors: Mapping[str, tuple[int, ...]], factors: Any, where: str
) -> Any:
    """The text decoder's configuration.

    Args:
        values: metadata.
        tensors: shapes by name.
        factors: rope_freqs.weight, if the file has it, as a float32 array.
        where: how messages call the file.

    Raises:
        ConfigError: an unknown architecture, a missing entry, or one that asks for what the
            family's implementation in `transformers` does not compute.
    """
    from transformers import CONFIG_MAPPING

    data = Metadata(values, where)
    family = data.family.model_type
    if "token_embd.weight" not in tensors:
        raise ConfigError(f"{where}: token_embd.weight is missing; the file is incomplete")
    heads = data.need("attention.head_count")
    width = data.need("embedding_length")
    head = data.need("attention.key_length", width // heads)
    _refuse_what_differs(data, head)
    given: dict[str, Any] = {
        "vocab_size": tensors["token_embd.weight"][0],
        "hidden_size": width,
        "intermediate_size": data.get("feed_forward_length", 0),
        "num_hidden_layers": data.need("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": data.need("attention.head_count_kv", heads),
        "head_dim": head,
        "max_position_embeddings": data.need("context_length", 4096),
        "rms_norm_eps": data.need("attention.layer_norm_rms_epsilon"),
        "tie_word_embeddings": "output.weight" not in tensors,
        "attention_bias": "blk.0.attn_q.bias" in tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in tensors,
        "rope_parameters": rope(data),
        **_tokens(values),
    }
    if factors is not None:
        given["rope_parameters"] = llama_factors(data, head, factors)
    given |= _BY_FAMILY.get(family, lambda _data, _given: {})(data, given)
    try:
        return CONFIG_MAPPING[family].from_dict({"model_type": family, **given})
    except Exception as error:  # the library's checks raise classes of their own
        raise ConfigError(f"{where}: the metadata makes no valid {family}: {error}") from None


def _refuse_what_differs(data: Metadata, head: int) -> None:
    for name, expected in (
        ("attention.value_length", head),
        ("rope.dimension_count", head),
    ):
        if (found := data.get(name, expected)) != expected:
            raise ConfigError(
                f"{data.where}: {data.architecture}.{name} must equal the width of a head "
                f"({expected}), found {found}; {data.family.model_type} has no such variant"
            )
    if data.architecture == "llama" and data.get("expert_count", 0):
        raise ConfigError(
            f"{data.where}: a llama with {data.get('expert_count')} experts (Mixtral) is not read; "
            "of mixtures of experts, qwen3moe and gpt-oss are"
        )


def _tokens(values: Mapping[str, Any]) -> dict[str, Any]:
    names = {"bos": "bos", "eos": "eos", "pad": "padding"}
    return {
        f"{name}_token_id": values.get(f"tokenizer.ggml.{key}_token_id")
        for name, key in names.items()
    }


def _qwen2(data: Metadata, given: dict[str, Any]) -> dict[str, Any]:
    del given["attention_bias"]  # always, and not a setting
    return {}


def _qwen3_moe(data: Metadata, given: dict[str, Any]) -> dict[str, Any]:
    return {
        "num_experts": data.need("expert_count"),
        "num_experts_per_tok": data.need("expert_used_count"),
        "moe_intermediate_size": data.need("expert_feed_forward_length"),
        "norm_topk_prob": True,
    }


def _gpt_oss(data: Metadata, given: dict[str, Any]) -> dict[str, Any]:
    return {
        "num_local_experts": data.need("expert_count"),
        "num_experts_per_tok": data.need("expert_used_count"),
        "intermediate_size": data.get("expert_feed_forward_length")
        or data.need("feed_forward_length"),
        "sliding_window": data.need("attention.sliding_window"),
        "layer_types": windows(data, 2),
        "attention_bias": True,
    }


def _gemma2(data: Metadata, given: dict[str, Any]) -> dict[str, Any]:
    return {
        **_gemma(data, given, 2, GEMMA2_27B),
        "attn_logit_softcapping": data.get("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": data.get("final_logit_softcapping", 30.0),
    }


def _gemma3(data: Metadata, given: dict[str, Any]) -> dict[str, Any]:
    near = {"rope_type": "default", "rope_theta": float(data.need("rope.freq_base_swa", 10_000.0))}
    return {
        **_gemma(data, given, 6, GEMMA3_27B),
        "final_logit_softcapping": data.get("final_logit_softcapping"),
        "rope_parameters": {
            "sliding_attention": near,
            "full_attention": given["rope_parameters"],
        },
    }


def _gemma(data: Metadata, given: dict[str, Any], period: int, largest: int) -> dict[str, Any]:
    return {
        "sliding_window": data.need("attention.sliding_window"),
        "layer_types": windows(data, period),
        "query_pre_attn_scalar": query_scalar(
            given["num_hidden_layers"],
            given["hidden_size"] // given["num_attention_heads"],
            given["head_dim"],
            largest,
        ),
    }


def query_scalar(layers: int, share: int, head: int, largest: int) -> int:
    """What llama.cpp divides gemma's queries by (squared): it knows the largest by its depth."""
    return share if layers == largest else head


def windows(data: Metadata, period: int) -> list[str]:
    """Which layers see a window: by the metadata, else every one but the last of each period."""
    layers = data.need("block_count")
    given = data.values.get(f"{data.architecture}.attention.sliding_window_pattern")
    if isinstance(given, list):
        if len(given) != layers:
            raise ConfigError(
                f"{data.where}: {data.architecture}.attention.sliding_window_pattern must have an "
                f"entry for each of {layers} layers, found {len(given)}"
            )
        return ["sliding_attention" if sliding else "full_attention" for sliding in given]
    period = given or period
    return [
        "full_attention" if (index + 1) % period == 0 else "sliding_attention"
        for index in range(layers)
    ]


_BY_FAMILY: dict[str, Any] = {
    "qwen2": _qwen2,
    "qwen3_moe": _qwen3_moe,
    "gpt_oss": _gpt_oss,
    "gemma2": _gemma2,
    "gemma3_text": _gemma3,
}
