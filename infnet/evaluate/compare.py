"""Which model is better, and could the rows tell: paired user bootstrap over models and seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from infnet.evaluate.bootstrap import Interval, interval
from infnet.evaluate.metrics import Measurement, compute
from infnet.evaluate.predictions import read
from infnet.schema import Schema
from rayrun.config import Json

QUANTILE = 1.96
"""97.5 % point of the normal distribution."""


@dataclass(frozen=True)
class Difference:
    """One model minus another on the same rows."""

    value: float
    """Difference of the means over seeds."""
    users: Interval
    """Over other users, with these trained models."""
    low: float
    high: float
    """95 % over other users and other seeds, value ± `smallest`; the same as over users alone where
    a model has one seed (whose seeds are then unknown, not nil)."""
    smallest: float
    """Smallest absolute difference that these rows and seeds can tell from 0."""

    @property
    def clear(self) -> bool:
        """True if both intervals lie on one side of 0. If not, do not rank the two."""
        one_side = self.users.low > 0 or self.users.high < 0
        return one_side and abs(self.value) > self.smallest


@dataclass(frozen=True)
class Row:
    """One model, task and metric."""

    model: str
    task: str
    metric: str
    values: tuple[float | None, ...]
    """By seed."""
    mean: float | None
    seed_sd: float | None
    """Standard deviation over seeds (n − 1); None with one seed."""
    difference: Difference | None
    """From the first model; None for itself, or where a value is not defined."""


@dataclass(frozen=True)
class Comparison:
    """The table of `compare`."""

    first: str
    rows: list[Row]
    num_rows: int
    num_users: int

    def row(self, model: str, task: str, metric: str) -> Row:
        """One of the rows."""
        return next(r for r in self.rows if (r.model, r.task, r.metric) == (model, task, metric))

    def to_json(self) -> list[Json]:
        """Rows as plain data, without NaN."""
        return [row_to_json(row) for row in self.rows]


def row_to_json(row: Row) -> Json:
    """One row as plain data."""
    plain: Json = {
        "model": row.model,
        "task": row.task,
        "metric": row.metric,
        "values": list(row.values),
        "mean": row.mean,
        "seed_sd": row.seed_sd,
    }
    if row.difference is not None:
        found = row.difference
        plain["difference"] = {
            "value": found.value,
            "users": [found.users.low, found.users.high],
            "interval": [found.low, found.high],
            "smallest": found.smallest,
            "clear": found.clear,
        }
    return plain


def compare(
    runs: Mapping[str, Sequence[str | Path]],
    *,
    bootstrap: int = 200,
    seed: int = 0,
    ndcg_at: Sequence[int] = (5,),
) -> Comparison:
    """Models over seeds, each against the first.

    `runs` gives for each model its predictions directories, one per seed; all must hold the same
    rows. Per metric:

    * the mean over seeds, and the standard deviation between seeds (what another seed would
    change); * the difference d of the means, with a *paired* user bootstrap: in each replicate the
    same draw of users weighs the rows of all models and seeds, metrics are averaged over seeds,
    then subtracted. Its interval says what other users would change, given these trained models; *
    the interval over users *and* seeds, d ± 1.96 √(s_users² + s_a²/n_a + s_b²/n_b), s_a and s_b
    being the deviations between seeds. Its half width is the smallest difference that the table can
    tell.

    A model with one seed has no s; its term is left out and the interval is too narrow by an
    unknown amount.

    Raises:
        ValueError: no run, other rows in one of them, or a directory without predictions or schema.
    """
    if not runs or not all(runs.values()):
        raise ValueError(
            f"compare needs at least one predictions directory for each model, found {dict(runs)}"
        )
    measured: dict[str, list[Measurement]] = {}
    for model, places in runs.items():
        for place in map(Path, places):
            tasks = schema_beside(place).tasks
            found = compute(
                read(place, tuple(tasks)), tasks, bootstrap=bootstrap, seed=seed, ndcg_at=ndcg_at
            )
            measured.setdefault(model, []).append(found)
    return compare_measured(measured)


def schema_beside(predictions: Path) -> Schema:
    """The schema of a predictions directory: `schema.json` in the nearest directory above it.

    Raises:
        ValueError: there is none.
    """
    for place in predictions.resolve().parents:
        if (place / "schema.json").exists():
            return Schema.read(place / "schema.json")
    raise ValueError(
        f"{predictions} must lie under a directory with schema.json, as `infnet evaluate` writes "
        "it; found none above it"
    )


def compare_measured(measured: Mapping[str, Sequence[Measurement]]) -> Comparison:
    """`compare` of models already measured, with the same seed and number of replicates.

    Raises:
        ValueError: the measurements are not of the same rows, or not of the same replicates.
    """
    first = next(iter(measured))
    reference = measured[first][0]
    for model, found in measured.items():
        for number, one in enumerate(found):
            if one.digest != reference.digest or one.rows != reference.rows:
                raise ValueError(
                    f"models must be compared on the same rows; run {number} of {model!r} has "
                    f"{one.rows} rows, run 0 of {first!r} has {reference.rows}, and their row ids "
                    "or users differ"
                )
            if (one.seed, one.exact) != (reference.seed, reference.exact):
                raise ValueError(
                    f"run {number} of {model!r} was measured with seed {one.seed} and run 0 of "
                    f"{first!r} with {reference.seed}; measure all with one seed and one exact_rows"
                )
    rows = [
        _row(model, task, metric, measured, first)
        for task, values in reference.values.items()
        for metric in values
        for model in measured
    ]
    return Comparison(first, rows, reference.rows, reference.users)


def _row(
    model: str, task: str, metric: str, measured: Mapping[str, Sequence[Measurement]], first: str
) -> Row:
    values = tuple(m.values.get(task, {}).get(metric) for m in measured[model])
    known = [v for v in values if v is not None]
    complete = len(known) == len(values)
    return Row(
        model=model,
        task=task,
        metric=metric,
        values=values,
        mean=float(np.mean(known)) if complete else None,
        seed_sd=float(np.std(known, ddof=1)) if complete and len(known) > 1 else None,
        difference=None
        if model == first
        else difference(measured[model], measured[first], task, metric),
    )


def difference(
    model: Sequence[Measurement], base: Sequence[Measurement], task: str, metric: str
) -> Difference | None:
    """`model` minus `base`, each a model's seeds; None where a value or its interval is not
    defined.
    """
    means: list[float] = []
    replicates: list[np.ndarray] = []
    seed_variance = 0.0
    for runs in (model, base):
        values = [m.values.get(task, {}).get(metric) for m in runs]
        drawn = [m.replicates.get(task, {}).get(metric) for m in runs]
        known = [v for v in values if v is not None]
        usable = [d for d in drawn if d is not None]
        if len(known) < len(values) or len(usable) < len(drawn):
            return None
        means.append(float(np.mean(known)))
        replicates.append(np.mean(usable, axis=0))
        if len(known) > 1:
            seed_variance += float(np.var(known, ddof=1)) / len(known)
    value = means[0] - means[1]
    users = interval(replicates[0] - replicates[1], value)
    if users is None:
        return None
    smallest = QUANTILE * float(np.sqrt(users.sd**2 + seed_variance))
    if not seed_variance:
        return Difference(value, users, users.low, users.high, smallest)
    return Difference(value, users, value - smallest, value + smallest, smallest)
