"""Places of a configuration that mean the same on every machine of a run.

Workers of Ray have working directories of their own, so a relative path is made absolute where the
run is started.
"""

import os
from typing import Any

from layer_select.config import LayerSelectConfig
from rayrun import storage

OLLAMA = "ollama:"
DATA = "INFNET_DATA"


def absolute(config: LayerSelectConfig) -> LayerSelectConfig:
    """The same configuration with absolute paths; URIs of object stores stay as they are."""
    inputs = {name: _absolute(place) for name, place in config.inputs.to_dict().items()}
    changed: dict[str, Any] = {
        "inputs": config.inputs.model_copy(update=inputs),
        "cache": _absolute(config.cache),
        "data": _with_source(config.data),
    }
    if config.model is not None:
        named = {n: _absolute(getattr(config.model, n, "")) for n in ("path", "store")}
        there = {n: place for n, place in named.items() if hasattr(config.model, n)}
        changed["model"] = config.model.model_copy(update=there)
    if config.evaluate.data is not None:
        other = _with_source(config.evaluate.data)
        changed["evaluate"] = config.evaluate.model_copy(update={"data": other})
    return config.model_copy(update=changed)


def data_root() -> str:
    """Where named sources are, as workers are told it; empty where that is not known."""
    return storage.absolute(os.environ.get(DATA, ""))


def use_data_root(told: str) -> None:
    """On a worker: named sources are where they were when the run was started."""
    if told:
        os.environ[DATA] = told


def _absolute(place: str) -> str:
    return place if place.startswith(OLLAMA) else storage.absolute(place)


def _with_source(data: Any) -> Any:
    # Side tables are relative to the source's own path, which is enough.
    if data.source.type != "path":
        return data
    source = data.source.model_copy(update={"path": storage.absolute(data.source.path)})
    return data.model_copy(update={"source": source})
