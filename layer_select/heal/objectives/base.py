"""What all objectives share, and what they see.

Shapes: R rows, T tokens.
"""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

from jaxtyping import Bool, Float
from pydantic import NonNegativeFloat
from torch import Tensor

from layer_select.heal.recommender import Seen
from layer_select.heal.signals import Signal
from layer_select.pretrain.texts import Rows
from rayrun.config import Config


@dataclass(frozen=True)
class Lesson:
    """Some rows: what the student makes of them, and what the teacher said."""

    student: Seen
    said: Mapping[str, Mapping[str, Tensor]]
    """By name of the signal."""
    mapped: Mapping[int, int]
    """Layer of the student → layer of the teacher whose output stands for the same place."""
    task: str
    """Type of the task."""


class Base(Config):
    """One part of the loss: weight · (sum over its targets) / (their number in the whole batch)."""

    weight: NonNegativeFloat = 1.0

    @abstractmethod
    def targets(self, rows: Rows, task: str) -> Bool[Tensor, "R T"]:
        """Where it has targets; `task` is the type of the task."""

    @abstractmethod
    def loss(self, lesson: Lesson) -> Float[Tensor, ""]:
        """Summed over the targets; differentiable in the student."""

    def signals(self, mapped: Mapping[int, int]) -> tuple[Signal, ...]:
        """What it needs from a teacher; `mapped` as in `Lesson`."""
        return ()
