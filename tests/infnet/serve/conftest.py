"""A run directory as `infnet train` leaves it, with weights that nobody trained, and its bundle."""

from pathlib import Path

import pytest
import torch

from infnet.baselines import Model
from infnet.config import InfnetConfig
from infnet.data import sample
from infnet.features.encoder import Encoder
from infnet.features.feature_set import FeatureSet
from infnet.model.recommender import Recommender
from infnet.serve.export import export
from infnet.train import checkpoint
from infnet.train.run import FORMAT_VERSION, KIND
from rayrun import manifest
from rayrun.config import validate
from tests.infnet.features import feature_log
from tests.shared import made_once

FEATURES = {
    "user": {"type": "categorical", "column": "user", "dim": 8},
    "item": {"type": "categorical", "column": "item", "dim": 8, "cold_start": "mean"},
    "tag": {
        "type": "categorical",
        "column": "tag",
        "dim": 8,
        "encoding": {"type": "hash", "buckets": 7},
    },
    "number": {"type": "numeric", "column": "number"},
    "steps": {"type": "window", "column": "steps", "length": 5},
    "clicks": {
        "type": "sequence",
        "fields": ["item", "tag"],
        "behaviour": {"column": "click", "value": 1},
        "max_length": 4,
        "decay": 0.5,
    },
    "past": {"type": "sequence", "fields": ["item"], "column": "past", "max_length": 3},
    "item_click": {
        "type": "statistic",
        "key": ["item"],
        "value": "task:click",
        "outputs": ["count", "logit"],
    },
}
SMALL = {"token_dim": 8, "num_blocks": 2, "proxy_hidden": [8], "gate_hidden": [8]}


def config() -> InfnetConfig:
    raw = {
        "name": "served",
        "data": {
            "source": {
                "path": "/nowhere",
                "columns": {"user": "user", "item": "item", "time": {"column": "at"}},
            },
            "split": {"type": "column"},
        },
        "features": FEATURES,
        "tasks": feature_log.TASKS,
        "model": {"type": "infnet", **SMALL},
        "rivals": {"logistic": {"type": "floor"}},
        "compute": {"type": "local"},
    }
    return validate(InfnetConfig, raw, where="served.yaml")


def write_model(run: Path, config: InfnetConfig, model: Model, encoder: Encoder) -> None:
    """One model of a run: `checkpoint/` and what belongs to the data."""
    schema = encoder.schema()
    torch.manual_seed(0)
    recommender = Recommender(model, schema)
    for weight in recommender.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    encoder.write(run / "encoder")
    schema.write(run / "schema.json")
    own = config.model_copy(update={"model": model, "rivals": {}} if model != config.model else {})
    checkpoint.write(
        str(run / "checkpoint"),
        config=own,
        schema=schema,
        network=recommender.network.state_dict(),
        tables=recommender.tables.state_dict(),
        info={},
    )


@pytest.fixture(scope="session")
def trained_run(request: pytest.FixtureRequest) -> Path:
    """The run directory; tests that change it work on a copy."""
    return made_once(request, "served", lambda folder: _write_run(folder / "run")) / "run"


def _write_run(run: Path) -> None:
    made = config()
    log = feature_log.make_log()
    features = FeatureSet(made.features, made.tasks, feature_log.ROLES, log.schema)
    encoder = feature_log.fit(features, feature_log.training_rows(log))
    rows = features.with_roles(log)
    keys = sample.choose(sample.find(features, rows))
    request = sample.request(features, [sample.collect(features, keys, rows)])
    models = {run: made.model, run / "rivals" / "logistic": made.rivals["logistic"]}
    for place, model in models.items():
        place.mkdir(parents=True)
        write_model(place, made, model, encoder)
        sample.write(request, place)
    manifest.write(str(run), kind=KIND, format_version=FORMAT_VERSION, config=made)


@pytest.fixture(scope="session")
def at_run():
    """The configuration with a run directory as its input."""

    def at(run: Path, **inputs: str) -> InfnetConfig:
        made = config()
        places = made.inputs.model_copy(update={"checkpoint": str(run), **inputs})
        return made.model_copy(update={"inputs": places})

    return at


@pytest.fixture(scope="session")
def exported(trained_run: Path, at_run, request: pytest.FixtureRequest) -> Path:
    """The bundle of the model; tests that change it work on a copy."""

    def make(folder: Path) -> None:
        export(at_run(trained_run), str(folder / "bundle"))

    return made_once(request, "exported", make) / "bundle"
