"""The `data:` and `task:` sections: whose histories, and what the model is asked about them."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, field_validator

from rayrun.config import Config
from rayrun.data.sequence_source import SequenceData

__all__ = ["HeadTask", "LikelihoodTask", "Prompt", "SequenceData", "Task", "YesNoTask"]


def _with_title(template: str, name: str) -> str:
    if template.count("{title}") != 1:
        raise ValueError(f"{name} must hold {{title}} exactly once, found {template!r}")
    return template


class Prompt(Config):
    """How a history becomes text: `before`, one `item` for each event (oldest first), `after`."""

    before: str = ""
    item: str = "{title}\n"
    after: str = ""
    bos: bool = True
    """Start with the tokenizer's beginning-of-text token, where it has one."""

    @field_validator("item")
    @classmethod
    def _names_the_title(cls, item: str) -> str:
        return _with_title(item, "prompt.item")


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


Task = Annotated[HeadTask | YesNoTask | LikelihoodTask, Field(discriminator="type")]
