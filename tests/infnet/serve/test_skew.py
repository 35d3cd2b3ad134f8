"""No training-serving skew: a logged row asked for as a request gets the score it got offline."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infnet.config import InfnetConfig, ScorerServe
from infnet.data.prepare import prepare
from infnet.evaluate.run import evaluate
from infnet.features import Feature
from infnet.features.arrays import to_arrays, together
from infnet.serve.bundle import Bundle, difference
from infnet.serve.export import export
from infnet.serve.predict import Encoded, Predictor
from infnet.tasks import Task
from infnet.train import run as train_run
from infnet.train.run import train
from tests.infnet.serve import skew_log
from tests.one_process import without_ray_train

pytestmark = pytest.mark.ray


@dataclass(frozen=True)
class Logged:
    """Test rows of the log: as they were prepared and scored offline, and as requests."""

    bundle: Bundle
    predictor: Predictor
    encoded: list[Encoded]
    """By request."""
    rows: list[int]
    """Places in the log of all candidates of all requests, in order."""
    shards: pa.Table
    """The prepared rows at these places."""
    offline: dict[str, np.ndarray]
    """Predictions of `infnet evaluate` for these places, by task."""


def at(config: InfnetConfig, **inputs: Path) -> InfnetConfig:
    places = config.inputs.model_copy(update={k: str(v) for k, v in inputs.items()})
    return config.model_copy(update={"inputs": places})


def read(folder: Path, rows: list[int]) -> pa.Table:
    """The rows of a folder of Parquet files with these `row_id`s, in this order."""
    table = pa.concat_tables([pq.read_table(p) for p in sorted(folder.glob("*.parquet"))])
    place = {row_id: i for i, row_id in enumerate(table["row_id"].to_pylist())}
    return table.take([place[row] for row in rows])


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> Logged:
    from rayrun.ray.session import session

    root = tmp_path_factory.mktemp("skew")
    config = skew_log.write(root)
    with session(config.compute), pytest.MonkeyPatch.context() as patch:
        without_ray_train(patch, train_run)
        prepare(config, str(root / "data"))
        train(at(config, data=root / "data"), str(root / "run"))
        found = at(config, data=root / "data", checkpoint=root / "run")
        evaluate(found, str(root / "evaluated"))
    export(found, str(root / "bundle"))
    bundle = Bundle.open(str(root / "bundle"))
    predictor = Predictor(bundle, ScorerServe())
    log = pq.read_table(root / "log" / "log.parquet")
    columns = bundle.encoder.features.columns(labels=False)
    asked = skew_log.requests(log, columns, skew_log.events(log))
    rows = [row for one in asked for row in one["rows"]]
    offline = read(root / "evaluated" / "predictions", rows)
    return Logged(
        bundle,
        predictor,
        [predictor.encode(json.dumps(one["request"]).encode()) for one in asked],
        rows,
        read(root / "data" / "test", rows),
        {task: offline[f"p.{task}"].to_numpy() for task in bundle.schema.tasks},
    )


def served(logged: Logged) -> dict[str, np.ndarray]:
    scored = [one for answer in logged.predictor.score(logged.encoded) for one in answer]
    return {task: np.array([row[task] for row in scored]) for task in logged.offline}


def test_every_test_row_is_asked_for(logged):
    assert len(logged.rows) == len(set(logged.rows)) > 80
    assert max(len(one) for one in logged.encoded) > 1


def test_the_log_has_every_type_of_feature_and_of_task(logged):
    features = logged.bundle.encoder.features
    for found, registered in ((features.features, Feature), (features.tasks, Task)):
        union, _ = get_args(registered)
        assert {type(one) for one in found.values()} == set(get_args(union))


def test_a_served_row_is_encoded_as_the_row_that_was_prepared(logged):
    asked = together([one.rows for one in logged.encoded])
    prepared = to_arrays(logged.shards, logged.bundle.schema)
    schema = logged.bundle.schema
    for at, field in enumerate(schema.fields):
        assert asked.ids[:, at].tolist() == prepared.ids[:, at].tolist(), field.name
    for slot in schema.dense:
        columns = slice(schema.dense_starts[slot.name], schema.dense_starts[slot.name] + slot.width)
        assert asked.dense[:, columns].tolist() == prepared.dense[:, columns].tolist(), slot.name
    for name, sequence in prepared.sequences.items():
        for part in ("ids", "ages", "lengths"):
            found, expected = getattr(asked.sequences[name], part), getattr(sequence, part)
            assert found.tolist() == expected.tolist(), (name, part)


def test_a_served_row_is_scored_as_it_was_offline(logged):
    for task, values in served(logged).items():
        assert difference(values, logged.offline[task]).max() < 1e-5, task


@pytest.mark.parametrize("name", list(skew_log.features("")))
def test_a_feature_that_is_encoded_as_another_row_would_be_is_noticed(logged, name):
    rows = logged.shards
    wrong = rows.take([*range(1, rows.num_rows), 0])
    for column in rows.column_names:
        prefix, _, rest = column.partition(".")
        if prefix in ("c", "d", "s") and rest.split(".")[0] == name:
            rows = rows.set_column(rows.column_names.index(column), column, wrong[column])
    assert rows is not logged.shards
    apart = [
        difference(values, logged.offline[task]).max()
        for task, values in logged.bundle.score(rows).items()
    ]
    assert max(apart) > 1e-4
