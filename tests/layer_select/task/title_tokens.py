"""A tokenizer of single characters, trained on the titles: few tokens, any script."""

from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

SPECIAL = ["<s>", "<unk>"]


def character_tokenizer(texts) -> PreTrainedTokenizerFast:
    letters = sorted({letter for text in texts for letter in text})
    words = {word: number for number, word in enumerate([*SPECIAL, *letters])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )
