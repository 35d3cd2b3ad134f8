"""`layer-select pretrain-tiny` on Ray Train: what it leaves behind, and what it refuses."""

import subprocess
import sys
from pathlib import Path

import pytest

from layer_select.config import LayerSelectConfig
from layer_select.pretrain import run as pretrain_run
from layer_select.pretrain.run import plan, pretrain, pretrained
from rayrun import manifest
from rayrun.config import ConfigError
from rayrun.metrics import Result
from rayrun.ray.compute import LocalCompute
from rayrun.ray.session import session
from tests.one_process import without_ray_train

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def ray_session():
    with session(LocalCompute(workers=1, num_cpus=2, object_store_bytes=200_000_000)):
        yield


@pytest.fixture(scope="module")
def shallow(tiny_config) -> LayerSelectConfig:
    """One layer learns this catalogue in a few seconds."""
    shape = tiny_config.pretrain.model.model_copy(update={"layers": 1})
    changes = {"model": shape, "epochs": 6, "lr": 1e-2, "bootstrap": 200}
    return tiny_config.model_copy(
        update={"pretrain": tiny_config.pretrain.model_copy(update=changes)}
    )


@pytest.fixture(scope="module")
def trained(shallow, ray_session, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrain")
    config = shallow.model_copy(update={"cache": str(folder / "kept")})
    return config, pretrained(config, str(folder / "run"))


def test_a_teacher_is_an_ordinary_folder_with_its_result(trained):
    _, place = trained
    manifest.verify(place)
    found = manifest.read(place, kind="layer_select.model", format_version=1)
    expected = {"config.json", "model.safetensors", "tokenizer.json", "item_head.safetensors"}
    assert expected | {"generation_config.json", "result.json", "report.html"} <= set(found.files)
    result = Result.read(place)
    own, popular = (
        r["next_item"]["ndcg@10"] for r in (result.metrics, result.baselines["popularity"])
    )
    difference = result.details["difference_to_popularity"]["ndcg@10"]
    assert own - popular == pytest.approx(difference["value"], abs=1e-9)
    assert 0 < difference["low"] < difference["value"] < difference["high"]
    assert result.split == "test"
    assert result.rows == result.details["counts"]["users_taken"]
    assert not [p for p in Path(place).parent.iterdir() if "training" in p.name]


def test_the_model_is_made_once(trained, tmp_path):
    config, place = trained
    before = manifest.read_raw(place)["created"]
    task = config.task.model_copy(update={"calibration": 5})
    other = config.model_copy(update={"name": "other", "task": task})
    assert pretrained(other, str(tmp_path / "elsewhere")) == place
    assert pretrain(config, place).metrics == Result.read(place).metrics
    assert manifest.read_raw(place)["created"] == before


def test_the_plan_says_how_large_it_is(shallow):
    text = plan(shallow, "nowhere")
    assert "model: 1 layers, " in text
    assert "120 items in the head" in text
    assert "work: 6 epochs of about" in text


def test_what_does_not_beat_popularity_is_no_teacher(shallow, tmp_path, monkeypatch):
    without_ray_train(monkeypatch, pretrain_run)
    idle = shallow.pretrain.model_copy(update={"epochs": 1, "lr": 1e-9})
    config = shallow.model_copy(update={"pretrain": idle})
    message = (
        r"the pretrained decoder is no teacher: ndcg@10 [\d.]+ against [\d.]+ by popularity on \d+ "
        r"test samples, difference -[\d.]+ \[.*\]; the interval must lie above 0. Train longer "
        r"\(--set pretrain.epochs=…\)"
    )
    with pytest.raises(ConfigError, match=message):
        pretrain(config, str(tmp_path / "out"))
    assert list(tmp_path.iterdir()) == []


def test_the_verb_is_on_the_command_line():
    done = subprocess.run(
        [sys.executable, "-m", "layer_select.cli", "pretrain-tiny", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "it must beat popularity" in " ".join(done.stdout.split())
    assert done.stderr == ""
