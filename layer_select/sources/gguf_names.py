"""Names and layouts: the state dict of `transformers` on one side, GGUF on the other.

Each parameter has one `Rule`: the tensors of a GGUF file it is made of, and the layout between, in
both directions. Spellings that only Ollama's own converter writes are read, and never written.

Shapes: E experts, I intermediate width, H hidden width.
"""

import re
from collections.abc import Container
from dataclasses import dataclass
from typing import Any

from layer_select.sources import gguf_layout as layout
from layer_select.sources.deciding import head_dim
from layer_select.sources.gguf_layout import Layout


@dataclass(frozen=True)
class Rule:
    """One parameter, as GGUF tensors in a layout."""

    tensors: tuple[str, ...]
    layout: Layout


_OUTER = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_INNER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
    "mlp.router": "ffn_gate_inp",
}
_GEMMA = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
_GPT_OSS = {"post_attention_layernorm": "post_attention_norm"}
_BLOCK = re.compile(r"model\.layers\.(\d+)\.(.+)$")


def rule(name: str, config: Any, there: Container[str] = ()) -> Rule:
    """How a file spells the parameter `name`.

    Args:
        name: of the state dict.
        config: of the model.
        there: the names a file holds, to recognise other spellings; empty: the usual one.
    """
    family = config.model_type
    match = _BLOCK.match(name)
    if match is None:
        plus_one = family.startswith("gemma") and name == "model.norm.weight"
        return Rule((_OUTER[name],), layout.PlusOne() if plus_one else layout.Same())
    index, inner = match.groups()
    block = f"blk.{index}."
    if ".experts." in inner:
        return _experts(block, inner.rpartition(".")[2], family, there)
    if inner == "self_attn.sinks":
        return Rule((_first(there, f"{block}attn_sinks.weight", f"{block}attn_sinks"),), _SAME)
    module, _, kind = inner.rpartition(".")
    names = {**_INNER, **(_GEMMA if family.startswith("gemma") else {})}
    if family == "gpt_oss":
        names |= _GPT_OSS
    usual = f"{block}{names[module]}.{kind}"
    if family.startswith("gemma") and module.endswith("norm"):
        return Rule((usual,), layout.PlusOne())
    if family in ("llama", "mistral") and module in ("self_attn.q_proj", "self_attn.k_proj"):
        return Rule((usual,), layout.RotaryPairs(_heads(config)[module]))
    if family == "gpt_oss":
        return _gpt_oss(block, module, kind, usual, config, there)
    return Rule((usual,), _SAME)


_SAME = layout.Same()


def _first(there: Container[str], *spellings: str) -> str:
    return next((name for name in spellings if name in there), spellings[0])


def _heads(config: Any) -> dict[str, int]:
    return {
        "self_attn.q_proj": config.num_attention_heads,
        "self_attn.k_proj": config.num_key_value_heads,
        "self_attn.v_proj": config.num_key_value_heads,
    }


def _gpt_oss(
    block: str, module: str, kind: str, usual: str, config: Any, there: Container[str]
) -> Rule:
    """Ollama's converter: attn_out, ffn_norm, and from OpenAI's own files q, k and v in one."""
    other = {"self_attn.o_proj": "attn_out", "post_attention_layernorm": "ffn_norm"}
    fused = f"{block}attn_qkv.{kind}"
    heads = _heads(config)
    if module in heads and usual not in there and fused in there:
        names = list(heads)
        rows = [heads[name] * head_dim(config) for name in names]
        start = sum(rows[: names.index(module)])
        return Rule((fused,), layout.Rows(start, start + heads[module] * head_dim(config)))
    return Rule((_first(there, usual, f"{block}{other.get(module, '')}.{kind}"),), _SAME)


def _experts(block: str, projection: str, family: str, there: Container[str]) -> Rule:
    """Stacked experts, [E, out, in] in GGUF; gpt-oss has [E, in, out], gate and up by turns."""
    kind = "bias" if projection.endswith("_bias") else "weight"
    gpt_oss = family == "gpt_oss"
    if projection.startswith("down_proj"):
        turned = gpt_oss and kind == "weight"
        name = f"{block}ffn_down_exps.{kind}"
        return Rule((name,), layout.Transposed() if turned else _SAME)
    together = f"{block}ffn_gate_up_exps.{kind}"
    if gpt_oss and together in there:  # as Ollama's converter leaves it: interleaved, not split
        return Rule((together,), layout.Transposed() if kind == "weight" else _SAME)
    parts = (f"{block}ffn_gate_exps.{kind}", f"{block}ffn_up_exps.{kind}")
    if gpt_oss:
        return Rule(parts, layout.Interleaved(turned=kind == "weight"))
    return Rule(parts, layout.Halves())
