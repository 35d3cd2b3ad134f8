"""The `pretrain:` section: a small decoder trained from nothing on histories of titles."""

from typing import Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from rayrun.config import Config


def check_heads(width: int, heads: int, key_value_heads: int) -> None:
    """Heads share the width evenly, in even parts (rotary positions turn pairs).

    Raises:
        ValueError: they do not.
    """
    if width % heads or (width // heads) % 2:
        raise ValueError(f"width must be an even multiple of heads, found {width} and {heads}")
    if heads % key_value_heads:
        raise ValueError(
            f"heads must be a multiple of key_value_heads, found {heads} and {key_value_heads}"
        )


class Architecture(Config):
    """A decoder of the Llama type."""

    layers: PositiveInt = 12
    width: PositiveInt = 128
    """D, of the residual stream."""
    heads: PositiveInt = 4
    key_value_heads: PositiveInt = 2
    feed_forward: PositiveInt = 344
    vocabulary: int = Field(default=1024, ge=300)
    """Tokens of the byte-level BPE at most: 256 bytes, special tokens and merges."""

    @model_validator(mode="after")
    def _heads_divide(self) -> "Architecture":
        check_heads(self.width, self.heads, self.key_value_heads)
        return self


class LossWeights(Config):
    """How the three losses become one; each is a mean over its own targets."""

    next_item: NonNegativeFloat = 1.0
    """Cross-entropy over the catalogue at the end of every title."""
    next_token: NonNegativeFloat = 1.0
    """Cross-entropy of every next token: gives likelihood its meaning."""
    answer: NonNegativeFloat = 0.5
    """Cross-entropy of the answer to a yes/no question."""


class Pretrain(Config):
    """How the small decoder is made."""

    model: Architecture = Architecture()
    weights: LossWeights = LossWeights()
    yes_no_share: float = Field(default=0.1, ge=0, le=1)
    """Share of the training texts that end in a yes/no question and its answer."""
    epochs: PositiveInt = 8
    row_tokens: PositiveInt = 256
    """Texts are packed into rows of this many tokens; they do not see each other."""
    batch_rows: PositiveInt = 16
    """Rows of one optimizer step over all workers."""
    lr: PositiveFloat = 2e-3
    warmup: float = Field(default=0.05, ge=0, lt=1)
    """Share of the steps over which the rate rises; then it falls as a cosine to a tenth."""
    weight_decay: NonNegativeFloat = 0.05
    event_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Each event of a training text is left out of it with this probability."""
    clip_norm: NonNegativeFloat = 1.0
    precision: Literal["fp32", "bf16"] = "fp32"
    checkpoint_every_steps: PositiveInt = 200
    max_failures: NonNegativeInt = 2
    bootstrap: int = Field(default=1000, ge=100)
    """Replicates behind the interval of (model − popularity)."""
    seed: int = 0
