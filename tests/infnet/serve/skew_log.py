"""A log with every feature type in every form, with gaps and unseen values, and requests of it."""

import datetime
import math
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from infnet.config import InfnetConfig
from rayrun.config import Json, validate

HOUR = 3_600_000
START = 1_650_000_000_000
ROWS, VALID_FROM, TEST_FROM = 900, START + 400 * HOUR, START + 440 * HOUR
"""Times are whole hours from START on, about two rows an hour: users have ties."""

USER = ("user", "city", "born")
"""Columns that a request carries under `user`; the others of a row are context or candidates'."""


def log(seed: int = 0) -> pa.Table:
    """The rows in order of time. What only later rows have is unseen in training."""
    random = np.random.default_rng(seed)
    at = START + np.sort(random.integers(0, 500, ROWS)) * HOUR
    late = at >= TEST_FROM
    user = np.where(late & (random.random(ROWS) < 0.2), 40, random.integers(0, 12, ROWS))
    item = np.where(late & (random.random(ROWS) < 0.2), 99, random.integers(0, 25, ROWS))
    tags = np.array(["a", "B", "été", "长 tag", ""], dtype=object)
    tag = np.where(late & (random.random(ROWS) < 0.2), "new", tags[random.integers(0, 5, ROWS)])
    number = random.normal(3, 2, ROWS)
    number[random.random(ROWS) < 0.1] = math.nan
    lengths = random.integers(0, 5, ROWS)
    days = [datetime.date(1990, 1, 1) + datetime.timedelta(int(u) * 400) for u in user]
    steps = [[_some(random, float(v), 0.1) for v in row] for row in random.random((ROWS, 4))]

    def gaps(values: Any, kind: pa.DataType | None = None) -> pa.Array:
        return pa.array([_some(random, v, 0.12) for v in values], kind)

    click = random.random(ROWS) < 0.4 + 0.02 * (item % 10)
    return pa.table(
        {
            "user": [f"u{u}" for u in user],
            "item": pa.array(item, pa.int32()),
            "at": at,
            "city": pa.array([None if u % 5 == 0 else float(u % 3) for u in user], pa.float64()),
            "born": pa.array(days, pa.date32()),
            "tag": gaps(tag.tolist()),
            "number": number,
            "price": gaps(random.exponential(20, ROWS).round(2).tolist(), pa.float32()),
            "shown": random.integers(0, 6, ROWS),
            "bought": gaps(random.integers(0, 4, ROWS).tolist(), pa.int16()),
            "stock": pa.array([str(n) for n in random.integers(-5, 90, ROWS)]),
            "fresh": gaps((random.random(ROWS) < 0.5).tolist()),
            "steps": gaps(steps, pa.list_(pa.float64())),
            "past": pa.array([random.integers(0, 40, n).tolist() for n in lengths]),
            "click": gaps(click.astype(int).tolist(), pa.int8()),
            "order": pa.array((click & (random.random(ROWS) < 0.5)).astype(np.int8)),
            "spend": np.where(click, random.lognormal(1, 0.5, ROWS), 0.0),
            "stars": random.integers(0, 5, ROWS),
            "watch": random.exponential(30, ROWS),
        }
    )


def _some(random: np.random.Generator, value: Any, missing: float) -> Any:
    return None if random.random() < missing else value


def features(vectors: str) -> dict[str, dict]:
    """Every type, in each of its forms."""
    return {
        "user": {"type": "categorical", "column": "user", "dim": 8},
        "item": {
            "type": "categorical",
            "column": "item",
            "dim": 8,
            "encoding": {"type": "vocabulary", "min_count": 3},
        },
        "tag": {"type": "categorical", "column": "tag", "dim": 8, "cold_start": "mean"},
        "tag_hash": {
            "type": "categorical",
            "column": "tag",
            "dim": 8,
            "encoding": {"type": "hash", "buckets": 11},
        },
        "city": {"type": "categorical", "column": "city", "dim": 8},
        "born": {"type": "categorical", "column": "born", "dim": 8},
        "fresh": {"type": "categorical", "column": "fresh", "dim": 8},
        "number": {"type": "numeric", "column": "number"},
        "price": {"type": "numeric", "column": "price", "transform": "log1p", "missing": "zero"},
        "stock": {
            "type": "numeric",
            "column": "stock",
            "transform": "signed_log",
            "normalise": "minmax",
        },
        "level": {"type": "numeric", "column": "number", "buckets": 6, "dim": 8},
        "rate": {"type": "ratio", "numerator": "bought", "denominator": "shown"},
        "rate_level": {
            "type": "ratio",
            "numerator": "bought",
            "denominator": "shown",
            "smoothing": 1.0,
            "buckets": 4,
            "dim": 8,
        },
        "gap": {"type": "delta", "a": "shown", "b": "bought", "transform": "signed_log"},
        "gap_relative": {"type": "delta", "a": "shown", "b": "bought", "relative": True},
        "steps": {"type": "window", "column": "steps", "length": 4},
        "vector": {"type": "pretrained", "column": "item", "path": vectors, "width": 3},
        "clicks": {
            "type": "sequence",
            "behaviour": {"column": "click", "value": 1},
            "fields": ["item", "tag", "level"],
            "max_length": 6,
            "positions": True,
            "decay": 0.3,
            "pooling": "attention",
        },
        "seen": {
            "type": "sequence",
            "fields": ["item", "born"],
            "share_tables": False,
            "max_length": 9,
            "pooling": "mean",
        },
        "past": {"type": "sequence", "fields": ["item"], "column": "past", "max_length": 3},
        "item_click": {
            "type": "statistic",
            "key": ["item"],
            "value": "task:click",
            "outputs": ["count", "mean", "logit"],
        },
        "pair_watch": {
            "type": "statistic",
            "key": ["user", "tag"],
            "value": "watch",
            "outputs": ["count", "mean"],
            "normalise": True,
            "fold": "leave_one_out",
        },
        "city_rows": {"type": "statistic", "key": ["city"], "outputs": ["count"]},
    }


TASKS = {
    "click": {"type": "binary", "label": "click"},
    "order": {"type": "conditional", "label": "order", "given": "click"},
    "spend": {"type": "ziln", "label": "spend"},
    "stars": {"type": "ordinal", "label": "stars", "levels": 5},
    "watch": {"type": "regression", "label": "watch", "scale": 30.0},
}


def write(folder: Any) -> InfnetConfig:
    """The log and its vectors below `folder`, and the configuration that trains on them."""
    (folder / "log").mkdir()
    pq.write_table(log(), folder / "log" / "log.parquet", row_group_size=200)
    random = np.random.default_rng(1)
    vectors = {"id": list(range(20)), "vector": random.random((20, 3)).tolist()}
    pq.write_table(pa.table(vectors), folder / "vectors.parquet")
    raw = {
        "name": "skew",
        "data": {
            "source": {
                "path": str(folder / "log"),
                "columns": {"user": "user", "item": "item", "time": {"column": "at"}},
            },
            "split": {"type": "time", "valid_from": str(VALID_FROM), "test_from": str(TEST_FROM)},
        },
        "features": features(str(folder / "vectors.parquet")),
        "tasks": TASKS,
        "model": {
            "type": "infnet",
            "token_dim": 8,
            "num_blocks": 2,
            "proxy_hidden": [16],
            "gate_hidden": [8],
            "head_hidden": [8],
        },
        "train": {"epochs": 2, "batch_size": 128, "lanes": 2},
        "evaluate": {"bootstrap": 0},
        "compute": {"type": "local", "num_cpus": 2, "object_store_bytes": 200_000_000},
    }
    return validate(InfnetConfig, raw, where="skew")


# ---------------------------------------------------------------------------------------------
# Requests


def requests(rows: pa.Table, encoder_columns: tuple[str, ...], histories: Json) -> list[Json]:
    """What a caller would send for test rows of the log: one request per user and time.

    `histories[behaviour]` = (events of the training period, columns of an event). Each entry has
    `request` and `rows`, the places of its candidates in the log.
    """
    plain = rows.append_column("__row", pa.array(np.arange(rows.num_rows))).to_pylist()
    groups: dict[tuple[str, int], list[Json]] = {}
    for row in plain:
        if row["at"] >= TEST_FROM:
            groups.setdefault((row["user"], row["at"]), []).append(row)
    found = []
    for (user, at), members in groups.items():
        own = [c for c in encoder_columns if c not in (*USER, "at")]
        found.append(
            {
                "rows": [row["__row"] for row in members],
                "request": {
                    "user": {c: as_json(members[0][c]) for c in USER},
                    "context": {"at": at},
                    "histories": {
                        behaviour: [
                            {c: as_json(event[c]) for c in columns}
                            for event in events
                            if event["user"] == user
                        ]
                        for behaviour, (events, columns) in histories.items()
                    },
                    "candidates": [{c: as_json(row[c]) for c in own} for row in members],
                },
            }
        )
    return found


def events(rows: pa.Table) -> dict[str, tuple[list[Json], tuple[str, ...]]]:
    """By hand, what each behaviour of `features` means: its events in training, their columns."""
    training = rows.filter(pc.less(rows["at"], VALID_FROM)).to_pylist()
    clicks = [row for row in training if row["click"] == 1]
    return {
        "clicks": (clicks, ("item", "tag", "number", "at")),
        "seen": (training, ("item", "born", "at")),
    }


def as_json(value: Any) -> Any:
    """A value of the log as a client writes it."""
    if isinstance(value, float) and math.isnan(value):
        return None
    return value.isoformat() if isinstance(value, datetime.date) else value
