"""The entries of a configuration that decide what the model computes, spelled one way.

The same model as a Hugging Face folder and as a GGUF file has two configurations that differ in
what is written out, in float32 rounding and in the name of the class. Here they are equal.
"""

from typing import Any

import numpy as np

_PLAIN = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "rms_norm_eps",
    "attention_bias",
    "mlp_bias",
    "tie_word_embeddings",
    "num_experts",
    "num_experts_per_tok",
    "moe_intermediate_size",
    "decoder_sparse_step",
    "mlp_only_layers",
    "norm_topk_prob",
    "swiglu_alpha",
    "swiglu_limit",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "query_pre_attn_scalar",
    "use_bidirectional_attention",
)
_YARN = {"beta_fast": 32.0, "beta_slow": 1.0, "truncate": True}


def deciding_entries(config: Any) -> dict[str, Any]:
    """Plain data: equal for two configurations of one model, whatever form it came in.

    Numbers are rounded to float32, in which GGUF keeps them. Context lengths, token ids, dropout
    and initialisation decide nothing here.
    """
    found = {name: _plain(getattr(config, name, None)) for name in _PLAIN}
    types = layer_types(config)
    sliding = "sliding_attention" in types
    found |= {
        "model_type": "llama" if config.model_type == "mistral" else config.model_type,
        "hidden_act": getattr(config, "hidden_act", None) or config.hidden_activation,
        "head_dim": head_dim(config),
        "num_experts": getattr(config, "num_local_experts", None),
        "layer_types": types if len(set(types)) > 1 else types[:1],
        "sliding_window": config.sliding_window if sliding else None,
        "rope": {name: _rope(config, given) for name, given in rope_by_type(config).items()},
    }
    return {name: value for name, value in found.items() if value not in (None, False, [])}


def head_dim(config: Any) -> int:
    """Width of one attention head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def layer_types(config: Any) -> list[str]:
    """Attention of every layer, also where the configuration leaves it to a default."""
    given = getattr(config, "layer_types", None)
    if given:
        return list(given)
    window = config.model_type == "mistral" and getattr(config, "sliding_window", None)
    return ["sliding_attention" if window else "full_attention"] * config.num_hidden_layers


def rope_by_type(config: Any) -> dict[str, dict[str, Any]]:
    """Rotary parameters of every kind of attention; key "" where all layers share them."""
    given: dict[str, Any] = config.rope_parameters
    if "rope_type" in given or "rope_theta" in given:
        return {"": given}
    return {name: given[name] for name in sorted(given) if name in layer_types(config)}


def _rope(config: Any, given: dict[str, Any]) -> dict[str, Any]:
    kind = given.get("rope_type", "default")
    full = {**(_YARN if kind == "yarn" else {}), **given, "rope_type": kind}
    if kind == "yarn":
        full.setdefault("original_max_position_embeddings", config.max_position_embeddings)
    return {
        name: _plain(float(value) if isinstance(value, int) else value)
        for name, value in full.items()
        if value is not None
    }


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return float(np.float32(value))
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
