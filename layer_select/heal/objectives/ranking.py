"""`ranking`: the teacher's scores of items.

Shapes: R rows, T tokens.
"""

from collections.abc import Mapping
from typing import Literal

from jaxtyping import Bool, Float
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from layer_select.heal.objectives.base import Base, Lesson
from layer_select.heal.objectives.kl import divergence
from layer_select.heal.signals import Signal, TopItems, positions
from layer_select.pretrain.texts import Rows


class Ranking(Base):
    """T² KL(p_teacher ‖ p_student) of the next item, p = softmax(item scores / T), at the end of
    every title. Candidates are the teacher's best `top_k`; all other items are one class.
    """

    type: Literal["ranking"] = "ranking"
    temperature: PositiveFloat = 1.0
    top_k: PositiveInt = 100
    """Candidates."""

    def targets(self, rows: Rows, task: str) -> Bool[Tensor, "R T"]:
        """See `Base`."""
        return positions(rows, "ends")

    def signals(self, mapped: Mapping[int, int]) -> tuple[Signal, ...]:
        """See `Base`."""
        return (TopItems(self.top_k, self.temperature),)

    def loss(self, lesson: Lesson) -> Float[Tensor, ""]:
        """See `Base`."""
        (signal,) = self.signals(lesson.mapped)
        said = lesson.said[signal.name]
        return divergence(lesson.student.scores, said, self.temperature).sum()
