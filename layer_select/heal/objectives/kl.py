"""`kl`: the teacher's distribution of the next token (Hinton et al. 2015, arXiv:1503.02531).

Shapes: R rows, T tokens, N of them real, V vocabulary, K kept of it.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from jaxtyping import Bool, Float
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from layer_select.heal.objectives.base import Base, Lesson
from layer_select.heal.signals import Signal, TopTokens, positions, rest_of
from layer_select.pretrain.texts import Rows


class Kl(Base):
    """T² KL(p_teacher ‖ p_student) of the next token at every token, p = softmax(logits / T).

    T² keeps the gradient's size when T changes. Of the teacher the `top_k` most likely tokens are
    kept, all others are one class: never more than the full KL, and equal to it for top_k = V.
    """

    type: Literal["kl"] = "kl"
    temperature: PositiveFloat = 1.0
    top_k: PositiveInt = 32
    """Tokens whose probabilities are kept."""

    def targets(self, rows: Rows, task: str) -> Bool[Tensor, "R T"]:
        """See `Base`."""
        return positions(rows, "tokens")

    def signals(self, mapped: Mapping[int, int]) -> tuple[Signal, ...]:
        """See `Base`."""
        return (TopTokens(self.top_k, self.temperature),)

    def loss(self, lesson: Lesson) -> Float[Tensor, ""]:
        """See `Base`."""
        (signal,) = self.signals(lesson.mapped)
        said = lesson.said[signal.name]
        return divergence(lesson.student.logits, said, self.temperature).sum()


def divergence(
    logits: Float[Tensor, "N V"], said: Mapping[str, Tensor], temperature: float
) -> Float[Tensor, " N"]:
    """T² Σ_c p_c (log p_c − log q_c) over K kept classes and the rest.

    Args:
        logits: of the student.
        said: of the teacher, see `signals.top`.
        temperature: T, of both.
    """
    chances = (logits / temperature).log_softmax(-1)
    known = said["known"].to(chances)
    found = (known.exp() * (known - chances.gather(-1, said["ids"]))).sum(-1)
    if said["ids"].shape[-1] < chances.shape[-1]:
        rest = said["rest"].to(chances)
        left = rest.exp() * (rest - rest_of(chances, said["ids"]))
        found = found + torch.where(rest > -torch.inf, left, 0.0)
    return found * temperature**2
