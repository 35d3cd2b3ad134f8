"""The `evaluate:` section: which models stand in the table, and how they are compared."""

from typing import Annotated, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from layer_select.task.config import SequenceData
from rayrun.config import Config


class Popularity(Config):
    """Items by their number of training events."""

    type: Literal["popularity"] = "popularity"


class SasRec(Config):
    """Self-attentive sequential recommendation over item ids, with full-softmax cross-entropy."""

    type: Literal["sasrec"] = "sasrec"
    width: PositiveInt = 64
    layers: PositiveInt = 2
    heads: PositiveInt = 2
    max_length: PositiveInt = 50
    """Events of a history that are read at most, the most recent ones."""
    dropout: float = Field(default=0.5, ge=0, lt=1)
    lr: PositiveFloat = 1e-3
    weight_decay: NonNegativeFloat = 0.0
    batch_users: PositiveInt = 256
    """Histories of one optimizer step."""
    epochs: PositiveInt = 200
    """At most."""
    validation_users: PositiveInt = 10_000
    """Users at most whose last but one event early stopping watches."""
    patience: PositiveInt = 10
    """Epochs without a better validation NDCG@10 after which training stops; the best stays."""
    seed: int = 0

    @model_validator(mode="after")
    def _heads_divide(self) -> "SasRec":
        if self.width % self.heads:
            raise ValueError(
                f"width must be a multiple of heads, found {self.width} and {self.heads}"
            )
        return self


class _Layers(Config):
    heal: bool = True
    """Heal it as the student was healed: by the section `heal:`, with the same steps, rows and
    seed. false: only the layers are left out."""


class FirstK(_Layers):
    """The first layers, as many as the student has."""

    type: Literal["first_k"] = "first_k"


class EveryNth(_Layers):
    """Every n-th layer."""

    type: Literal["every_n"] = "every_n"


class Random(_Layers):
    """Layers drawn at random; the table shows the mean over the draws, and each draw."""

    type: Literal["random"] = "random"
    draws: PositiveInt = 5
    seed: int = 0


class BlockInfluence(_Layers):
    """The layers of the highest Block Influence; needs `inputs.scores`."""

    type: Literal["block_influence"] = "block_influence"


class Scratch(Config):
    """The student's architecture with weights drawn anew, trained with the same steps and rows."""

    type: Literal["scratch"] = "scratch"


class Narrow(Config):
    """A narrower decoder distilled by the section `heal:`, the traditional way to a small model."""

    type: Literal["narrow"] = "narrow"
    layers: NonNegativeInt = 0
    """0: as many as the student has."""
    width: PositiveInt = 512
    feed_forward: PositiveInt = 1024
    heads: PositiveInt = 8


Rival = Annotated[
    Popularity | SasRec | FirstK | EveryNth | Random | BlockInfluence | Scratch | Narrow,
    Field(discriminator="type"),
]


class Timing(Config):
    """Prefill of one batch and generation behind it, full model and student in turn."""

    batch: PositiveInt = 32
    """Sequences."""
    length: NonNegativeInt = 0
    """Tokens of each; 0: `task.max_tokens`."""
    repeats: NonNegativeInt = 20
    """Measured passes of each model; 0: nothing is timed."""
    warmup: NonNegativeInt = 3
    """Passes of each before those."""
    decode_tokens: NonNegativeInt = 16
    """Tokens generated behind each sequence with cached keys and values; 0: generation is not
    timed."""


class Evaluate(Config):
    """What `layer-select evaluate` compares."""

    rivals: tuple[Rival, ...] = (Popularity(), SasRec())
    timing: Timing = Timing()
    bootstrap: int = Field(default=1000, ge=100)
    """Replicates of the user bootstrap behind every interval."""
    seen: Literal["rank", "exclude"] = "rank"
    """Whether items of the user's own history take part in the ranking. The target always does."""
    data: SequenceData | None = None
    """Another domain, on which the models are also evaluated as they are; popularity and SASRec
    are trained on its training events."""
    seed: int = 0
    """Of the bootstrap."""

    @model_validator(mode="after")
    def _each_once(self) -> "Evaluate":
        types = [rival.type for rival in self.rivals]
        if twice := sorted({name for name in types if types.count(name) > 1}):
            raise ValueError(f"rivals must name each type once, found twice: {', '.join(twice)}")
        return self
