"""The `data:` and `task:` sections: whose histories, and what the model is asked about them."""

from typing import Annotated, Literal

from pydantic import (
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
)

from rayrun.config import Config
from rayrun.data.sequence_source import SequenceData

__all__ = [
    "HeadTask",
    "LikelihoodTask",
    "Prompt",
    "RatingTask",
    "SequenceData",
    "Task",
    "YesNoTask",
]

RATING = "{rating}"
"""In an item template: the rating that the user gave."""
LOWEST, HIGHEST = 1, 5
"""Stars of a rating."""


def _with_title(template: str, name: str) -> str:
    if template.count("{title}") != 1:
        raise ValueError(f"{name} must hold {{title}} exactly once, found {template!r}")
    return template


class Prompt(Config):
    """How a history becomes text: `before`, one `item` for each event (oldest first), `after`."""

    before: str = ""
    item: str = "{title}\n"
    after: str = ""
    title_characters: NonNegativeInt = 0
    """Characters of a title that are read at most, in histories as in item vectors; 0: all. One
    very long title otherwise decides how long every prompt may have to be."""
    bos: bool = True
    """Start with the tokenizer's beginning-of-text token, where it has one."""

    @field_validator("item")
    @classmethod
    def _names_the_title(cls, item: str) -> str:
        if item.count(RATING) > 1:
            raise ValueError(f"prompt.item may hold {RATING} once, found {item!r}")
        return _with_title(item, "prompt.item")

    @property
    def shows_ratings(self) -> bool:
        """Whether the item template holds `{rating}`."""
        return RATING in self.item


class _Task(Config):
    prompt: Prompt = Prompt()
    max_history: PositiveInt = 20
    """Events in a prompt at most, the most recent ones."""
    max_tokens: PositiveInt = 256
    """Tokens of a prompt at most; titles that do not fit are left out whole, oldest first."""
    calibration: PositiveInt = 128
    """Samples that scores and selection are computed on."""
    calibration_from: Literal["train", "validation", "test"] = "train"
    """The part that calibration targets are drawn from. Sharing a target with validation or test
    is refused."""
    validation: NonNegativeInt = 256
    """Samples that early stopping watches; 0: none."""
    test: NonNegativeInt = 512
    """Samples of the final table; 0: none."""
    seed: int = 0
    """Chooses the samples, and draws the candidates of yes/no questions."""
    micro_batch: PositiveInt = 32
    """Samples of one forward pass. Batches are cut before they are shared out, so that results do
    not depend on the number of workers."""

    @field_validator("prompt")
    @classmethod
    def _shows_what_it_has(cls, prompt: Prompt) -> Prompt:
        if prompt.shows_ratings and not issubclass(cls, RatingTask):
            raise ValueError(
                f"prompt.item may hold {RATING} with task.type rating alone, found {prompt.item!r}"
            )
        return prompt


class HeadTask(_Task):
    """Next item by the last hidden state · item vectors, over the full catalogue."""

    type: Literal["head"] = "head"


class YesNoTask(_Task):
    """Is this the next item? Logits of two answers after the question (TALLRec)."""

    type: Literal["yes_no"] = "yes_no"
    question: str = "Next: {title}? "
    answers: tuple[str, str] = ("no", "yes")
    """Negative and positive answer; their first tokens must differ."""

    @field_validator("question")
    @classmethod
    def _names_the_title(cls, question: str) -> str:
        return _with_title(question, "question")


class LikelihoodTask(_Task):
    """Log-likelihood of the next title's tokens, its end included."""

    type: Literal["likelihood"] = "likelihood"


class RatingTask(_Task):
    """How many stars, 1 to 5, does the user give this item? By `rating_head.safetensors`.

    `prompt.item` may hold `{rating}`: the ratings given before are then shown.
    """

    type: Literal["rating"] = "rating"
    head: Literal["regression", "classes"] = "regression"
    """A number, or the chances of five classes."""
    question: str = "Rating of {title}: "
    """Ends the prompt; names the item that is rated."""
    fit_samples: PositiveInt = 4096
    """Training events at most that `layer-select fit-head` fits the head on."""
    ridge: tuple[PositiveFloat, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
    """Weights of the penalty that `fit-head` tries; the one of least validation loss is kept. The
    first is taken where there are no validation samples."""

    @field_validator("question")
    @classmethod
    def _names_the_title(cls, question: str) -> str:
        return _with_title(question, "question")

    @field_validator("ridge")
    @classmethod
    def _at_least_one(cls, ridge: tuple[float, ...]) -> tuple[float, ...]:
        if not ridge:
            raise ValueError("ridge must hold at least one weight, found none")
        return ridge


Task = Annotated[HeadTask | YesNoTask | LikelihoodTask | RatingTask, Field(discriminator="type")]
