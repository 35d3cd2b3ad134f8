"""Statistic feature: smoothed count, mean and rate over other training rows with the same key."""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import pyarrow as pa
from pydantic import model_validator

from infnet.features import summaries
from infnet.features.base import Demands, Feature, Fitted, Problem, Slots, StatisticDemand
from infnet.features.columns import LARGEST, as_numpy, check_number, check_value, column, numbers
from infnet.schema import DenseSlot
from rayrun.config import ConfigError, Json

TASK = "task:"
SMALLEST_RATE = 1e-6


def observed_value(rows: pa.Table, value: str) -> np.ndarray:
    """float64 values of a column, or of the label for `task:<name>`; NaN where not observed.

    Labels are read from `__label.<name>`. An empty `value` counts rows: 0 for each.
    """
    if not value:
        return np.zeros(rows.num_rows)
    if value.startswith(TASK):
        return numbers(column(rows, "__label." + value.removeprefix(TASK)))[0]
    return numbers(column(rows, value))[0]


class StatisticFeature(Feature):
    """What training rows with the same key said: count, mean, rate, smoothed towards the average.

    With n rows of the key that have the value, s their sum, p the mean of all training rows and a
    the smoothing:

        count = ln(1 + n)    mean = (s + a·p) / (n + a)    logit = ln(mean / (1 − mean))

    A training row sees strictly earlier rows only (`fold: earlier`), or all training rows but
    itself (`leave_one_out`: no row informs its own feature, but later rows do; for logs without
    time and for comparisons that define it so). Rows after training see what stood at its end. The
    mean is kept within [10⁻⁶, 1 − 10⁻⁶] before the logit.
    """

    type: Literal["statistic"] = "statistic"
    key: tuple[str, ...]
    """Columns whose values together are the key: [user_id], or [user_id, tag]. Null is a value."""
    value: str = ""
    """A column of numbers, or `task:<name>` for a label. Empty where only `count` is asked for."""
    outputs: tuple[Literal["count", "mean", "logit"], ...] = ("count", "mean")
    smoothing: float = 5.0
    """a: how many rows of the average one key starts with."""
    fold: Literal["earlier", "leave_one_out"] = "earlier"
    normalise: bool = False
    """`mean` becomes (mean − p) / σ, with the deviation σ of the training rows: for amounts."""

    @model_validator(mode="after")
    def _settings_fit(self) -> "StatisticFeature":
        if not self.key or not self.outputs:
            raise ValueError("key and outputs must each name at least one")
        if self.smoothing <= 0:
            raise ValueError(
                f"smoothing must be above 0 (a new key has 0 rows), found {self.smoothing}"
            )
        if not self.value and set(self.outputs) != {"count"}:
            raise ValueError(f"outputs {self.outputs} need a value: a column, or task:<name>")
        return self

    @property
    def task(self) -> str:
        """The task whose label is averaged, or empty."""
        return self.value.removeprefix(TASK) if self.value.startswith(TASK) else ""

    def columns(self, name: str) -> frozenset[str]:
        """The key."""
        return frozenset(self.key)

    def check_columns(self, name: str, schema: pa.Schema) -> None:
        """One value per key column; a value column of numbers."""
        for read in self.key:
            check_value(schema, read, f"features.{name}.key")
        if self.value and not self.task:
            check_number(schema, self.value, f"features.{name}.value")

    def demands(self, name: str, features: Mapping[str, Feature]) -> Demands:
        """One statistic."""
        demand = StatisticDemand(key=self.key, value=self.value, fold=self.fold)
        return Demands(statistics={name: demand})

    def summarise(self, name: str, rows: pa.Table) -> Json:
        """Moments of the value."""
        return summaries.moments(observed_value(rows, self.value))

    def merge(self, parts: Sequence[Json]) -> Json:
        """The same of all rows."""
        return summaries.merge_moments(parts)

    def fit(self, name: str, summary: Json) -> Json:
        """{prior, deviation}.

        Raises:
            ConfigError: a logit of a value that is no rate.
        """
        if "logit" in self.outputs and summary["count"]:
            low, high = summary["min"], summary["max"]
            if low < 0 or high > 1:
                raise ConfigError(
                    f"features.{name}.outputs: logit needs values between 0 and 1, {self.value} "
                    f"has values from {low:g} to {high:g} in training; ask for mean"
                )
        prior, deviation = summaries.mean_and_deviation(summary)
        return {"prior": prior, "deviation": deviation}

    def slots(self, name: str, fitted: Fitted) -> Slots:
        """One dense slot per output; those of a label carry the task."""
        return Slots(
            dense=tuple(
                DenseSlot(
                    name=f"{name}.{output}",
                    width=1,
                    kind="statistic",
                    task="" if output == "count" else self.task,
                )
                for output in self.outputs
            )
        )

    def encode(self, name: str, rows: pa.Table, fitted: Fitted) -> dict[str, pa.Array]:
        """`d.<name>.<output>`."""
        count = as_numpy(column(rows, f"__statistic.{name}.count"))
        total = as_numpy(column(rows, f"__statistic.{name}.sum"))
        encoded = self.outputs_of(count, total, fitted)
        return {f"d.{name}.{output}": pa.array(values) for output, values in encoded.items()}

    def outputs_of(
        self, count: np.ndarray, total: np.ndarray, fitted: Fitted
    ) -> dict[str, np.ndarray]:
        """float32 outputs of counts and sums."""
        prior, deviation = fitted.state["prior"], fitted.state["deviation"]
        mean = (total + self.smoothing * prior) / (count + self.smoothing)
        rate = np.clip(mean, SMALLEST_RATE, 1 - SMALLEST_RATE)
        if self.normalise:
            mean = (mean - prior) / deviation if deviation > 0 else np.zeros_like(mean)
        found = {"count": np.log1p(count), "mean": mean, "logit": np.log(rate) - np.log1p(-rate)}
        return {
            output: np.clip(found[output], -LARGEST, LARGEST).astype(np.float32)
            for output in self.outputs
        }

    def problems(self, name: str, rows: pa.Table) -> list[Problem]:
        """Values that are no numbers, where the rows carry the value at all."""
        if not self.value or self.task or self.value not in rows.column_names:
            return []
        return [
            Problem(numbers(column(rows, self.value))[1], f"{self.value} is not a finite number")
        ]
