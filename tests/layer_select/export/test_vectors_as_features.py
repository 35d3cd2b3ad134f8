"""From a language model to a feature of the scorer: one simulated world gives titles and labels."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from infnet.config import InfnetConfig
from infnet.data.prepare import prepare
from infnet.train import run as train_run
from infnet.train.run import train
from layer_select.config import LayerSelectConfig
from layer_select.export.embed import embed
from layer_select.export.run import export
from rayrun import manifest
from rayrun.config import ConfigError, validate
from rayrun.data.world import SimulateSource
from rayrun.metrics import Result
from rayrun.ray.compute import LocalCompute
from rayrun.ray.session import session
from tests.one_process import without_ray_train

pytestmark = pytest.mark.ray

COMPUTE = {"type": "local", "workers": 1, "num_cpus": 2, "object_store_bytes": 200_000_000}


@pytest.fixture(scope="module")
def ray_session():
    with session(validate(LocalCompute, COMPUTE, where="test")):
        yield


@pytest.fixture(scope="module")
def embedded(tiny_config, tiny_model, ray_session, tmp_path_factory):
    """The vectors of a bundle."""
    folder = tmp_path_factory.mktemp("embed")
    raw = tiny_config.to_dict()
    raw["inputs"]["model"] = str(tiny_model)
    raw["data"]["users"] = 80
    raw["export"]["gguf"] = "none"
    config = validate(LayerSelectConfig, raw, where="test")
    export(config, str(folder / "bundle"))
    raw["inputs"] = {"bundle": str(folder / "bundle")}
    config = validate(LayerSelectConfig, raw, where="test")
    return config, folder, embed(config, str(folder / "vectors"))


def test_the_vectors_are_an_artifact_that_is_made_once(embedded):
    config, folder, result = embedded
    assert result.details == {
        "items": 120, "users": 80, "users_without_history": 0, "width": 32,
    }  # fmt: skip
    place = str(folder / "vectors")
    manifest.verify(place)
    found = manifest.read(place, kind="layer_select.vectors", format_version=1)
    assert found.inputs["bundle"] == manifest.content_of(str(folder / "bundle"))
    assert embed(config, place).wall_s == Result.read(place).wall_s
    assert sorted(p.name for p in folder.iterdir()) == ["bundle", "vectors"]
    assert pq.read_metadata(f"{place}/users.parquet").num_rows == 80


def test_a_bundle_that_asks_otherwise_is_refused(embedded):
    config, folder, _ = embedded
    task = config.task.model_copy(update={"max_history": 3})
    with pytest.raises(ConfigError, match=r"'max_history': 3.* must be how the bundle .* asks"):
        embed(config.model_copy(update={"task": task}), str(folder / "other"))


def test_the_scorer_trains_on_them(embedded, tiny_config, tmp_path, monkeypatch):
    without_ray_train(monkeypatch, train_run)
    _, folder, _ = embedded
    known = SimulateSource.model_fields  # the same world; what titles are like is not its business
    source = {k: v for k, v in tiny_config.data.source.to_dict().items() if k in known}
    vectors = f"{folder}/vectors/items.parquet"
    raw = {
        "name": "with_vectors",
        "data": {
            "source": source,
            "split": {"type": "time", "valid_from": "2022-04-19", "test_from": "2022-04-20"},
        },
        "tasks": {"click": {"type": "binary", "label": "is_click"}},
        "features": {
            "tab": {"type": "categorical", "column": "tab", "dim": 8},
            "title": {
                "type": "pretrained",
                "column": "video_id",
                "path": vectors,
                "key": "item",
                "width": 32,
            },
        },
        "model": {
            "type": "infnet", "token_dim": 8, "num_blocks": 2, "proxy_hidden": [8],
            "gate_hidden": [8], "head_hidden": [8],
        },
        "train": {"epochs": 1, "batch_size": 1024, "strategy": {"type": "single"}},
        "compute": COMPUTE,
    }  # fmt: skip
    config = validate(InfnetConfig, raw, where="test")
    dataset = str(tmp_path / "dataset")
    prepare(config, dataset)

    shard = next((tmp_path / "dataset").rglob("train/*.parquet"))
    encoded = np.stack(pq.read_table(shard)["d.title"].to_pylist())
    assert (encoded[:, -1] == 0).all()  # every video that was shown has its vector
    given = {tuple(np.float32(v)) for v in pq.read_table(vectors)["vector"].to_pylist()}
    assert {tuple(np.float32(row[:-1])) for row in encoded[:50]} <= given

    inputs = config.inputs.model_copy(update={"data": dataset})
    result = train(config.model_copy(update={"inputs": inputs}), str(tmp_path / "run"))
    assert 0 < result.metrics["click"]["auc"] < 1
    assert result.rows > 0
    schema = json.loads((tmp_path / "run" / "schema.json").read_text())
    assert {"name": "title", "width": 33, "kind": "pretrained"}.items() <= next(
        slot for slot in schema["dense"] if slot["name"] == "title"
    ).items()
