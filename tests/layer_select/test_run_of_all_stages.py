"""`layer-select run`: the whole way of a small decoder, from its layers to a bundle."""

import importlib.util
import json
from pathlib import Path

import pytest

from layer_select.cli import main
from layer_select.export.bundle import Bundle
from layer_select.plan import Plan
from layer_select.run import STAGES
from rayrun import manifest, storage
from tests.layer_select.conftest import TINY

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.whole]

SETTINGS = (
    "task.test=40",
    "score.methods=[{type: block_influence}, {type: leave_one_out}]",
    "score.bootstrap=100",
    "select.budget={type: layers, keep: 3}",
    "heal.steps=20",
    "heal.bootstrap=100",
    "evaluate.rivals=[{type: popularity}, {type: first_k, heal: false}]",
    "evaluate.timing.repeats=2",
    "evaluate.bootstrap=100",
)


def page_of(out: Path) -> str:
    """By the script that writes docs/results."""
    file = Path(__file__).parents[2] / "bench" / "layers" / "run_page.py"
    spec = importlib.util.spec_from_file_location("run_page", file)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script.page(script.Run(out), "a call", ["A note."])


def test_the_stages_follow_each_other_and_are_not_made_again(tiny_model, tmp_path, capsys):
    """A stage refuses; corrected, the run goes on there; one that lost its end makes that alone."""
    file = tmp_path / "tiny.yaml"
    file.write_text(json.dumps(TINY), encoding="utf-8")
    out = tmp_path / "run"
    call = ["run", str(file), "--out", str(out), *(f"--set={s}" for s in SETTINGS)]
    call += [f"--set=inputs.model={tiny_model}"]

    assert main([*call, "--set=select.budget={type: layers, keep: 1}"]) == 2
    assert "protect" in capsys.readouterr().err
    scores = (out / "scores" / "manifest.json").stat().st_mtime_ns
    assert not (out / "result.json").exists()

    assert main(call) == 0
    assert (out / "scores" / "manifest.json").stat().st_mtime_ns == scores
    kept = Plan.read(str(out / "plan")).kept
    result = json.loads((out / "result.json").read_text())
    assert len(kept) == 3
    assert set(result["details"]["stages"]) == {stage.verb for stage in STAGES}
    assert {"full", "popularity", "first_k"} <= set(result["baselines"])
    assert Bundle.read(str(out / "bundle")).info["layers"] == 3
    raw = manifest.read_raw(out)
    assert set(raw["inputs"]) == {stage.verb for stage in STAGES}
    for stage in STAGES:
        assert raw["inputs"][stage.verb] == manifest.content_of(str(out / stage.folder))
        assert f'href="{stage.folder}/report.html"' in (out / "report.html").read_text()
    page = page_of(out)
    assert "tiny: 12 layers to 3" in page
    for line in result["details"]["targets"]:
        assert line["name"] in page
    for heading in ("The choice by itself", "Before and after healing", "Exported, and read back"):
        assert f"## {heading}" in page
    written = {stage.folder: (out / stage.folder / "manifest.json").stat() for stage in STAGES}

    storage.remove(out / "bundle")
    capsys.readouterr()
    assert main(call) == 0
    for folder, before in written.items():
        after = (out / folder / "manifest.json").stat()
        assert (after.st_mtime_ns == before.st_mtime_ns) == (folder != "bundle"), folder


def test_a_strangers_directory_is_refused(tmp_path, capsys):
    file = tmp_path / "tiny.yaml"
    file.write_text(json.dumps(TINY), encoding="utf-8")
    out = tmp_path / "holiday"
    out.mkdir()
    (out / "photo.jpg").write_bytes(b"")
    assert main(["run", str(file), "--out", str(out)]) == 2
    assert "is no earlier output" in capsys.readouterr().err
    assert [p.name for p in out.iterdir()] == ["photo.jpg"]
