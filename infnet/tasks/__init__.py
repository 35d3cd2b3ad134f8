"""Task types: label, logits, loss, prediction, metrics. The union is the registry."""

from typing import Annotated

from pydantic import Field

from infnet.tasks.base import BaseTask, Label, observed_losses
from infnet.tasks.binary import BinaryTask
from infnet.tasks.conditional import ConditionalTask, parents_first
from infnet.tasks.ordinal import OrdinalTask
from infnet.tasks.regression import RegressionTask
from infnet.tasks.ziln import ZilnTask

Task = Annotated[
    BinaryTask | RegressionTask | ZilnTask | OrdinalTask | ConditionalTask,
    Field(discriminator="type"),
]

__all__ = [
    "BaseTask",
    "BinaryTask",
    "ConditionalTask",
    "Label",
    "OrdinalTask",
    "RegressionTask",
    "Task",
    "ZilnTask",
    "observed_losses",
    "parents_first",
]
