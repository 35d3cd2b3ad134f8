"""Bundles of both programs, small and of no use, and others with the same answers."""

import json
import shutil
from pathlib import Path

import torch

from infnet.serve.bundle import NOT_DIGESTED
from layer_select.config import LayerSelectConfig
from layer_select.pretrain import build
from layer_select.pretrain.run import on_worker
from rayrun import manifest
from rayrun.config import validate
from rayrun.data.sequences import open_sequences
from rayrun.ray.worker import SingleWorker
from tests.layer_select.conftest import TINY
from tests.layer_select.serve.bundles import write_bundle

SMALLER = {
    **TINY,
    "data": {"source": {**TINY["data"]["source"], "users": 60, "items": 40, "rows": 2400}},
    "task": {**TINY["task"], "calibration": 8, "validation": 8, "test": 16, "micro_batch": 8},
    "pretrain": {
        **TINY["pretrain"],
        "epochs": 1,
        "model": {**TINY["pretrain"]["model"], "layers": 2, "width": 16, "feed_forward": 32},
    },
}


def recommender_bundle(folder: Path) -> Path:
    """Of a decoder of two layers that has seen its data once."""
    config = validate(LayerSelectConfig, SMALLER, where="tests/pipelines/tiny_bundles.py")
    sequences = open_sequences(config.data)
    argument = {
        "config": config.to_dict(),
        "tokenizer": build.tokenizer_of(config, sequences),
        "data": sequences.digest,
        "infnet_data": "",
        "model": str(folder / "model"),
    }
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    on_worker(SingleWorker(folder / "state"), argument)
    torch.set_num_threads(threads)
    return write_bundle(config, folder / "model", folder / "bundle")


def next_version(bundle: Path, place: Path) -> Path:
    """The same model under another digest."""
    shutil.copytree(bundle, place)
    sample = json.loads((place / "sample.json").read_bytes())
    (place / "sample.json").write_text(json.dumps(sample, indent=3))
    found = manifest.read_raw(str(place))
    kept = {name: found[name] for name in ("kind", "format_version", "config")}
    manifest.write(str(place), **kept, exclude=NOT_DIGESTED)
    assert manifest.content_of(str(place)) != manifest.content_of(str(bundle))
    return place
