"""What features of one number per row share: transform, normalise or bucket, mark missing."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pyarrow as pa
from pydantic import model_validator

from infnet.features import summaries
from infnet.features.base import Feature, Fitted, Problem, Slots
from infnet.features.columns import LARGEST, as_numpy, check_number, column, numbers
from infnet.schema import FIRST_KNOWN, DenseSlot, FieldSlot, TableSpec
from rayrun.config import Json

Transform = Literal["none", "log1p", "signed_log"]
Normalise = Literal["standard", "minmax", "none"]

MIN_DIM, MAX_DIM = 8, 128


def check_dim(dim: int) -> None:
    """Embedding widths are 8 to 128."""
    if not MIN_DIM <= dim <= MAX_DIM:
        raise ValueError(f"dim must be {MIN_DIM} to {MAX_DIM}, found {dim}")


def transformed(values: np.ndarray, transform: Transform) -> np.ndarray:
    """`log1p`: ln(1 + x); `signed_log`: sign(x) ln(1 + |x|).

    NaN stays NaN, and x ≤ −1 becomes NaN under log1p.
    """
    if transform == "log1p":
        return np.log1p(np.where(values > -1, values, np.nan))
    if transform == "signed_log":
        return np.sign(values) * np.log1p(np.abs(values))
    return values


def normalisation(moments: Json, normalise: Normalise) -> Json:
    """{shift, scale} of x ↦ (x − shift) · scale; a constant column becomes 0."""
    if normalise == "none" or not moments["count"]:
        return {"shift": 0.0, "scale": 1.0}
    if normalise == "minmax":
        width = moments["max"] - moments["min"]
        return {"shift": moments["min"], "scale": _inverse(width)}
    mean, deviation = summaries.mean_and_deviation(moments)
    return {"shift": mean, "scale": _inverse(deviation)}


def _inverse(width: float) -> float:
    return 1.0 / width if width > 1e-300 else 0.0


def scaled(values: np.ndarray, state: Json) -> np.ndarray:
    """float32 (x − shift) · scale, 0 where x is NaN; kept within what float32 holds."""
    absent = np.isnan(values)
    found = (np.where(absent, 0.0, values) - state["shift"]) * state["scale"]
    return np.where(absent, 0.0, np.clip(found, -LARGEST, LARGEST)).astype(np.float32)


class ScaledNumber(Feature):
    """One number per row. Subclasses say what it is made of (`inputs`) and how (`combine`)."""

    transform: Transform = "none"
    """`log1p` for amounts (−1 and below are bad rows), `signed_log` where both signs occur."""
    normalise: Normalise = "standard"
    """With the mean and deviation, or the range, of the training rows, after the transform."""
    missing: Literal["indicator", "zero"] = "indicator"
    """A missing number is 0 after normalising; `indicator` adds a column that is 1 there."""
    buckets: int | None = None
    """Cut at quantiles of the training rows into this many ids, each with an embedding, instead of
    normalising; missing has an id of its own. Quantiles that coincide make fewer buckets."""
    dim: int = 16
    """Width of a bucket's embedding, 8 to 128."""

    @model_validator(mode="after")
    def _bucket_settings(self) -> "ScaledNumber":
        check_dim(self.dim)
        if self.buckets is not None and not 2 <= self.buckets <= 1024:
            raise ValueError(f"buckets must be 2 to 1024, found {self.buckets}")
        if self.buckets is not None and self.transform != "none":
            raise ValueError(
                f"transform ({self.transform}) does nothing to buckets, which go by rank; "
                "leave it out"
            )
        if self.buckets is None and self.dim != 16:
            raise ValueError(
                "dim is the width of a bucket's embedding; set buckets, or leave dim out"
            )
        return self

    def inputs(self) -> tuple[str, ...]:
        """The columns it is made of, in the order of `combine`."""
        raise NotImplementedError

    def combine(self, *numbers: np.ndarray) -> np.ndarray:
        """float64 before the transform, NaN where missing, from the numbers of the columns."""
        raise NotImplementedError

    @property
    def formula(self) -> str:
        """What it is, in the words of an error."""
        raise NotImplementedError

    def columns(self, name: str) -> frozenset[str]:
        """All inputs."""
        return frozenset(self.inputs())

    def _values(self, rows: pa.Table) -> np.ndarray:
        raw = self.combine(*(numbers(column(rows, name))[0] for name in self.inputs()))
        return transformed(raw, self.transform)

    def check_columns(self, name: str, schema: pa.Schema) -> None:
        """Numbers, or text that is read as numbers."""
        for read in sorted(self.columns(name)):
            check_number(schema, read, f"features.{name}")

    def problems(self, name: str, rows: pa.Table) -> list[Problem]:
        """Inputs that are no finite numbers, and what log1p has no answer for."""
        return self.problems_of([numbers(column(rows, name)) for name in self.inputs()])

    def problems_of(self, read: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[Problem]:
        """`problems` of what `columns.numbers` gives for each input."""
        found = [
            Problem(bad, f"{name} is not a finite number")
            for name, (_, bad) in zip(self.inputs(), read, strict=True)
        ]
        if self.transform == "log1p":
            beyond = self.combine(*(values for values, _ in read)) <= -1
            found.append(Problem(beyond, f"{self.formula} is -1 or less, under log1p"))
        return found

    def summarise(self, name: str, rows: pa.Table) -> Json:
        """Moments, or the sample behind the quantiles."""
        values = self._values(rows)
        if self.buckets is None:
            return summaries.moments(values)
        return summaries.sample(values, as_numpy(column(rows, "__row_id")))

    def merge(self, parts: Sequence[Json]) -> Json:
        """The same of all rows."""
        if self.buckets is None:
            return summaries.merge_moments(parts)
        return summaries.merge_samples(parts)

    def fit(self, name: str, summary: Json) -> Json:
        """{shift, scale}, or the inner edges of the buckets."""
        if self.buckets is None:
            return normalisation(summary, self.normalise)
        found = np.array(summary["values"], dtype=np.float64)
        if not len(found):
            return {"edges": []}
        inner = np.quantile(found, np.arange(1, self.buckets) / self.buckets)
        edges = np.unique(inner)
        return {"edges": edges[edges > found.min()].tolist()}

    def slots(self, name: str, fitted: Fitted) -> Slots:
        """A dense slot, or a categorical field of buckets."""
        if self.buckets is None:
            width = 2 if self.missing == "indicator" else 1
            return Slots(dense=(DenseSlot(name=name, width=width, kind=self._kind),))
        table = self.id_table(name, fitted)
        return Slots(tables={name: table}, fields=(FieldSlot(name=name, table=name),))

    @property
    def _kind(self) -> str:
        return getattr(self, "type")  # noqa: B009 (each subclass has the literal `type`)

    def encode(self, name: str, rows: pa.Table, fitted: Fitted) -> dict[str, pa.Array]:
        """`d.<name>` or `c.<name>`."""
        values = self._values(rows)
        if self.buckets is not None:
            return {f"c.{name}": pa.array(self._bucket_ids(values, fitted))}
        if self.missing == "zero":
            return {f"d.{name}": pa.array(scaled(values, fitted.state))}
        return {f"d.{name}": block(self._dense(values, fitted))}

    def ids_of(self, raw: np.ndarray, fitted: Fitted) -> np.ndarray:
        """int32 buckets of what `combine` gives."""
        return self._bucket_ids(transformed(raw, self.transform), fitted)

    def dense_of(self, raw: np.ndarray, fitted: Fitted) -> np.ndarray:
        """float32 [rows, width] of what `combine` gives."""
        return self._dense(transformed(raw, self.transform), fitted)

    def _dense(self, values: np.ndarray, fitted: Fitted) -> np.ndarray:
        number = scaled(values, fitted.state)
        if self.missing == "zero":
            return number[:, None]
        return np.stack([number, np.isnan(values).astype(np.float32)], axis=1)

    def id_table(self, name: str, fitted: Fitted) -> TableSpec:
        """Padding, unknown (never given), missing, then the buckets from low to high."""
        if self.buckets is None:
            return super().id_table(name, fitted)
        return TableSpec(rows=FIRST_KNOWN + 2 + len(fitted.state["edges"]), dim=self.dim)

    def _bucket_ids(self, values: np.ndarray, fitted: Fitted) -> np.ndarray:
        # The bucket is the number of edges at or below the value, as in sklearn's KBinsDiscretizer.
        bucket = np.searchsorted(np.array(fitted.state["edges"]), values, side="right")
        return np.where(np.isnan(values), FIRST_KNOWN, bucket + FIRST_KNOWN + 1).astype(np.int32)


def block(values: np.ndarray) -> pa.Array:
    """A matrix as a fixed-size list of float32 per row."""
    flat = pa.array(np.ascontiguousarray(values, dtype=np.float32).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
