"""A real decoder for the tests of this room: 12 layers, narrow, trained in a few seconds."""

import json
from pathlib import Path

import pytest
import torch

from layer_select.config import LayerSelectConfig
from layer_select.pretrain import build
from layer_select.pretrain.run import on_worker
from rayrun.config import validate
from rayrun.data.sequences import open_sequences
from rayrun.ray.worker import SingleWorker
from tests.shared import made_once

TINY = {
    "name": "tiny",
    "data": {
        "source": {
            "type": "simulate",
            "users": 400,
            "items": 120,
            "rows": 14_000,
            "drift_days": 28.0,
            "random_share": 0.0,
            "language": "zh",
        }
    },
    "task": {
        "type": "head",
        "max_history": 12,
        "max_tokens": 72,
        "calibration": 48,
        "validation": 32,
        "test": 64,
        "micro_batch": 16,
    },
    "pretrain": {
        "model": {
            "width": 32,
            "heads": 2,
            "key_value_heads": 1,
            "feed_forward": 64,
            "vocabulary": 480,
        },
        "row_tokens": 96,
        "batch_rows": 8,
        "epochs": 3,
        "lr": 5e-3,
        "weights": {"next_token": 0.5},
    },
    "compute": {"type": "local", "workers": 1, "num_cpus": 2, "object_store_bytes": 200_000_000},
}


@pytest.fixture(scope="session")
def tiny_config() -> LayerSelectConfig:
    """The configuration that `tiny_model` was made by."""
    return validate(LayerSelectConfig, TINY, where="tests/layer_select/conftest.py")


@pytest.fixture(scope="session")
def tiny_training(tiny_config, request) -> tuple[Path, dict]:
    """The folder of the trained decoder, and what its training returned."""

    def make(folder: Path) -> None:
        found = _trained(tiny_config, folder)
        (folder / "found.json").write_text(json.dumps(found))

    folder = made_once(request, "tiny", make)
    return folder / "model", json.loads((folder / "found.json").read_text())


def _trained(tiny_config: LayerSelectConfig, folder: Path) -> dict:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    sequences = open_sequences(tiny_config.data)
    argument = {
        "config": tiny_config.to_dict(),
        "tokenizer": build.tokenizer_of(tiny_config, sequences),
        "data": sequences.digest,
        "infnet_data": "",
        "model": str(folder / "model"),
    }
    found = on_worker(SingleWorker(folder / "state"), argument)
    torch.set_num_threads(threads)
    return found


@pytest.fixture(scope="session")
def tiny_model(tiny_training) -> Path:
    """A Hugging Face folder with `item_head.safetensors`: 12 layers that beat popularity."""
    return tiny_training[0]
