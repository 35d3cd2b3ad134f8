"""Small logs with ties, gaps and all column kinds, and configs that prepare them."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from infnet.config import InfnetConfig
from rayrun.config import validate

DAY = 86_400_000
START = 1_600_000_000_000


def table(rows=600, seed=0, users=7, items=20, days=10):
    """Rows in no order; about a third of them share user and millisecond with another."""
    random = np.random.default_rng(seed)
    watch = random.random(rows) * 60
    return pa.table(
        {
            "uid": random.integers(0, users, rows),
            "iid": [f"i{n}" for n in random.integers(0, items, rows)],
            "ts": START + random.integers(0, days * 12, rows) * (DAY // 12),
            "click": random.integers(0, 2, rows).astype(np.float64),
            "like": pa.array(random.integers(0, 2, rows), mask=random.random(rows) < 0.3),
            "watch": watch,
            "price": random.integers(1, 90, rows) / 4,
        }
    )


FEATURES = {
    "user": {"type": "categorical", "column": "uid", "dim": 8},
    "item": {"type": "categorical", "column": "iid", "dim": 8},
    "price": {"type": "numeric", "column": "price"},
    "clicked": {
        "type": "sequence",
        "behaviour": {"column": "click", "value": 1},
        "fields": ["item"],
        "max_length": 6,
    },
    "seen": {"type": "sequence", "fields": ["item", "user"], "max_length": 9},
    "user_click": {
        "type": "statistic",
        "key": ["uid"],
        "value": "task:click",
        "outputs": ["count", "mean"],
    },
    "item_watch": {
        "type": "statistic",
        "key": ["iid"],
        "value": "watch",
        "outputs": ["count", "mean"],
    },
    "item_like": {
        "type": "statistic",
        "key": ["iid"],
        "value": "task:like",
        "outputs": ["count", "mean"],
        "fold": "leave_one_out",
    },
}
TASKS = {
    "click": {"type": "binary", "label": "click"},
    "like": {"type": "binary", "label": "like"},
}


def config(path, *, features=None, num_cpus=2, columns=None, **data):
    """A whole config around a log at `path`; `data` overrides entries of `data:`."""
    raw = {
        "name": "test",
        "data": {
            "source": {
                "path": str(path),
                "columns": {"user": "uid", "item": "iid", "time": {"column": "ts"}}
                if columns is None
                else columns,
            },
            "split": {
                "type": "time",
                "valid_from": str(START + 7 * DAY),
                "test_from": str(START + 8 * DAY),
            },
            **data,
        },
        "features": FEATURES if features is None else features,
        "tasks": TASKS,
        "model": {"type": "infnet"},
        "compute": {"type": "local", "num_cpus": num_cpus, "object_store_bytes": 200_000_000},
    }
    return validate(InfnetConfig, raw, where="test")


def write(path, rows, group=None):
    """One Parquet file, in row groups of `group` rows."""
    path.mkdir(parents=True, exist_ok=True)
    pq.write_table(rows, path / "log.parquet", row_group_size=group or rows.num_rows)
    return path
