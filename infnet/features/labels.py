"""Labels of the tasks, read from raw columns."""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from infnet.features.base import Problem
from infnet.features.columns import LARGEST, column, numbers
from infnet.tasks import BaseTask


def label_columns(task: BaseTask) -> tuple[str, ...]:
    """Raw columns a task's label is made of."""
    source = task.source
    return (source.column, source.observed_when) if source.observed_when else (source.column,)


def label(rows: pa.Table, task: BaseTask) -> np.ndarray:
    """float64, NaN where not observed: no value, or `observed_when` is 0 or missing.

    The column times `scale`, or 1 and 0 by whether the column is above `above`.
    """
    source = task.source
    values, _ = numbers(column(rows, source.column))
    observed = ~np.isnan(values)
    if source.observed_when:
        known, _ = numbers(column(rows, source.observed_when))
        observed &= ~np.isnan(known) & (known != 0)
    if source.above is not None:
        found = (values > source.above).astype(np.float64)
    else:
        found = values * source.scale
    return np.where(observed, found, np.nan)


def label_problems(rows: pa.Table, tasks: Mapping[str, BaseTask]) -> list[Problem]:
    """Observed labels that are no number or outside the range of their task."""
    found = []
    for name, task in tasks.items():
        source = task.source
        for needed in label_columns(task):
            unreadable = numbers(column(rows, needed))[1]
            found.append(Problem(unreadable, f"{needed} is not a finite number"))
        low, high = np.clip(task.label_range, -LARGEST, LARGEST)  # labels are float32 in a batch
        values = label(rows, task)
        outside = (values < low) | (values > high)
        reason = f"the label {source.column} of the task {name} is outside {low:g} to {high:g}"
        found.append(Problem(outside, reason))
    return found
