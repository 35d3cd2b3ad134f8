"""Relative places of a configuration, made absolute where a run is started."""

import os

from layer_select.config import LayerSelectConfig
from layer_select.places import absolute, data_root, use_data_root
from rayrun.config import validate

CONFIG = {
    "name": "here",
    "model": {"type": "gguf", "path": "models/a.gguf"},
    "data": {
        "source": {
            "path": "logs/a.csv",
            "columns": {"user": "u", "item": "i", "time": {"column": "t"}, "title": "name"},
            "tables": [{"path": "titles.csv", "key": "i"}],
        }
    },
    "inputs": {"student": "runs/small", "bundle": "s3://bucket/bundle", "scores": ""},
    "cache": "cache",
    "compute": {"type": "local"},
}


def test_paths_become_absolute_and_uris_stay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = validate(LayerSelectConfig, CONFIG, where="test")
    found = absolute(config)
    monkeypatch.chdir("/")
    assert found.model is not None
    assert found.model.to_dict() == {"type": "gguf", "path": f"{tmp_path}/models/a.gguf"}
    assert found.inputs.student == f"{tmp_path}/runs/small"
    assert (found.inputs.bundle, found.inputs.scores) == ("s3://bucket/bundle", "")
    assert found.cache == f"{tmp_path}/cache"
    source = found.to_dict()["data"]["source"]
    assert source["path"] == f"{tmp_path}/logs/a.csv"
    assert source["tables"][0]["path"] == "titles.csv"  # relative to the source
    assert found.digest() == config.digest()
    assert absolute(found) == found


def test_names_of_models_are_no_paths():
    config = validate(LayerSelectConfig, {**CONFIG, "model": None}, where="test")
    config = config.model_copy(
        update={"inputs": config.inputs.model_copy(update={"model": "ollama:llama3.2:1b"})}
    )
    assert absolute(config).inputs.model == "ollama:llama3.2:1b"
    ollama = {**CONFIG, "model": {"type": "ollama", "name": "tiny"}}
    assert absolute(validate(LayerSelectConfig, ollama, where="test")).to_dict()["model"] == {
        "type": "ollama",
        "name": "tiny",
        "store": "",
    }


def test_workers_read_named_sources_where_the_run_was_started(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("INFNET_DATA", "data")
    told = data_root()
    assert told == f"{tmp_path}/data"
    monkeypatch.chdir("/")
    use_data_root(told)  # the environment of a worker has the relative one
    assert os.environ["INFNET_DATA"] == f"{tmp_path}/data"
    use_data_root("")
    assert os.environ["INFNET_DATA"] == f"{tmp_path}/data"
