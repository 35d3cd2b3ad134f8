"""Task types: label, logits, loss, prediction, metrics. The union is the registry."""

from typing import Annotated

from pydantic import Field

from infnet.tasks.base import BaseTask, Label, observed_losses
from infnet.tasks.binary import BinaryTask

Task = Annotated[BinaryTask, Field()]

__all__ = ["BaseTask", "BinaryTask", "Label", "Task", "observed_losses"]
