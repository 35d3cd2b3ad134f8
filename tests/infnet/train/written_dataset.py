"""A small real dataset on disk in the format of `infnet prepare`, and a configuration that trains
on it."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from infnet.config import InfnetConfig
from infnet.data.shards import FORMAT_VERSION, KIND
from infnet.schema import DenseSlot, FieldSlot, Schema, SequenceSlot, TableSpec
from infnet.tasks import BinaryTask
from rayrun import manifest
from rayrun.config import apply_override, validate

ITEMS, USERS, EVENTS = 40, 30, 4
HOT = 2
"""Stands in most rows, so that every worker holds it in every step."""


def schema() -> Schema:
    return Schema(
        tables={
            "user": TableSpec(rows=USERS, dim=8),
            "item": TableSpec(rows=ITEMS, dim=8, cold_start="mean"),
        },
        fields=(FieldSlot(name="user", table="user"), FieldSlot(name="item", table="item")),
        dense=(
            DenseSlot(name="hour", width=1, kind="numeric"),
            DenseSlot(name="rate", width=1, kind="statistic", task="click"),
        ),
        sequences=(
            SequenceSlot(name="clicks", max_length=EVENTS, tables=("item",), fields=("item",)),
        ),
        tasks={"click": BinaryTask(label="click"), "like": BinaryTask(label="like", weight=0.5)},
        encoder_digest="sha256:written",
    )


def rows(count: int, seed: int, first: int = 0) -> pa.Table:
    """Clicks follow the item's parity and the hour; likes are observed on clicked rows only."""
    random = np.random.default_rng(seed)
    item = np.where(random.random(count) < 0.6, HOT, random.integers(2, ITEMS, count))
    user = random.integers(2, USERS, count)
    hour = random.standard_normal(count)
    rate = random.standard_normal(count)
    logit = np.where(item % 2, 1.5, -1.5) + hour + 0.5 * rate
    click = (random.random(count) < 1 / (1 + np.exp(-logit))).astype(np.float32)
    like = np.where(click > 0, random.random(count) < 1 / (1 + np.exp(-hour)), np.nan)
    lengths = random.integers(0, EVENTS + 1, count)
    events = [random.integers(2, ITEMS, n).tolist() for n in lengths]
    return pa.table(
        {
            "row_id": pa.array(np.arange(first, first + count), pa.int64()),
            "user": pa.array(user, pa.int64()),
            "time": pa.array(np.arange(count), pa.int64()),
            "weight": pa.array(random.choice([0.5, 1.0, 2.0], count), pa.float32()),
            "c.user": pa.array(user, pa.int32()),
            "c.item": pa.array(item, pa.int32()),
            "d.hour": pa.array(hour, pa.float32()),
            "d.rate": pa.array(rate, pa.float32()),
            "s.clicks.ids.item": pa.array(events, pa.list_(pa.int32())),
            "s.clicks.ages": pa.array(
                [[float(i) for i in range(n)] for n in lengths], pa.list_(pa.float32())
            ),
            "y.click": pa.array(click, pa.float32()),
            "y.like": pa.array(like, pa.float32(), mask=np.isnan(like)),
        }
    )


def config(*sets: str, out: str = "") -> InfnetConfig:
    raw = {
        "name": "written",
        "data": {
            "source": {"path": "/nowhere", "columns": {"user": "user", "item": "item"}},
            "split": {"type": "column"},
        },
        "features": {"user": {"type": "categorical", "column": "user"}},
        "tasks": {
            "click": {"type": "binary", "label": "click"},
            "like": {"type": "binary", "label": "like", "weight": 0.5},
        },
        "model": {
            "type": "infnet",
            "token_dim": 8,
            "num_blocks": 2,
            "num_categorical_proxies": 2,
            "proxy_hidden": [8],
            "gate_hidden": [8],
            "head_hidden": [8],
        },
        "train": {
            "epochs": 2,
            "batch_size": 32,
            "lanes": 2,
            "shuffle_rows": 64,
            "optimizer": {"type": "adam", "lr": 0.01},
            "embeddings": {"type": "adam", "lr": 0.01},
        },
        "compute": {"type": "local", "num_cpus": 2},
    }
    for item in sets:
        raw = apply_override(raw, item)
    return validate(InfnetConfig, raw, where="written")


def dataset(directory: Path, *, train: int = 420, valid: int = 130) -> str:
    """Write shards, schema, configuration and manifest; the path of the dataset."""
    shards: dict[str, int] = {}
    first = 0
    for split, count in (("train", train), ("valid", valid), ("test", 60)):
        parts = 3 if split == "train" else 1
        for part in range(parts):
            size = count // parts
            name = f"{split}/part-{part:05d}.parquet"
            (directory / split).mkdir(parents=True, exist_ok=True)
            pq.write_table(
                rows(size, seed=hash_of(split, part), first=first),
                directory / name,
                write_page_checksum=True,
            )
            shards[name] = size
            first += size
    (directory / "encoder").mkdir()
    (directory / "encoder" / "encoder.json").write_text("{}")
    schema().write(directory / "schema.json")
    manifest.write(
        directory,
        kind=KIND,
        format_version=FORMAT_VERSION,
        config=config(),
        info={"encoder_digest": schema().encoder_digest, "shards": shards},
    )
    return str(directory)


def hash_of(split: str, part: int) -> int:
    return 1000 * {"train": 1, "valid": 2, "test": 3}[split] + part
