"""`trials.parquet`: every trial of a search, one row per seed it was trained with."""

import io
import json
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from rayrun import storage
from rayrun.config import Json
from rayrun.ray.tune import Outcome

FILE = "trials.parquet"


def write(outcomes: Sequence[Outcome], paths: Sequence[str], objectives: Sequence[str], out: str):
    """Write the table.

    Columns: `trial`, `state` (finished, stopped, failed), `repeats`, `error`, `seed`, a column per
    path of the space (numbers as they are, anything else as JSON), a column per objective (of the
    seed; of the last report where the trial was stopped), `reports`, `steps`, `best_step`,
    `parameters`, `table_parameters`, `latency_ms`, `latency`, `metrics` (JSON), `train_s`,
    `seconds` (of the whole trial), `pid`.
    """
    rows = [row for outcome in outcomes for row in _rows(outcome, objectives)]
    columns: dict[str, pa.Array] = {}
    for name in ("trial", "state", "repeats", "error"):
        columns[name] = pa.array([row[name] for row in rows], pa.string())
    columns["seed"] = pa.array([row["seed"] for row in rows], pa.int64())
    for path in paths:
        columns[path] = _values([row["values"].get(path) for row in rows])
    for name in ("reports", "steps", "best_step", "parameters", "table_parameters", "pid"):
        columns[name] = pa.array([row[name] for row in rows], pa.int64())
    for name in ("latency_ms", "latency", "train_s", "seconds"):
        columns[name] = pa.array([row[name] for row in rows], pa.float64())
    for name in objectives:  # the same numbers where one is a cost
        columns[name] = pa.array([row["objectives"].get(name) for row in rows], pa.float64())
    columns["metrics"] = pa.array([json.dumps(row["metrics"]) for row in rows], pa.string())
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer, compression="zstd")
    storage.write_bytes(storage.join(out, FILE), buffer.getvalue())


def _rows(outcome: Outcome, objectives: Sequence[str]) -> list[Json]:
    cost = outcome.details.get("cost") or {}
    last = outcome.reports[-1] if outcome.reports else {}
    shared: Json = {
        "trial": outcome.id,
        "state": outcome.state,
        "repeats": outcome.repeats,
        "error": outcome.error,
        "values": outcome.values,
        "reports": len(outcome.reports),
        "seconds": outcome.seconds,
        "pid": outcome.pid,
        **{name: cost.get(name) for name in ("parameters", "table_parameters")},
        **{name: cost.get(name) for name in ("latency_ms", "latency")},
    }
    seeds = outcome.details.get("seeds")
    if not seeds:
        ended = {"seed": None, "objectives": outcome.objectives, "steps": last.get("at")}
        return [shared | ended | {"best_step": None, "train_s": None, "metrics": {}}]
    kept = ("objectives", "steps", "best_step", "train_s", "metrics")
    return [
        shared | {"seed": int(seed), **{name: found[name] for name in kept}}
        for seed, found in seeds.items()
    ]


def _values(values: Sequence[object]) -> pa.Array:
    given = [value for value in values if value is not None]
    if all(isinstance(v, int) and not isinstance(v, bool) for v in given):
        return pa.array(values, pa.int64())
    if all(isinstance(v, int | float) and not isinstance(v, bool) for v in given):
        return pa.array(values, pa.float64())
    return pa.array([v if isinstance(v, str) else json.dumps(v) for v in values], pa.string())
