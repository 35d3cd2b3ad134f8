"""`infnet train` as a function: run directories, refusals, and a driver that dies."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from infnet.train import run as train_run
from infnet.train.checkpoint import load
from infnet.train.loop import Place, fit
from infnet.train.run import train
from rayrun import manifest, storage
from rayrun.config import ConfigError
from rayrun.ray.worker import SingleWorker
from tests.infnet.train import written_dataset as written
from tests.one_process import without_ray_train

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def config(dataset):
    return written.config(
        f"inputs.data={dataset}", "train.epochs=1", "rivals={floor: {type: floor}}"
    )


@pytest.fixture(scope="module")
def trained(config, ray_session, tmp_path_factory):
    """By Ray Train: below, and in tests/e2e."""
    out = tmp_path_factory.mktemp("trained") / "run"
    with pytest.MonkeyPatch.context() as patch:
        without_ray_train(patch, train_run)
        return out, train(config, str(out))


def test_the_run_directory_is_whole(trained, config):
    out, result = trained
    found = {p.name for p in out.iterdir()}
    assert found == {
        "manifest.json", "config.yaml", "schema.json", "encoder", "checkpoint", "metrics.jsonl",
        "rivals", "result.json", "report.html",
    }  # fmt: skip
    for place in (out, out / "rivals" / "floor"):
        manifest.verify(place)
        assert manifest.read(place, kind="infnet.run", format_version=1).info["complete"]
        recommender, _, _ = load(place)
        assert not recommender.training
    assert result.verb == "train"
    assert result.split == "valid"
    assert set(result.baselines) == {"floor"}
    assert 0 < result.metrics["click"]["auc"] < 1
    assert result.rows == 13 * 32
    assert result.config_digest == config.digest()
    written_config = (out / "config.yaml").read_text()
    assert config.inputs.data in written_config  # so that evaluate finds the dataset


def test_a_second_call_returns_the_result_that_stands_there(trained, config):
    out, result = trained
    before = (out / "manifest.json").stat().st_mtime_ns
    assert train(config, str(out)) == result
    assert (out / "manifest.json").stat().st_mtime_ns == before


def test_another_configuration_is_refused(trained, config):
    out, _ = trained
    other = written.config(f"inputs.data={config.inputs.data}", "train.seed=7")
    with pytest.raises(
        ConfigError, match=r"holds a run with config digest .* choose another --out"
    ):
        train(other, str(out))


def test_other_data_is_refused(trained, config, tmp_path):
    out, _ = trained
    other = written.dataset(tmp_path / "other", train=390)
    inputs = config.inputs.model_copy(update={"data": other})
    with pytest.raises(ConfigError, match="holds a run on the data with digest"):
        train(config.model_copy(update={"inputs": inputs}), str(out))


def test_a_directory_of_other_things_is_refused_and_left_alone(config, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(
        ConfigError, match=r"holds 1 files \(such as thesis\.txt\) and is no run directory"
    ):
        train(config, str(tmp_path))
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_two_runs_writing_the_same_directory_are_refused(config, tmp_path):
    code = (
        "import sys, time\nfrom rayrun import storage\n"
        "with storage.claim(sys.argv[1]):\n print('held', flush=True)\n time.sleep(60)"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "run")], stdout=subprocess.PIPE
    )
    try:
        holder.stdout.readline()
        with pytest.raises(ConfigError, match="is being written by process"):
            train(config, str(tmp_path / "run"))
    finally:
        holder.kill()
        holder.wait()


def test_no_dataset_is_one_error(config, tmp_path):
    inputs = config.inputs.model_copy(update={"data": str(tmp_path / "nowhere")})
    with pytest.raises(ConfigError, match="nowhere does not exist"):
        train(config.model_copy(update={"inputs": inputs}), str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_metric_no_task_has_is_refused_at_once(tmp_path):
    config = written.config("train.early_stopping={metric: rmse}")
    with pytest.raises(ConfigError, match=r"train.early_stopping.metric"):
        train(config, str(tmp_path / "run"))


LONG = ("train.epochs=12", "train.checkpoint_every_steps=10")

DRIVER = """
import sys
sys.path.insert(0, {folder!r})
from tests.infnet.train import written_dataset as written
from infnet.train.run import train
train(written.config(*{sets!r}), {out!r})
"""


def test_a_killed_driver_is_continued_by_the_same_call(dataset, ray_session, tmp_path):
    """Exact to the last bit, against a run that nobody disturbed."""
    sets = (f"inputs.data={dataset}", *LONG)
    out = tmp_path / "run"
    code = DRIVER.format(folder=str(Path(__file__).parents[3]), sets=sets, out=str(out))
    driver = subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    progress = out / "ray" / "model" / "progress.json"
    try:
        deadline = time.monotonic() + 120
        while not (progress.exists() and json.loads(progress.read_text())["done"] > 11):
            assert driver.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    assert not (out / "result.json").exists()
    config = written.config(*sets)
    continued = train(config, str(out))
    info = manifest.read(out, kind="infnet.run", format_version=1).info
    assert info["complete"]
    assert info["started_at"] > 0

    place = Place(dataset, str(tmp_path / "whole"))
    undisturbed = fit(SingleWorker(tmp_path / "state"), config, written.schema(), place)
    assert continued.metrics == undisturbed["metrics"]
    for name in ("network", "tables"):
        expected = load_file(tmp_path / "whole" / "checkpoint" / f"{name}.safetensors")
        found = load_file(out / "checkpoint" / f"{name}.safetensors")
        assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())
    assert storage.read_bytes(out / "metrics.jsonl") == storage.read_bytes(
        tmp_path / "whole" / "metrics.jsonl"
    )
