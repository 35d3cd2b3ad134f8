"""`tokens`: the language of the histories.

Shapes: R rows, T tokens.
"""

from typing import Literal

from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import cross_entropy

from layer_select.heal.objectives.base import Base, Lesson
from layer_select.pretrain.texts import NONE, Rows


class Tokens(Base):
    """Cross-entropy of every next token."""

    type: Literal["tokens"] = "tokens"

    def targets(self, rows: Rows, task: str) -> Bool[Tensor, "R T"]:
        """See `Base`."""
        return rows.tokens() != NONE

    def loss(self, lesson: Lesson) -> Float[Tensor, ""]:
        """See `Base`."""
        rows = lesson.student.rows
        following = rows.tokens()
        there = following != NONE
        logits = lesson.student.logits[there[rows.text > 0]]
        return cross_entropy(logits, following[there], reduction="sum")
