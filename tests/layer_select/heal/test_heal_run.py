"""`layer-select heal`: the healed model on disk, at every start, on one worker and on two."""

import json
import os
import signal
import threading
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from layer_select.compact.origin import Origin
from layer_select.decoder import Decoder
from layer_select.heal import run as heal_run
from layer_select.heal.config import Narrow
from layer_select.heal.measure import reached
from layer_select.heal.run import heal, heal_model, key_of, plan, start_of
from layer_select.heal.start import Cut, Folder, Random
from layer_select.heal.students import begin
from layer_select.heal.work import on_worker
from layer_select.opened import open_inputs
from layer_select.plan import Plan
from layer_select.selection import run as select_run
from rayrun import manifest
from rayrun.config import ConfigError, apply_override, validate
from rayrun.metrics import Result
from rayrun.ray.compute import LocalCompute
from rayrun.ray.session import session
from rayrun.ray.worker import SingleWorker
from tests.one_process import without_ray_train

KEPT = (0, 5, 11)
LONG = ["heal.steps=60", "heal.checkpoint_every_steps=6", "heal.epochs=1"]


def with_settings(config, settings):
    raw = config.to_dict()
    for setting in settings:
        raw = apply_override(raw, setting)
    return validate(type(config), raw, where="test")


@pytest.fixture(scope="module")
def quick(heal_config):
    return with_settings(heal_config, ["heal.steps=6"])


def healed_here(config, start, folder, cache):
    """In this process; the folder of the student and what the worker told."""
    opened = open_inputs(config)
    begun = begin(start, opened.checkpoint)
    argument = {
        "config": config.to_dict(),
        "start": start.to_dict(),
        "key": key_of(config, opened, begun, start),
        "digests": opened.digests,
        "infnet_data": "",
        "model": str(folder / "model"),
        "cache": str(cache),
    }
    threads = torch.get_num_threads()
    found = on_worker(SingleWorker(folder / "state"), argument)
    torch.set_num_threads(threads)
    return folder / "model", found


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Of teacher outputs, shared by the students of this module."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def compact(quick, cache, tmp_path_factory):
    config = with_settings(quick, ["heal.steps=40", "heal.lr=5e-3"])
    return healed_here(config, Cut(kept=KEPT), tmp_path_factory.mktemp("compact"), cache)


def test_healing_helps_and_what_is_measured_is_what_is_written(compact, quick):
    place, found = compact
    before, after = (found["metrics"][who]["test"] for who in ("before", "after"))
    assert after["loss"] < before["loss"]
    firsts, lasts = (
        dict(zip(found["objectives"], found["losses"][i][1:], strict=True)) for i in (0, -1)
    )
    assert lasts["hidden"] < firsts["hidden"]
    assert found["cost"]["steps"] == 40
    assert found["cost"]["teacher_tokens"] > 0
    assert found["cost"]["flop"] > 6 * 3 * 9000 * found["cost"]["tokens"]
    assert found["retained"]["test"]["after"]["loss"]["low"] is not None
    loaded = AutoModelForCausalLM.from_pretrained(place).eval()
    assert loaded.config.num_hidden_layers == 3
    opened = open_inputs(with_settings(quick, [f"inputs.model={place}"]))
    again = reached(SingleWorker(place.parent / "again"), Decoder(loaded), opened.task)
    assert again["test"].means() == pytest.approx(after, rel=1e-5)
    origin = Origin.read(place)
    assert origin is not None
    assert origin.kept == KEPT
    assert origin.model == open_inputs(quick).checkpoint.digest
    assert [stage["verb"] for stage in origin.stages] == ["heal"]
    head = load_file(place / "item_head.safetensors")["projection"]
    taught = load_file(Path(quick.inputs.model) / "item_head.safetensors")["projection"]
    assert float((head - taught).abs().max()) > 1e-3


def test_a_second_student_of_the_teacher_uses_what_it_said(compact, quick, cache, tmp_path):
    place, first = compact
    _, found = healed_here(quick, Cut(kept=(0, 3, 11)), tmp_path, cache)
    assert found["cost"]["teacher_tokens"] == first["cost"]["teacher_tokens"]  # another layer
    _, again = healed_here(quick, Cut(kept=(0, 3, 11)), tmp_path, cache)
    assert (
        again["started_at"] == again["cost"]["steps"]
    )  # goes on at its end: the cost is all of it
    assert again["cost"]["teacher_tokens"] == found["cost"]["teacher_tokens"]
    assert again["cost"]["flop"] == found["cost"]["flop"]
    (tmp_path / "b").mkdir()
    _, found = healed_here(quick, Cut(kept=(0, 3, 11)), tmp_path / "b", cache)
    assert found["cost"]["teacher_tokens"] == 0
    # a student healed before begins where it stood, and layers are cut from it by its numbers
    begun = begin(Folder(place=str(place)), open_inputs(quick).checkpoint)
    assert begun.kept == KEPT
    begun = begin(Cut(kept=(0, 2), model=str(place)), open_inputs(quick).checkpoint)
    assert begun.kept == (0, 11)
    assert begun.origin is not None
    assert len(begun.origin.stages) == 1


@pytest.mark.parametrize(
    ("start", "settings", "learnt"),
    [
        (Cut(kept=KEPT), ["heal.train={type: lora, rank: 4}"], 0.3),
        (Cut(kept=KEPT), ["heal.train={type: lora, rank: 4}", "heal.zero_stage=3"], 0.3),
        (Random(kept=KEPT), [], 1.0),
        (Narrow(layers=2, width=24, feed_forward=40, heads=2, key_value_heads=2), [], 1.0),
        (Cut(kept=KEPT), ["heal.teacher={type: online}"], 1.0),
    ],
)
def test_every_start_and_way_of_training_gives_an_ordinary_folder(
    quick, start, settings, learnt, cache, tmp_path
):
    place, found = healed_here(with_settings(quick, settings), start, tmp_path, cache)
    loaded = AutoModelForCausalLM.from_pretrained(place)
    total = found["parameters"]
    assert sum(p.numel() for p in loaded.parameters()) == total
    assert 0 < found["parameters_learnt"] <= learnt * total + loaded.config.hidden_size**2
    narrow = isinstance(start, Narrow)
    assert ("hidden" in found["objectives"]) != narrow
    assert (Origin.read(place) is None) == narrow
    assert loaded.config.hidden_size == (24 if narrow else 32)
    opened = open_inputs(with_settings(quick, [f"inputs.model={place}"]))
    again = reached(SingleWorker(tmp_path / "again"), Decoder(loaded), opened.task)
    assert again["test"].means() == pytest.approx(found["metrics"]["after"]["test"], rel=1e-5)


def test_the_start_is_found_in_the_inputs(quick, compact, tmp_path):
    opened = open_inputs(quick)
    Plan(
        model=opened.checkpoint.digest,
        task=opened.task.digest,
        num_layers=12,
        kept=(1, 4),
        budget={"layers": 2},
        strategy={"type": "first_k"},
    ).write(tmp_path)
    planned = with_settings(quick, [f"inputs.plan={tmp_path}"])
    assert start_of(planned) == Cut(kept=(1, 4))
    scratch = ["heal.student={type: scratch}"]
    assert start_of(with_settings(planned, scratch)) == Random(kept=(1, 4))
    given = [f"inputs.student={compact[0]}"]
    assert start_of(with_settings(planned, given)) == Folder(place=str(compact[0]))
    assert start_of(with_settings(planned, [*given, *scratch])) == Random(kept=KEPT)
    narrow = ["heal.student={type: narrow}", "heal.objectives=[{type: task}]"]
    assert start_of(with_settings(quick, narrow)) == Narrow()
    told = plan(planned, "nowhere")
    assert "student: compact, 2 layers, [1, 4] kept" in told
    assert "work: 6 steps," in told
    assert "stages: 6 → 3 layers" in plan(with_settings(quick, ["heal.stages=[6, 3]"]), "nowhere")


def test_what_cannot_be_healed_is_refused(quick, compact, tiny_model, tmp_path):
    with pytest.raises(ConfigError, match="heal needs to know which layers stay: --set inputs"):
        heal(quick, str(tmp_path / "out"))
    whole = [f"inputs.student={tiny_model}"]
    for extra in ([], ["heal.student={type: scratch}"]):
        with pytest.raises(ConfigError, match="has no compaction.json, so its layers' places"):
            heal(with_settings(quick, [*whole, *extra]), str(tmp_path / "out"))
    other = with_settings(quick, [f"inputs.model={compact[0]}"])
    with pytest.raises(ConfigError, match="is made of another model: sha256:.*, the teacher"):
        heal_model(other, str(tmp_path / "out"), start=Folder(place=str(compact[0])))
    for settings, message in (
        (["heal.yes_no_share=0.2"], r"yes_no_share must be above 0 for task.type yes_no, .* head"),
        (["heal.row_tokens=70"], r"heal.row_tokens \(70\) must hold a prompt"),
        (["task.prompt.after='Next:'"], "texts of heal are learnt at the end of every title"),
    ):
        with pytest.raises(ConfigError, match=message):
            heal_model(with_settings(quick, settings), str(tmp_path / "out"), start=Cut(kept=KEPT))
    only = with_settings(quick, ["heal.objectives=[{type: hidden}]"])
    with pytest.raises(ConfigError, match="nothing that a narrow student can learn"):
        heal_model(only, str(tmp_path / "out"), start=Narrow())
    with pytest.raises(ConfigError, match="the model has 12, the first stage 12; name fewer"):
        heal(with_settings(quick, ["heal.stages=[12, 3]"]), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def ray_session():
    with session(LocalCompute(workers=2, num_cpus=2, object_store_bytes=200_000_000)):
        yield


def kill_a_worker_after(step, state, killed):
    """SIGKILL one train worker of ours as soon as rank 0 says it is past `step`."""
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        time.sleep(0.005)
        for progress in state.glob("*/progress.json"):
            try:
                done = json.loads(progress.read_text())["done"]
            except (OSError, ValueError):
                continue
            if done > step:
                workers = [
                    child
                    for child in psutil.Process().children(recursive=True)
                    if "RayTrainWorker" in " ".join(child.cmdline())
                ]
                killed.append((done, len(workers)))
                os.kill(workers[-1].pid, signal.SIGKILL)
                return


@pytest.mark.ray
def test_two_workers_one_killed_come_to_what_one_alone_does(
    heal_config, cache, ray_session, tmp_path
):
    """Its weights are shared out by ZeRO-3."""
    config = with_settings(heal_config, [*LONG, "heal.zero_stage=3", "compute.workers=2"])
    out = tmp_path / "out"
    killed = []
    killer = threading.Thread(
        target=kill_a_worker_after, args=(6, tmp_path / "out.healing", killed)
    )
    killer.start()
    result = heal_model(config, str(out), start=Cut(kept=KEPT))
    killer.join()
    assert killed
    assert killed[0][1] == 2
    assert result.details["started_at"] >= 6
    _, found = healed_here(config, Cut(kept=KEPT), tmp_path, cache)
    expected = found["metrics"]["after"]["test"]["loss"]
    assert result.metrics["next_item"]["loss"] == pytest.approx(expected, rel=1e-3)
    for ours, theirs in zip(result.details["losses"], found["losses"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-4)
    manifest.verify(str(out))
    files = manifest.read(str(out), kind="layer_select.student", format_version=1).files
    named = {"config.json", "model.safetensors", "item_head.safetensors", "compaction.json"}
    assert named | {"result.json", "report.html", "tokenizer.json"} <= files.keys()
    assert not (tmp_path / "out.healing").exists()
    created = manifest.read_raw(str(out))["created"]
    assert heal_model(config, str(out), start=Cut(kept=KEPT)).metrics == result.metrics
    assert manifest.read_raw(str(out))["created"] == created


@pytest.mark.ray
def test_stages_choose_again_and_stand(heal_config, ray_session, tmp_path, monkeypatch):
    without_ray_train(monkeypatch, heal_run, select_run)
    settings = ["heal.steps=3", "heal.stages=[4, 2]", "heal.micro_rows=3"]
    fewer = ["task.calibration=16", "task.validation=16", "task.test=32", "select.bootstrap=0"]
    first = ["select.strategy={type: first_k}"]
    config = with_settings(heal_config, [*settings, *fewer, *first])
    out = tmp_path / "out"
    result = heal(config, str(out))
    assert isinstance(result, Result)
    assert len(result.details["kept"]) == 2
    (stage,) = result.details["stages"]
    assert stage["layers"] == len(stage["kept"]) == 4
    assert set(result.details["kept"]) <= set(stage["kept"])
    origin = Origin.read(out)
    assert origin is not None
    assert [s["verb"] for s in origin.stages] == ["heal", "heal"]
    assert list(origin.kept) == result.details["kept"]
    assert AutoModelForCausalLM.from_pretrained(out).config.num_hidden_layers == 2
    beside = tmp_path / "out.stages"
    assert {p.name for p in beside.iterdir()} == {"plan-4", "plan-2", "healed-4", "teacher"}
    again = heal(config, str(out))
    assert again.metrics == result.metrics
