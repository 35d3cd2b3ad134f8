"""`hidden`: the teacher's residual stream.

Shapes: R rows, T tokens.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import cosine_similarity

from layer_select.heal.objectives.base import Base, Lesson
from layer_select.heal.signals import After, Signal, positions
from layer_select.pretrain.texts import Rows


class Hidden(Base):
    """Σ_i (1 − cos(x_student after i, x_teacher after m(i))) at every token.

    m(i) is the last layer of the full model before the next kept one (the last of all for the last
    kept): so layer i learns to stand for those that were removed after it.
    """

    type: Literal["hidden"] = "hidden"

    def targets(self, rows: Rows, task: str) -> Bool[Tensor, "R T"]:
        """See `Base`."""
        return positions(rows, "tokens")

    def signals(self, mapped: Mapping[int, int]) -> tuple[Signal, ...]:
        """See `Base`."""
        return tuple(After(layer) for layer in mapped.values())

    def loss(self, lesson: Lesson) -> Float[Tensor, ""]:
        """See `Base`."""
        student, there = lesson.student, positions(lesson.student.rows, "tokens")
        said = {
            name: columns["hidden"].float()
            for name, columns in lesson.said.items()
            if "hidden" in columns
        }
        parts = [
            (1 - cosine_similarity(student.after[own][there].float(), said[name], dim=-1)).sum()
            for own, name in ((own, After(layer).name) for own, layer in lesson.mapped.items())
        ]
        return torch.stack(parts).sum()


def mapping(kept: tuple[int, ...], num_layers: int) -> dict[int, int]:
    """m: place among the kept layers → layer of the full model, see `Hidden`."""
    following = [*kept[1:], num_layers]
    return {place: after - 1 for place, after in enumerate(following)}
