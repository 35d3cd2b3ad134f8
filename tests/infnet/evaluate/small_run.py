"""A small log, and models on it as `infnet train` leaves them, for the tests of measuring them."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from infnet.config import InfnetConfig
from infnet.evaluate.run import evaluate
from infnet.model.recommender import Recommender
from infnet.schema import Schema
from infnet.serve.export import export
from infnet.train import checkpoint, loop
from rayrun import manifest
from rayrun.config import apply_override, validate
from rayrun.metrics import Result
from rayrun.ray.worker import SingleWorker

RAW = {
    "name": "small",
    "data": {
        "source": {"type": "simulate", "rows": 4000, "users": 100, "items": 60},
        "split": {"type": "time", "valid_from": "2022-04-17", "test_from": "2022-04-18"},
    },
    "tasks": {
        "click": {"type": "binary", "label": "is_click"},
        "like": {"type": "binary", "label": "is_like"},
        "watched": {"type": "regression", "label": {"column": "play_time_ms", "scale": 0.001}},
    },
    "features": {
        "user": {"type": "categorical", "column": "user_id", "dim": 8},
        "video": {"type": "categorical", "column": "video_id", "dim": 8},
        "clicked": {
            "type": "sequence",
            "behaviour": {"column": "is_click", "value": 1},
            "fields": ["video"],
            "max_length": 5,
        },
        "click_rate": {
            "type": "statistic",
            "key": ["user_id"],
            "value": "task:click",
            "outputs": ["logit", "count"],
        },
    },
    "model": {
        "type": "infnet",
        "token_dim": 8,
        "num_blocks": 2,
        "proxy_hidden": [8],
        "gate_hidden": [8],
        "head_hidden": [8],
    },
    "rivals": {"floor": {"type": "floor"}},
    "train": {
        "epochs": 3,
        "batch_size": 64,
        "optimizer": {"lr": 0.01},
        "embeddings": {"lr": 0.01},
    },
    "evaluate": {"bootstrap": 40, "batch_size": 16},
    "compute": {"type": "local", "num_cpus": 2, "object_store_bytes": 200_000_000},
}

OLDER = (
    "data.split.valid_from=2022-04-15",
    'tasks={"click": {"type": "binary", "label": "is_click"}, '
    '"viewed": {"type": "binary", "label": "long_view"}}',
    'features={"user": {"type": "categorical", "column": "user_id", "dim": 8}, '
    '"topic": {"type": "categorical", "column": "topic", "dim": 8}, '
    '"topic_rate": {"type": "statistic", "key": ["topic"], "value": "task:click"}, '
    '"length": {"type": "numeric", "column": "duration_ms", "transform": "log1p"}}',
    "train.epochs=1",
    "model={type: floor}",
)
"""What was live before: of another type, trained shortly, on an earlier period, with other features
and tasks."""


def config(*sets: str) -> InfnetConfig:
    raw = RAW
    for item in sets:
        raw = apply_override(raw, item)
    return validate(InfnetConfig, raw, where="test")


def begun(run: Path, data: Path, described: InfnetConfig) -> None:
    """A run directory with weights as they are initialised."""
    _parts_of_the_data(run, data)
    schema = Schema.read(run / "schema.json")
    torch.manual_seed(0)
    model = Recommender(described.model, schema)
    checkpoint.write(
        str(run / "checkpoint"),
        config=described,
        schema=schema,
        network=model.network.state_dict(),
        tables=model.tables.state_dict(),
        info={},
    )
    _seal(run, data, described)


@dataclass(frozen=True)
class Trained:
    """A trained model: its data, its evaluation on the test split, its bundle."""

    data: Path
    evaluation: Path
    bundle: Path
    measured: Result


def train_and_measure(place: Path, data: Path, *sets: str) -> None:
    """Trains in this process, evaluates and exports below `place`."""
    run = place / "run"
    described = config(f"inputs.data={data}", "evaluate.batch_size=512", "rivals={}", *sets)
    train_here(run, data, described)
    inputs = described.inputs.model_copy(update={"checkpoint": str(run)})
    described = described.model_copy(update={"inputs": inputs})
    evaluate(described, str(place / "evaluation"))
    export(described, str(place / "bundle"))


def trained(place: Path, data: Path) -> Trained:
    """What the call above has left there."""
    evaluation = place / "evaluation"
    return Trained(data, evaluation, place / "bundle", Result.read(str(evaluation)))


def train_here(run: Path, data: Path, described: InfnetConfig) -> None:
    """A run directory of the model, trained in this process: Ray Train takes longer to start."""
    _parts_of_the_data(run, data)
    schema = Schema.read(run / "schema.json")
    where = loop.Place(dataset=str(data), out=str(run))
    loop.fit(SingleWorker(run.with_name("state")), described, schema, where)
    _seal(run, data, described)


def _parts_of_the_data(run: Path, data: Path) -> None:
    run.mkdir(parents=True)
    shutil.copytree(data / "encoder", run / "encoder")
    for name in ("schema.json", "sample.json"):
        shutil.copy(data / name, run)


def _seal(run: Path, data: Path, described: InfnetConfig) -> None:
    inputs = {"data": manifest.content_of(str(data))}
    manifest.write(run, kind="infnet.run", format_version=1, config=described, inputs=inputs)
