"""A tokenizer's entries in a GGUF file.

A byte-level BPE is written in the format's own words, so that every runtime tokenizes with it; the
original tokenizer.json goes along (`tokenizer.huggingface.json`), so that reading back is exact.
"""

import json
from typing import TYPE_CHECKING, Any

from gguf import GGUFWriter, TokenType

from layer_select.sources.gguf_tokenizer import WHOLE
from rayrun.config import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def tokenizer_entries(
    writer: GGUFWriter, tokenizer: "PreTrainedTokenizerFast", config: Any, where: str
) -> None:
    """Write vocabulary, merges, split, special tokens and chat template.

    Raises:
        ConfigError: no byte-level BPE, or a way of splitting text that GGUF has no name for.
    """
    text = tokenizer.backend_tokenizer.to_str()
    parts = json.loads(text)
    model, split = parts["model"], _split(parts)
    if model["type"] != "BPE" or split is None or model.get("byte_fallback"):
        raise ConfigError(
            f"{where}: a byte-level BPE tokenizer whose split has a name in GGUF (gpt-2, "
            f"llama-bpe, qwen2, gpt-4o, tekken) can be written; found {model['type']} with the "
            f"pre-tokenizer {json.dumps(parts.get('pre_tokenizer'))[:200]}"
        )
    added = {entry["id"]: entry for entry in parts["added_tokens"]}
    spelled = {index: token for token, index in tokenizer.get_vocab().items()}
    rows = range(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split)
    writer.add_token_list([spelled.get(row, f"[PAD{row}]") for row in rows])
    writer.add_token_types([_kind(row, spelled, added) for row in rows])
    merges = model["merges"]
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
    for name, add in (
        ("bos", writer.add_bos_token_id),
        ("eos", writer.add_eos_token_id),
        ("unk", writer.add_unk_token_id),
        ("pad", writer.add_pad_token_id),
    ):
        if (index := getattr(tokenizer, f"{name}_token_id", None)) is not None:
            add(index)
    bare = tokenizer.backend_tokenizer.encode("a", add_special_tokens=False).ids
    whole = tokenizer.backend_tokenizer.encode("a").ids
    writer.add_add_bos_token(whole[: len(whole) - len(bare)] == [tokenizer.bos_token_id])
    writer.add_add_eos_token(len(whole) > len(bare) and whole[-1] == tokenizer.eos_token_id)
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)
    writer.add_string(WHOLE, text)


def _kind(row: int, spelled: dict[int, str], added: dict[int, Any]) -> TokenType:
    if row not in spelled:
        return TokenType.UNUSED
    if row not in added:
        return TokenType.NORMAL
    return TokenType.CONTROL if added[row]["special"] else TokenType.USER_DEFINED


def _split(parts: dict[str, Any]) -> str | None:
    """GGUF's name of the pre-tokenizer; None if it has none."""
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    given = parts.get("pre_tokenizer") or {}
    steps = given.get("pretokenizers", [given])
    if [step.get("type") for step in steps] == ["ByteLevel"]:
        plain = steps[0].get("use_regex", True) and not steps[0].get("add_prefix_space")
        return "gpt-2" if plain and not parts.get("normalizer") else None
    if [step.get("type") for step in steps] != ["Split", "ByteLevel"]:
        return None
    pattern = steps[0]["pattern"].get("Regex")
    return next((n for n, known in GGUF_PRE_TOKENIZER_SPLITS.items() if known == pattern), None)
