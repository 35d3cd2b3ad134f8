"""The recommendation task: prompts from histories and titles, losses and metrics per sample.

`open_task` is in `layer_select.task.run`, `TaskBatch` in `layer_select.task.batch`: this page is
what configuration needs, and imports no torch.
"""

from layer_select.task.config import (
    HeadTask,
    LikelihoodTask,
    RatingTask,
    SequenceData,
    Task,
    YesNoTask,
)

__all__ = ["HeadTask", "LikelihoodTask", "RatingTask", "SequenceData", "Task", "YesNoTask"]
