"""Two pipelines at once on one root in a bucket: each comes to what it comes to alone."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from infnet.config import InfnetConfig
from infnet.data.prepare import prepare
from infnet.train import run as train_run
from rayrun import manifest, storage
from rayrun.config import load
from rayrun.metrics import Result
from rayrun.ray.session import session
from tests.one_process import without_ray_train

ROOT = Path(__file__).parents[2]
SMOKE = ROOT / "configs" / "infnet" / "smoke.yaml"
SETS = (
    "model={type: floor}",
    "rivals={}",
    "train.epochs=1",
    "compute.object_store_bytes=200000000",
)
SEEDS = (1, 2)
"""Of the logs: the pipelines have no step in common."""


def sets_of(seed: int) -> list[str]:
    return [f"data.source.seed={seed}", *SETS]


def step(verb: str, root: str, record: Path, *sets: str) -> str:
    """A step as a pipeline starts it; the place of its output in the store."""
    command = [sys.executable, "-m", "infnet.cli", verb, str(SMOKE), "--store", f"{root}/store"]
    command += ["--record", str(record), *(w for one in sets for w in ("--set", one))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(record.read_text())["uri"]


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.whole
def test_two_pipelines_on_one_root_do_not_disturb_each_other(bucket, tmp_path, monkeypatch):
    root = f"{bucket}/mission"

    def pipeline(seed: int) -> tuple[str, str]:
        data = step("prepare", root, tmp_path / f"prepare-{seed}.json", *sets_of(seed))
        given = f"inputs.data={data}"
        return data, step("train", root, tmp_path / f"train-{seed}.json", *sets_of(seed), given)

    with ThreadPoolExecutor(2) as both:
        found = list(both.map(pipeline, SEEDS))
    assert len({uri for one in found for uri in one}) == 4

    without_ray_train(monkeypatch, train_run)
    with session(load(InfnetConfig, SMOKE, SETS).compute):
        for seed, (data, run) in zip(SEEDS, found, strict=True):
            alone = tmp_path / f"alone-{seed}"
            prepare(load(InfnetConfig, SMOKE, sets_of(seed)), str(alone / "data"))
            given = f"inputs.data={alone / 'data'}"
            expected = train_run.train(
                load(InfnetConfig, SMOKE, [*sets_of(seed), given]), str(alone / "run")
            )
            for uri in (data, run):
                manifest.verify(uri)
            assert manifest.content_of(data) == manifest.content_of(str(alone / "data"))
            assert Result.read(run).metrics == expected.metrics
            told = manifest.read_raw(run)["inputs"]
            assert told == manifest.read_raw(str(alone / "run"))["inputs"]
    left = storage.names(root)
    assert not [name for name in left if name.endswith((".lock", ".incomplete")) or "/." in name]
