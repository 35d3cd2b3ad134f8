"""The small decoder's own tokenizer: byte-level BPE (Sennrich et al. 2016), GPT-2's pre-tokenizer.

Bytes know every script, and GPT-2's is a pre-tokenizer that every runtime has.
"""

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

END = "<|endoftext|>"
"""Begins a text, ends it and pads it; token 0."""


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A tokenizer of at most `vocabulary` tokens: `END`, 256 bytes, the commonest merges."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return wrapped(tokenizer.to_str())


def wrapped(content: str) -> PreTrainedTokenizerFast:
    """The tokenizer of a `tokenizer.json`, with `END` in its three roles."""
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(content),
        bos_token=END,
        eos_token=END,
        pad_token=END,
        clean_up_tokenization_spaces=False,
    )
