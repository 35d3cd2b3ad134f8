"""Predictions: scored rows, accumulated batch by batch, merged across workers, measured in bounded
memory.

Shapes: B rows of a batch, N rows, T tasks.
"""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, Int64, Shaped
from numpy import ndarray

PARTITIONS = 16
"""Ways that spilled rows are divided by user, and divided again where a part is still too large."""

DEEPEST = 15
"""Divisions that the 64 bits of a user's hash allow."""

EXACT_ROWS = 4_000_000
"""Rows kept in memory; about 16 + 9·T bytes each, and some 100 more per row and task while
measuring."""


@dataclass(frozen=True)
class Rows:
    """Scored rows as columns."""

    row_id: Int64[ndarray, " N"]
    user: Int64[ndarray, " N"]
    weight: Shaped[ndarray, " N"]
    prediction: Shaped[ndarray, "N T"]
    label: Shaped[ndarray, "N T"]
    observed: Bool[ndarray, "N T"]

    def __len__(self) -> int:
        return self.row_id.size

    def take(self, rows: Any) -> "Rows":
        """Some of the rows."""
        return Rows(*(getattr(self, f.name)[rows] for f in fields(self)))

    def to_table(self, tasks: Sequence[str]) -> pa.Table:
        """Columns of `predictions/`: row_id, user, weight, `p.<task>`, `y.<task>` (null: not
        observed).
        """
        columns: dict[str, Any] = {n: getattr(self, n) for n in ("row_id", "user", "weight")}
        for t, task in enumerate(tasks):
            columns[f"p.{task}"] = np.ascontiguousarray(self.prediction[:, t])
            columns[f"y.{task}"] = pa.array(self.label[:, t], mask=~self.observed[:, t])
        return pa.table(columns)

    @classmethod
    def from_table(cls, table: pa.Table | pa.RecordBatch, tasks: Sequence[str]) -> "Rows":
        """Inverse of `to_table`."""

        def column(name: str) -> ndarray:
            return table.column(name).to_numpy(zero_copy_only=False)

        label = np.stack([column(f"y.{task}") for task in tasks], axis=1)
        observed = ~np.isnan(label)
        return cls(
            row_id=column("row_id"),
            user=column("user"),
            weight=column("weight"),
            prediction=np.stack([column(f"p.{task}") for task in tasks], axis=1),
            label=np.where(observed, label, 0).astype(label.dtype),
            observed=observed,
        )


def concatenate(parts: Sequence[Rows], num_tasks: int) -> Rows:
    """One table of all rows, in order."""
    if not parts:
        none = np.zeros((0, num_tasks), np.float32)
        empty = np.zeros(0, np.int64)
        return Rows(empty, empty, none[:, :0].sum(1), none, none, none.astype(bool))
    return Rows(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Rows)))


def mixed(user: Int64[ndarray, " N"]) -> Shaped[ndarray, " N"]:
    """A well-mixed 64-bit hash (splitmix64) of the user: partitions and buckets are read from its
    bits.
    """
    x = user.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


class Predictions:
    """Scored rows of one model on one split.

    Up to `exact_rows` rows stay in memory and every metric is exact. Above, all rows go to Parquet
    files divided by a hash of the user, under `spill` (a temporary directory if not given); memory
    stays at the larger of `exact_rows` rows and the rows of the largest single user. Merging equals
    having seen all rows in one process.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        *,
        exact_rows: int = EXACT_ROWS,
        spill: Path | None = None,
    ) -> None:
        if len(set(tasks)) != len(tasks) or not tasks:
            raise ValueError(f"tasks must be one or more different names, found {list(tasks)}")
        self.tasks = tuple(tasks)
        self.exact_rows = exact_rows
        self.num_rows = 0
        self.digest = 0
        """A sum over (row id, user) pairs: equal for the same rows in any order."""
        self._held: list[Rows] = []
        self._held_rows = 0
        self._spill = spill
        self._temporary: list[tempfile.TemporaryDirectory[str]] = []
        self._spilled: list[Path] = []
        """Directories that hold `<partition>/*.parquet`; empty: all rows are in memory."""

    @property
    def exact(self) -> bool:
        """True while all rows are in memory."""
        return not self._spilled

    def update(
        self,
        row_id: Int64[ndarray, " B"],
        user: Int64[ndarray, " B"],
        weight: Shaped[ndarray, " B"],
        predictions: Shaped[ndarray, "B T"],
        labels: Shaped[ndarray, "B T"],
        observed: Bool[ndarray, "B T"],
    ) -> None:
        """Add rows; columns in the order of `tasks`. Labels where not observed are ignored,
        whatever they hold.

        Raises:
            ValueError: a prediction, an observed label or a weight is not finite, or a weight is
                negative.
        """
        if predictions.shape != (row_id.size, len(self.tasks)):
            raise ValueError(
                "predictions must have one row per row_id and one column per task, "
                f"{(row_id.size, len(self.tasks))}; found the shape {predictions.shape}"
            )
        labels = np.where(observed, labels, 0)
        for t, task in enumerate(self.tasks):
            for what, values in (("prediction", predictions[:, t]), ("label", labels[:, t])):
                _finite(f"the {what} of task {task!r}", values, row_id)
        _finite("the weight", weight, row_id)
        if weight.size and weight.min() < 0:
            raise ValueError(
                f"the weight must be 0 or more, found {weight.min()} "
                f"in row_id {row_id[weight.argmin()]}"
            )
        self._add(Rows(row_id, user, weight, predictions, labels, observed))

    def add(self, rows: Rows) -> None:
        """`update` with the rows of a predictions file."""
        self.update(*(getattr(rows, f.name) for f in fields(rows)))

    def merge(self, other: "Predictions") -> None:
        """Add all rows of another accumulator (same tasks). Spilled rows are shared, not copied.

        Raises:
            ValueError: other tasks.
        """
        if other.tasks != self.tasks:
            raise ValueError(
                f"predictions of tasks {list(other.tasks)} cannot be merged into {list(self.tasks)}"
            )
        spilled_rows = other.num_rows - other._held_rows
        self.num_rows += spilled_rows
        self.digest = (self.digest + other.digest) % 2**64
        self._spilled += other._spilled
        self._temporary += other._temporary
        for rows in other._held:
            self._add(rows, digested=True)
        if self._spilled:
            self._flush()

    def _add(self, rows: Rows, *, digested: bool = False) -> None:
        self.num_rows += len(rows)
        self._held_rows += len(rows)
        self._held.append(rows)
        if not digested:
            each = rows.row_id.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
            each ^= rows.user.view(np.uint64)
            self.digest = (self.digest + int(each.sum(dtype=np.uint64))) % 2**64
        if self._held_rows > self.exact_rows:
            self._flush()

    def _flush(self) -> None:
        if not self._held_rows:
            return
        if self._spill is None:
            self._temporary.append(tempfile.TemporaryDirectory(prefix="infnet-evaluate-"))
            self._spill = Path(self._temporary[-1].name)
        if self._spill not in self._spilled:
            self._spilled.append(self._spill)
        _divide(self._spill, concatenate(self._held, len(self.tasks)), self.tasks, level=0)
        self._held, self._held_rows = [], 0

    def partitions(self) -> Iterator[Rows]:
        """All rows, every user whole in one part; one part while `exact`. The order of rows is not
        kept.
        """
        if self.exact:
            yield concatenate(self._held, len(self.tasks))
            return
        self._flush()
        names = sorted({path.name for place in self._spilled for path in place.glob("part-*")})
        for name in names:
            yield from self._partition([p for s in self._spilled for p in [s / name] if p.exists()])

    def _partition(self, places: list[Path], level: int = 1) -> Iterator[Rows]:
        files = sorted(file for place in places for file in place.glob("*.parquet"))
        num_rows = sum(pq.ParquetFile(file).metadata.num_rows for file in files)
        if num_rows <= self.exact_rows or level > DEEPEST or _one_user(files):
            tables = [Rows.from_table(pq.read_table(file), self.tasks) for file in files]
            yield concatenate(tables, len(self.tasks))
            return
        with tempfile.TemporaryDirectory(prefix="infnet-evaluate-") as finer:
            for file in files:
                _divide(
                    Path(finer), Rows.from_table(pq.read_table(file), self.tasks), self.tasks, level
                )
            for place in sorted(Path(finer).glob("part-*")):
                yield from self._partition([place], level + 1)

    def __getstate__(self) -> dict[str, Any]:
        """Workers hand over rows in memory; spilled rows stay where they are, on storage both can
        read.
        """
        if self._temporary:
            raise ValueError(
                f"{self.num_rows} rows are spilled to a temporary directory of this process; "
                "give `spill` a directory that both processes can read"
            )
        return self.__dict__


def _finite(what: str, values: ndarray, row_id: ndarray) -> None:
    wrong = np.flatnonzero(~np.isfinite(values))
    if wrong.size:
        raise ValueError(
            f"{what} must be a finite number, found {values[wrong[0]]} in row_id "
            f"{row_id[wrong[0]]} and {wrong.size - 1} further rows of the batch"
        )


def _one_user(files: list[Path]) -> bool:
    found: set[int] = set()
    for file in files:
        parquet = pq.ParquetFile(file)
        at = parquet.schema_arrow.get_field_index("user")
        for group in range(parquet.metadata.num_row_groups):
            statistics = parquet.metadata.row_group(group).column(at).statistics
            found |= {statistics.min, statistics.max}
    return len(found) == 1


def _divide(place: Path, rows: Rows, tasks: Sequence[str], level: int) -> None:
    part = (mixed(rows.user) >> np.uint64(60 - 4 * level)) & np.uint64(PARTITIONS - 1)
    for number in np.unique(part):
        folder = place / f"part-{int(number):02d}"
        folder.mkdir(parents=True, exist_ok=True)
        name = f"{len(list(folder.iterdir())):05d}.parquet"
        pq.write_table(rows.take(part == number).to_table(tasks), folder / name)


def read(directory: Path, tasks: Sequence[str], *, exact_rows: int = EXACT_ROWS) -> Predictions:
    """The rows of a `predictions/` directory.

    Raises:
        ValueError: no file there, or a file without the columns of `tasks`.
    """
    files = sorted(directory.glob("part-*.parquet"))
    if not files:
        raise ValueError(
            f"{directory} holds no part-*.parquet; run `infnet evaluate` with this --out"
        )
    result = Predictions(tasks, exact_rows=exact_rows)
    wanted = ["row_id", "user", "weight", *(f"{k}.{t}" for k in "py" for t in tasks)]
    for file in files:
        opened = pq.ParquetFile(file)
        if missing := sorted(set(wanted) - set(opened.schema_arrow.names)):
            raise ValueError(
                f"{file} lacks the columns {missing}; it holds {opened.schema_arrow.names}"
            )
        for batch in opened.iter_batches(batch_size=262_144, columns=wanted):
            result.add(Rows.from_table(batch, tasks))
    return result
