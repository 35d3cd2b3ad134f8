"""`task`: what the model is for, learnt at every event of a history."""

from typing import Literal

from layer_select.heal.objectives.base import Base


class TaskLoss(Base):
    """Cross-entropy of the next item over the catalogue, at the end of every title."""

    type: Literal["task"] = "task"
