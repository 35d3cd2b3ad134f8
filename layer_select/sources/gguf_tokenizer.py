"""The tokenizer of a GGUF file, rebuilt from its metadata.

The tables are those of `transformers`: how each named split cuts text, and merges from scores. Its
own conversion is not used but for Gemma: it gives every vocabulary GPT-2's `<|endoftext|>`, which
Llama 3 lacks, and leaves out the token before a text, the normaliser of Qwen, and the rule of
Llama 3 and Tekken that a word of the vocabulary is never merged from parts. A split that is not
known is an error, for the ids would be wrong in silence.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gguf import TokenType

from rayrun.config import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

GPT2_SPLITS = ("gpt-2", "gpt2")
WHOLE_WORDS = ("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "tekken")
"""Splits whose vocabularies are looked up before merging (llama.cpp: ignore_merges)."""
BOS_BY_DEFAULT = ("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "tekken")
NORMALISED = ("qwen2", "qwen35", "deepseek-r1-qwen")
WHOLE = "tokenizer.huggingface.json"
"""Some files carry the original tokenizer.json as it is."""


def tokenizer_from(metadata: Mapping[str, Any], where: str) -> "PreTrainedTokenizerFast":
    """The tokenizer.

    Raises:
        ConfigError: no tokenizer in the file, or one of a kind or split that is not known.
    """
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    if WHOLE in metadata:
        try:
            backend = Tokenizer.from_str(metadata[WHOLE])
        except Exception as error:  # the library raises bare Exceptions
            raise ConfigError(f"{where}: {WHOLE} cannot be read: {error}") from None
    else:
        backend = _rebuilt(metadata, where)
    return PreTrainedTokenizerFast(tokenizer_object=backend, **_special(metadata))


def _rebuilt(metadata: Mapping[str, Any], where: str) -> Any:
    from transformers.integrations.gguf import gguf_tokenizer_mapping as theirs

    given = {
        name: metadata[f"tokenizer.{key}"]
        for key, name in theirs.GGUF_TOKENIZER_MAPPING["tokenizer"].items()
        if f"tokenizer.{key}" in metadata
    }
    kind, split = given.get("tokenizer_type"), given.get("pre_tokenizer_type", "")
    if not given.get("tokens") or kind not in ("gpt2", "llama"):
        raise ConfigError(
            f"{where}: tokenizer.ggml.model must be gpt2 or llama, with tokenizer.ggml.tokens; "
            f"found {kind!r} with {len(given.get('tokens') or ())} tokens"
        )
    for name in ("bos", "eos", "unknown", "padding"):
        index = metadata.get(f"tokenizer.ggml.{name}_token_id", 0)
        if not 0 <= index < len(given["tokens"]):
            raise ConfigError(
                f"{where}: tokenizer.ggml.{name}_token_id must name one of the "
                f"{len(given['tokens'])} tokens, found {index}; the file is damaged"
            )
    known = (*GPT2_SPLITS, *theirs.GGUF_PRE_TOKENIZER_SPLITS)
    if kind == "gpt2" and split not in known:
        raise ConfigError(
            f"{where}: tokenizer.ggml.pre must be one of {', '.join(sorted(known))}; found "
            f"{split!r}: how this vocabulary splits text is not known here; use the model's "
            "Hugging Face folder"
        )
    if kind == "gpt2":
        backend = _byte_level(given, split)
    elif str(metadata["general.architecture"]).startswith("gemma"):
        backend, _ = theirs.convert_gguf_tokenizer(str(metadata["general.architecture"]), given)
    else:
        backend = _sentencepiece(given, metadata.get("tokenizer.ggml.add_space_prefix", True))
    _add_ends(backend, metadata, given)
    return backend


def _byte_level(given: Mapping[str, Any], split: str) -> Any:
    """BPE on bytes spelled as letters."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers
    from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split
    from transformers.integrations.gguf import gguf_tokenizer_mapping as theirs

    kinds = given.get("token_type") or [TokenType.NORMAL] * len(given["tokens"])
    vocabulary = {
        token: index
        for index, (token, kind) in enumerate(zip(given["tokens"], kinds, strict=True))
        if kind != TokenType.UNUSED
    }
    merges = theirs.get_merges(given) if "merges" in given else []
    backend = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=split in WHOLE_WORDS))
    if split in GPT2_SPLITS:
        backend.pre_tokenizer = ByteLevel(add_prefix_space=False)
    else:
        pattern = Regex(theirs.GGUF_PRE_TOKENIZER_SPLITS[split])
        bytes_only = ByteLevel(add_prefix_space=False, use_regex=False)
        backend.pre_tokenizer = Sequence([Split(pattern, behavior="isolated"), bytes_only])
    if split in NORMALISED:
        backend.normalizer = normalizers.NFC()
    backend.decoder = decoders.ByteLevel()
    _add_tokens(backend, given)
    return backend


def _sentencepiece(given: Mapping[str, Any], prefix: bool) -> Any:
    """BPE whose merges are ranked by the scores of what they make; bytes where nothing fits."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers.integrations.gguf import gguf_tokenizer_mapping as theirs

    vocabulary = {token: index for index, token in enumerate(given["tokens"])}
    model = models.BPE(vocabulary, theirs.get_merges(given), fuse_unk=True, byte_fallback=True)
    if (unknown := given.get("unk_token_id")) is not None:
        model.unk_token = given["tokens"][unknown]
    backend = Tokenizer(model)
    scheme = "first" if prefix else "never"
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    strip = [decoders.Strip(content=" ", left=1)] if prefix else []
    backend.decoder = decoders.Sequence([*steps, *strip])
    _add_tokens(backend, given)
    return backend


def _add_tokens(backend: Any, given: Mapping[str, Any]) -> None:
    """Have control tokens and those a user defined found whole in a text."""
    from tokenizers import AddedToken

    special, plain = [], []
    for token, kind in zip(given["tokens"], given.get("token_type") or (), strict=False):
        if kind in (TokenType.CONTROL, TokenType.UNKNOWN):
            special.append(AddedToken(token, normalized=False, special=True))
        elif kind == TokenType.USER_DEFINED:
            plain.append(AddedToken(token, normalized=False, special=False))
    backend.add_special_tokens(special)
    backend.add_tokens(plain)


def _add_ends(backend: Any, metadata: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Have the tokens put before and after a text that the file asks for."""
    from tokenizers import processors

    tokens = given["tokens"]
    usual = given["tokenizer_type"] == "llama" or given.get("pre_tokenizer_type") in BOS_BY_DEFAULT
    ids = {name: metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos")}
    wanted = {
        "bos": metadata.get("tokenizer.ggml.add_bos_token", usual),
        "eos": metadata.get("tokenizer.ggml.add_eos_token", False),
    }
    ends = {
        name: (tokens[index], index)
        for name, index in ids.items()
        if index is not None and wanted[name]
    }
    first = [ends["bos"][0]] if "bos" in ends else []
    last = [ends["eos"][0]] if "eos" in ends else []
    if ends:
        backend.post_processor = processors.TemplateProcessing(
            single=[*first, "$A", *last],
            pair=[*first, "$A", *last, *first, "$B", *last],
            special_tokens=list(ends.values()),
        )
    elif given["tokenizer_type"] == "gpt2":
        backend.post_processor = processors.ByteLevel(trim_offsets=False)
    else:
        backend.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B")


def _special(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Names of the special tokens, and the chat template."""
    tokens = metadata.get("tokenizer.ggml.tokens") or ()
    keys = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    found = {
        f"{name}_token": tokens[at]
        for name, key in keys.items()
        if (at := metadata.get(f"tokenizer.ggml.{key}_token_id")) is not None and at < len(tokens)
    }
    template = metadata.get("tokenizer.chat_template")
    return {**found, **({"chat_template": template} if template else {})}
