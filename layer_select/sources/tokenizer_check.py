"""What every tokenizer must satisfy, wherever it came from."""

from typing import TYPE_CHECKING, Any

from rayrun.config import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def checked_tokenizer(
    tokenizer: "PreTrainedTokenizerFast", config: Any, where: str
) -> "PreTrainedTokenizerFast":
    """The tokenizer, if each of its ids has a row in the embedding (rows may be more: padding).

    Raises:
        ConfigError: an id without a row.
    """
    largest = max(tokenizer.get_vocab().values(), default=-1)
    if largest >= config.vocab_size:
        raise ConfigError(
            f"{where}: the tokenizer's ids go up to {largest}, the model embeds "
            f"{config.vocab_size} (0 to {config.vocab_size - 1}); they belong to different models"
        )
    return tokenizer
