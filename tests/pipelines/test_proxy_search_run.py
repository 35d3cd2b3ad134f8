"""The pipeline `proxy_search`, run whole on this machine: what the search finds is what is trained."""

import json
from pathlib import Path

import pytest
import yaml

from pipelines.proxy_search import STEPS
from tests.pipelines.whole_run import run_whole

SETS = (
    "data.source={type: simulate, rows: 4000, users: 200, items: 80}",
    "train.epochs=1",
    "tune={space: {model.num_categorical_proxies: {type: choice, values: [1, 3]}}, trials: 2, "
    "seeds: [0]}",
    "compute.object_store_bytes=200000000",
)

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.whole, pytest.mark.timeout(1200)]


def run(root: Path) -> dict:
    """The status of a run."""
    words = ("config=configs/infnet/smoke.yaml", *(f"--set={each}" for each in SETS))
    folder, _ = run_whole("proxy_search", root, *words)
    return json.loads((folder / "status.json").read_text())


def test_the_best_counts_are_trained_measured_and_found_again(tmp_path):
    steps = run(tmp_path)["steps"]
    assert {name: step["state"] for name, step in steps.items()} == dict.fromkeys(STEPS, "done")
    places = {name: Path(step["uri"]) for name, step in steps.items()}
    (best,) = json.loads((places["tune"] / "best.json").read_text())["sets"]
    trials = json.loads((places["tune"] / "result.json").read_text())["details"]
    assert best in ("model.num_categorical_proxies=1", "model.num_categorical_proxies=3"), trials
    trained = yaml.safe_load((places["train"] / "config.yaml").read_text())
    assert trained["model"]["num_categorical_proxies"] == int(best[-1])

    again = run(tmp_path)["steps"]
    assert {step["state"] for step in again.values()} == {"cached"}
    assert {name: Path(step["uri"]) for name, step in again.items()} == places
