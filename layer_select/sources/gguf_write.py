"""Writing a checkpoint as a GGUF file: the inverse of reading one, tensor by tensor.

Only what the runtimes of the format compute as `transformers` does is written; a configuration that
GGUF has no entry for is refused, never approximated.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from gguf import GGUFWriter, quants
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType
from torch import Tensor

from layer_select.families import family_of, follows_period
from layer_select.sources.checkpoint import Checkpoint
from layer_select.sources.deciding import head_dim, layer_types
from layer_select.sources.gguf_config import GEMMA2_27B, GEMMA3_27B, query_scalar
from layer_select.sources.gguf_item_head import item_head_entry
from layer_select.sources.gguf_names import rule
from layer_select.sources.gguf_rope import llama3_factors
from layer_select.sources.gguf_write_tokenizer import tokenizer_entries
from layer_select.sources.reading import reading
from layer_select.sources.skeleton import skeleton, tied_names
from layer_select.task.head import ITEM_HEAD
from rayrun.config import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

FILE_TYPES = {
    "F32": LlamaFileType.ALL_F32,
    "F16": LlamaFileType.MOSTLY_F16,
    "BF16": LlamaFileType.MOSTLY_BF16,
    "Q8_0": LlamaFileType.MOSTLY_Q8_0,
}
_LARGEST = {"gemma2": GEMMA2_27B, "gemma3_text": GEMMA3_27B}


def write_gguf(
    checkpoint: Checkpoint,
    path: Path,
    *,
    type: str = "F32",
    tokenizer: "PreTrainedTokenizerFast | None" = None,
    name: str = "",
) -> None:
    """Write the model; matrices in `type`, vectors and routers always in float32, and the
    projection of its item head, where it has one, as metadata.

    Args:
        checkpoint: the model.
        path: the file to write.
        type: F32, F16, BF16 or Q8_0.
        tokenizer: to write into the file; None: none.
        name: `general.name`.

    Raises:
        ConfigError: another type, a tokenizer that GGUF has no spelling for, or a configuration
            that GGUF cannot say; nothing is written then.
    """
    config = checkpoint.config
    writer, extra = _described(checkpoint, path, type, tokenizer)
    if name:
        writer.add_name(name)
    model = skeleton(config)
    tied = tied_names(model)
    names = [known for known in model.state_dict() if known not in tied]
    for known in names:
        found = rule(known, config)
        shape = torch.empty(checkpoint.shapes[known].shape, device="meta")
        for target, part in zip(found.tensors, found.layout.write(shape), strict=True):
            _announce(writer, target, tuple(part.shape), _type_of(target, part.shape, type))
    for target, values in extra.items():
        _announce(writer, target, values.shape, GGMLQuantizationType.F32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    with reading(f"writing {path}", checkpoint.shapes.values(), len(names)) as bar:
        for known in names:
            found = rule(known, config)
            parts = found.layout.write(checkpoint.tensor(known, torch.float32))
            for target, part in zip(found.tensors, parts, strict=True):
                writer.write_tensor_data(_encoded(part, _type_of(target, part.shape, type)))
            bar.advance()
    for values in extra.values():
        writer.write_tensor_data(values)
    writer.close()


def check_sayable(
    checkpoint: Checkpoint,
    *,
    type: str = "F32",
    tokenizer: "PreTrainedTokenizerFast | None" = None,
) -> None:
    """What `write_gguf` would refuse, told before anything is written; arguments as there.

    Raises:
        ConfigError: as `write_gguf`.
    """
    _described(checkpoint, Path("nothing.gguf"), type, tokenizer)  # opened on the first write


def _described(
    checkpoint: Checkpoint, path: Path, type: str, tokenizer: "PreTrainedTokenizerFast | None"
) -> tuple[GGUFWriter, dict[str, np.ndarray]]:
    """A writer with the metadata in it, and tensors that belong to the configuration."""
    if type not in FILE_TYPES:
        raise ConfigError(f"a GGUF type must be one of {', '.join(FILE_TYPES)}; found {type!r}")
    config = checkpoint.config
    writer = GGUFWriter(path, family_of(config).gguf[0])
    extra = _entries(writer, config, checkpoint.where)
    writer.add_file_type(int(FILE_TYPES[type]))
    if tokenizer is not None:
        tokenizer_entries(writer, tokenizer, config, checkpoint.where)
    if (head := checkpoint.file(ITEM_HEAD)) is not None:
        item_head_entry(writer, head, config.hidden_size)
    return writer, extra


def _type_of(name: str, shape: Any, wanted: str) -> GGMLQuantizationType:
    """Vectors and routers stay exact, and rows that no block fits."""
    kind = GGMLQuantizationType[wanted]
    small = len(shape) == 1 or name.endswith(".bias") or ".ffn_gate_inp." in name
    return GGMLQuantizationType.F32 if small or shape[-1] % GGML_QUANT_SIZES[kind][0] else kind


def _announce(
    writer: GGUFWriter, name: str, shape: tuple[int, ...], kind: GGMLQuantizationType
) -> None:
    block, size = GGML_QUANT_SIZES[kind]
    count = int(np.prod(shape))
    dtype = np.dtype(np.float32)  # with raw_dtype it only says that `shape` counts numbers
    writer.add_tensor_info(name, shape, dtype, count // block * size, raw_dtype=kind)


def _encoded(tensor: Tensor, kind: GGMLQuantizationType) -> np.ndarray:
    values = np.ascontiguousarray(tensor.float().numpy())
    if kind == GGMLQuantizationType.BF16:
        return tensor.to(torch.bfloat16).contiguous().view(torch.int16).numpy()
    return quants.quantize(values, kind)


# ---------------------------------------------------------------------------------------------
# Metadata


def _entries(writer: GGUFWriter, config: Any, where: str) -> dict[str, np.ndarray]:
    """Write the configuration; return tensors that belong to it."""
    _refuse_what_is_lost(config, where)
    head, heads = head_dim(config), config.num_attention_heads
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    if experts := getattr(config, "num_local_experts", None):
        writer.add_expert_count(experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        width = getattr(config, "moe_intermediate_size", None) or config.intermediate_size
        writer.add_expert_feed_forward_length(width)
    if "sliding_attention" in layer_types(config):
        writer.add_sliding_window(config.sliding_window)
    if config.model_type == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
    if cap := getattr(config, "final_logit_softcapping", None):
        writer.add_final_logit_softcapping(cap)
    return _rope(writer, config, head, where)


def _rope(writer: GGUFWriter, config: Any, head: int, where: str) -> dict[str, np.ndarray]:
    near = config.rope_parameters.get("sliding_attention")
    given = _far(config)
    kind = given.get("rope_type", "default")
    writer.add_rope_freq_base(float(given["rope_theta"]))
    if near is not None:
        writer.add_float32(f"{writer.arch}.rope.freq_base_swa", float(near["rope_theta"]))
    if kind in ("linear", "yarn"):
        writer.add_string(f"{writer.arch}.rope.scaling.type", kind)
        writer.add_rope_scaling_factor(float(given["factor"]))
    if kind == "yarn":
        old = given.get("original_max_position_embeddings") or config.max_position_embeddings
        writer.add_rope_scaling_orig_ctx_len(old)
        writer.add_float32(
            f"{writer.arch}.rope.scaling.yarn_beta_fast", float(given.get("beta_fast") or 32.0)
        )
        writer.add_float32(
            f"{writer.arch}.rope.scaling.yarn_beta_slow", float(given.get("beta_slow") or 1.0)
        )
    if kind == "llama3":
        factors = llama3_factors(float(given["rope_theta"]), head, given)
        return {"rope_freqs.weight": factors.astype(np.float32)}
    if kind == "longrope":
        return {"rope_freqs.weight": np.array(given["long_factor"], np.float32)}
    return {}


def _far(config: Any) -> dict[str, Any]:
    """Rotary parameters of the layers that see everything."""
    return config.rope_parameters.get("full_attention") or config.rope_parameters


def _refuse_what_is_lost(config: Any, where: str) -> None:
    family = family_of(config)
    kind = config.model_type
    gemma = kind.startswith("gemma")
    types = layer_types(config)
    head, share = head_dim(config), config.hidden_size // config.num_attention_heads
    scalar = query_scalar(config.num_hidden_layers, share, head, _LARGEST.get(kind, 0))
    activation = getattr(config, "hidden_act", None) or config.hidden_activation
    rope = _far(config)
    known = ("default", "linear", "yarn", "llama3", "longrope")
    only: list[tuple[str, Any, Any]] = [
        ("activation", activation, "gelu_pytorch_tanh" if gemma else "silu"),
        ("query_pre_attn_scalar", getattr(config, "query_pre_attn_scalar", scalar), scalar),
        ("norm_topk_prob", getattr(config, "norm_topk_prob", True), True),
        ("decoder_sparse_step", getattr(config, "decoder_sparse_step", 1), 1),
        ("mlp_only_layers", list(getattr(config, "mlp_only_layers", None) or ()), []),
        ("swiglu_alpha", getattr(config, "swiglu_alpha", 1.702), 1.702),
        ("swiglu_limit", getattr(config, "swiglu_limit", 7.0), 7.0),
        ("use_bidirectional_attention", bool(getattr(config, "use_bidirectional_attention", 0)), 0),
        ("rope_type", rope.get("rope_type", "default"), known),
        ("truncate", rope.get("truncate", True) if rope.get("rope_type") == "yarn" else None,
         (kind != "gpt_oss", None)),
        ("long_factor", rope.get("long_factor"), (rope.get("short_factor"),)),
    ]  # fmt: skip
    if rope.get("rope_type") == "longrope":
        only.append(("attention_factor", rope.get("attention_factor"), 1.0))
    elif rope.get("attention_factor") is not None or rope.get("mscale") is not None:
        only.append(("attention_factor", rope.get("attention_factor"), None))
    if near := config.rope_parameters.get("sliding_attention"):
        only.append(("rope_type of sliding attention", near.get("rope_type"), "default"))
    for name, found, allowed in only:
        if found != allowed and not (isinstance(allowed, tuple) and found in allowed):
            raise ConfigError(
                f"{where}: GGUF cannot say {name} {found!r} of {kind} (its runtimes compute with "
                f"{allowed!r}); export to a Hugging Face folder instead"
            )
    windows = "sliding_attention" in types
    if windows if family.period == 1 else not follows_period(config, family.period):
        raise ConfigError(
            f"{where}: GGUF's runtimes take a layer's attention window from its index (period "
            f"{family.period}); these layer_types differ: {', '.join(types)[:120]}; choose layers "
            "under that period, or export to a Hugging Face folder"
        )
