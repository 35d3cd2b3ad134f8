"""What a student learns from: one file for each objective."""

from typing import Annotated

from pydantic import Field

from layer_select.heal.objectives.hidden import Hidden
from layer_select.heal.objectives.kl import Kl
from layer_select.heal.objectives.ranking import Ranking
from layer_select.heal.objectives.task import TaskLoss
from layer_select.heal.objectives.tokens import Tokens

__all__ = ["Hidden", "Kl", "Objective", "Ranking", "TaskLoss", "Tokens"]

Objective = Annotated[TaskLoss | Tokens | Kl | Hidden | Ranking, Field(discriminator="type")]
