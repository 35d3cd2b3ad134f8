"""Tokenizers: the same ids from a folder and from the metadata of a GGUF file."""

from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFReader, TokenType
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

from layer_select.sources import Gguf
from layer_select.sources.gguf_tokenizer import tokenizer_from
from layer_select.sources.gguf_write import write_gguf
from rayrun.config import ConfigError
from tests.layer_select.sources.forms import folder, model_of, opened, rewritten

TEXTS = [
    "The Legend of Zelda: Breath of the Wild (2017)",
    "足球经理 2018,收藏版 — 中文标题",
    "  two  spaces, a\ttab\nand 12345 numbers; it's the café’s naïve Fußball",
    "数据结构与算法分析 and 🎮 emoji",
    "cafe\u0301 in two characters",
    "<|end|>inside<|end|>",
    "",
]
CORPUS = TEXTS * 3 + ["the wild legend of the football manager", "标题 标题 中文 收藏"]
END = "<|end|>"


def byte_level(split: str = "gpt-2", vocabulary: int = 420) -> PreTrainedTokenizerFast:
    """A byte-level BPE that splits as GGUF's `split` does."""
    tokenizer = Tokenizer(models.BPE())
    if split == "gpt-2":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        pattern = Regex(GGUF_PRE_TOKENIZER_SPLITS[split])
        steps = [
            pre_tokenizers.Split(pattern, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    if split == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    if split == "llama-bpe":
        tokenizer.model.ignore_merges = True
        tokenizer.post_processor = TemplateProcessing(
            single=f"{END} $A", pair=f"{END} $A {END} $B", special_tokens=[(END, 0)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END, eos_token=END, pad_token=END
    )


def sentencepiece() -> tuple[PreTrainedTokenizerFast, dict[str, Any]]:
    """A BPE as Llama 2 has it, and the metadata of a GGUF file that describe it."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    steps = [
        decoders.Replace("▁", " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
        decoders.Strip(" ", 1, 0),
    ]
    tokenizer.decoder = decoders.Sequence(steps)
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    alphabet = sorted(
        {c for text in CORPUS[1:] for c in text.replace(" ", "▁") if c.isascii()} | {"▁"}
    )
    vocab = {token: index for index, token in enumerate([*special, *alphabet])}
    merges = []
    for word in ("▁the", "ball", "▁of", "the", "wild", "12"):
        for end in range(2, len(word) + 1):
            pair = (word[: end - 1], word[end - 1])
            if word[:end] not in vocab:
                merges.append(pair)
                vocab[word[:end]] = len(vocab)
    bpe = models.BPE(
        vocab=vocab, merges=merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True
    )
    tokenizer.model = bpe
    tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
    )
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    ranks = {a + b: -float(rank + 1) for rank, (a, b) in enumerate(merges)}
    kinds = [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL, *[TokenType.BYTE] * 256]
    metadata = {
        "general.architecture": "llama",
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": list(vocab),
        "tokenizer.ggml.scores": [
            ranks.get(token, -1e6 if i > 258 else 0.0) for i, token in enumerate(vocab)
        ],
        "tokenizer.ggml.token_type": [int(k) for k in kinds] + [1] * (len(vocab) - len(kinds)),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }
    return wrapped, metadata


def same(ours: PreTrainedTokenizerFast, theirs: PreTrainedTokenizerFast) -> None:
    for text in TEXTS:
        expected = theirs(text)["input_ids"]
        assert ours(text)["input_ids"] == expected, text
        assert ours.decode(expected) == theirs.decode(expected)
    assert (ours.bos_token, ours.eos_token) == (theirs.bos_token, theirs.eos_token)


@pytest.mark.parametrize("split", ["gpt-2", "llama-bpe", "qwen2", "gpt-4o"])
def test_a_byte_level_tokenizer_goes_through_gguf(split: str, tmp_path: Path) -> None:
    tokenizer = byte_level(split)
    model = model_of("llama", layers=1)
    model.resize_token_embeddings(512)
    checkpoint = opened(folder(model, tmp_path / "hf"))
    tokenizer.save_pretrained(tmp_path / "hf")
    same(checkpoint.tokenizer(), tokenizer)
    write_gguf(checkpoint, tmp_path / "small.gguf", tokenizer=checkpoint.tokenizer())
    same(Gguf(path=str(tmp_path / "small.gguf")).open().tokenizer(), tokenizer)
    # Without the original beside them, the entries that every runtime reads say the same.
    bare = rewritten(
        tmp_path / "small.gguf", tmp_path / "bare.gguf", drop=("tokenizer.huggingface.json",)
    )
    assert "tokenizer.huggingface.json" not in GGUFReader(bare).fields
    same(Gguf(path=str(bare)).open().tokenizer(), tokenizer)


def test_a_sentencepiece_tokenizer_comes_back_from_its_scores() -> None:
    expected, metadata = sentencepiece()
    found = tokenizer_from(metadata, "file")
    same(found, expected)
    assert found("足球")["input_ids"][1:] != [0], "bytes stand for what the vocabulary lacks"
    no_prefix = tokenizer_from({**metadata, "tokenizer.ggml.add_space_prefix": False}, "file")
    assert no_prefix("the wild")["input_ids"] != expected("the wild")["input_ids"]
    assert (
        no_prefix.decode(no_prefix("the wild")["input_ids"], skip_special_tokens=True) == "the wild"
    )
    bare = tokenizer_from({**metadata, "tokenizer.ggml.add_bos_token": False}, "file")
    assert bare("wild")["input_ids"] == expected("wild")["input_ids"][1:]
    both = tokenizer_from({**metadata, "tokenizer.ggml.add_eos_token": True}, "file")
    assert both("wild")["input_ids"] == [*expected("wild")["input_ids"], 2]


@pytest.mark.parametrize(("split", "tokens"), [("llama-bpe", ["abc"]), ("gpt-2", ["a", "b", "c"])])
def test_llama_3_looks_words_up_before_it_merges(split: str, tokens: list[str]) -> None:
    metadata = {
        "general.architecture": "llama",
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": split,
        "tokenizer.ggml.tokens": ["a", "b", "c", "abc"],
        "tokenizer.ggml.merges": [],
    }
    assert tokenizer_from(metadata, "file").tokenize("abc") == tokens


def test_gemma_s_has_no_space_before_a_text() -> None:
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{b:02X}>" for b in range(256))]
    tokens = [*special, "▁", *"abcdefghijklmnopqrstuvwxyz", "th", "the", "▁the", "<start_of_turn>"]
    kinds = [3] * 3 + [2, 4] + [6] * 256 + [1] * 30 + [3]
    metadata = {
        "general.architecture": "gemma3",
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.0] * len(tokens),
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.eos_token_id": 1,
    }
    tokenizer = tokenizer_from(metadata, "file")
    ids = tokenizer("the the足<start_of_turn>")["input_ids"]
    assert [tokens[index] for index in ids[:3]] == ["<bos>", "the", "▁the"]
    assert ids[-1] == len(tokens) - 1
    assert tokenizer.decode(ids, skip_special_tokens=True) == "the the足"
    assert len(tokenizer) == len(tokens)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer.ggml.model": "rwkv"}, "must be gpt2 or llama, .* found 'rwkv'"),
        ({"tokenizer.ggml.tokens": []}, "found 'llama' with 0 tokens"),
        (
            {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "jais"},
            "pre must be one of .*qwen2.*; found 'jais': how this vocabulary splits",
        ),
        (
            {"tokenizer.ggml.eos_token_id": 10**6},
            r"eos_token_id must name one of the \d+ tokens, found 1000000",
        ),
        ({"tokenizer.huggingface.json": "{"}, r"huggingface\.json cannot be read"),
    ],
)
def test_a_tokenizer_that_is_not_known_is_refused(change: dict[str, Any], message: str) -> None:
    _, metadata = sentencepiece()
    with pytest.raises(ConfigError, match=message):
        tokenizer_from({**metadata, **change}, "file")


def test_a_tokenizer_must_fit_its_model(tmp_path: Path) -> None:
    checkpoint = opened(folder(model_of("llama", layers=1), tmp_path))
    with pytest.raises(ConfigError, match=r"a tokenizer\.json is needed and there is none"):
        checkpoint.tokenizer()
    byte_level().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"ids go up to \d+, the model embeds 97 \(0 to 96\)"):
        checkpoint.tokenizer()
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"tokenizer\.json cannot be read"):
        checkpoint.tokenizer()


def test_a_tokenizer_without_a_name_in_gguf_is_not_written(tmp_path: Path) -> None:
    checkpoint = opened(folder(model_of("llama", layers=1), tmp_path / "hf"))
    words = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    )
    for tokenizer in (words, sentencepiece()[0]):
        with pytest.raises(ConfigError, match="whose split has a name in GGUF"):
            write_gguf(checkpoint, tmp_path / "x.gguf", tokenizer=tokenizer)
