"""`task`: what the model is for, learnt at every event of a history.

Shapes: R rows, T tokens.
"""

from typing import Any, Literal

from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import cross_entropy

from layer_select.heal.objectives.base import Base, Lesson
from layer_select.pretrain.texts import NONE, Rows


class TaskLoss(Base):
    """Cross-entropy of the next item over the catalogue, at the end of every title:
    −log softmax(h · (V P)ᵀ), P learnt along. `task.type: likelihood` has the tokens of titles in
    its place, `yes_no` the answers, `rating` the loss of its head (`layer_select.task.rating`),
    which is learnt along.
    """

    type: Literal["task"] = "task"

    def targets(self, rows: Rows, task: str) -> Bool[Tensor, "R T"]:
        """See `Base`."""
        return _targets(rows, task) != NONE

    def loss(self, lesson: Lesson) -> Float[Tensor, ""]:
        """See `Base`."""
        seen, targets = lesson.student, _targets(lesson.student.rows, lesson.task)
        there = targets != NONE
        if lesson.task == "likelihood":
            scores = seen.logits[there[seen.rows.text > 0]]
        elif lesson.task == "yes_no":
            head: Any = seen.recommender.decoder
            scores = head.logits(seen.normed[there])[:, seen.recommender.answers].float()
        elif lesson.task == "rating":
            rating = seen.recommender.rating
            assert rating is not None
            return rating.losses(seen.normed[there], targets[there].float()).sum()
        else:
            scores = seen.scores
        return cross_entropy(scores, targets[there], reduction="sum")


def _targets(rows: Rows, task: str) -> Tensor:
    if task == "likelihood":
        return rows.tokens()
    return rows.answers if task in ("yes_no", "rating") else rows.items
