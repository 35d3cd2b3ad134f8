"""Every component: what its module imports, what it says to the command line, how it is compiled."""

import ast
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from kfp.dsl import HTML, Artifact, Dataset, Metrics, Model

ROOT = Path(__file__).parents[2]
SMOKE = ROOT / "configs" / "infnet" / "smoke.yaml"
FILES = sorted([*(ROOT / "components").glob("*.py"), *(ROOT / "pipelines").glob("*.py")])
MAY_IMPORT = {"kfp", "components", "pipelines", *sys.stdlib_module_names}

VERBS = {
    "prepare": ("dataset", Dataset, {}),
    "train": ("model", Model, {"data": "/nowhere/data"}),
    "evaluate": ("evaluation", Artifact, {"data": "/nowhere/data", "checkpoint": "/nowhere/run"}),
    "gate": ("comparison", Artifact, {"evaluation": "/nowhere/eval", "live": "/nowhere/live"}),
    "export": ("bundle", Model, {"checkpoint": "/nowhere/run"}),
    "deploy": (
        "deployment",
        Artifact,
        {"bundle": "/nowhere/bundle", "address": "10.0.0.1:6379", "live": "/nowhere/live"},
    ),
}


def component(verb: str):
    module = importlib.import_module(f"components.infnet_{verb}")
    return getattr(module, f"infnet_{verb}")


def test_there_is_a_file_per_step():
    verbs = {path.stem.removeprefix("infnet_") for path in FILES if "infnet_" in path.stem}
    assert verbs == set(VERBS)


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_a_module_imports_kfp_and_the_standard_library_only(path):
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            roots = {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            roots = {(node.module or "").split(".")[0]}
        else:
            continue
        assert roots <= MAY_IMPORT, f"line {node.lineno}"


@pytest.mark.parametrize("verb", VERBS)
def test_the_command_line_accepts_what_a_component_says(verb, tmp_path, monkeypatch):
    """The real verb, called with a setting of a wrong type: no other complaint than that one."""
    name, kind, places = VERBS[verb]
    artifact = kind(name=name, uri=str(tmp_path / name))
    outputs = {name: artifact}
    if verb != "deploy":
        outputs["metrics"] = Metrics(name="metrics", uri=str(tmp_path / "metrics"))
        outputs["report"] = HTML(name="report", uri=str(tmp_path / "report"))
    events = tmp_path / "events.jsonl"
    monkeypatch.setenv("INFNET_EVENTS", str(events))
    with pytest.raises(SystemExit) as end:
        component(verb).python_func(
            **outputs,
            config=str(SMOKE),
            root=str(tmp_path / "root"),
            run="r1",
            sets=["train.epochs=many"],
            **places,
        )
    assert end.value.code == 2
    said = [json.loads(line) for line in events.read_text().splitlines()]
    lines = [event["line"] for event in said if event["state"] == "running"]
    error = lines[next(at for at, line in enumerate(lines) if line.startswith("error: ")) :]
    assert error[0] == f"error: {SMOKE} is not a valid InfnetConfig:"
    assert [line.split(":")[0] for line in error[1:]] == ["train.epochs"]
    record = json.loads((tmp_path / "root/runs/r1/steps" / f"{verb}.json").read_text())
    assert (record["state"], record["exit_code"]) == ("failed", 2)


def test_the_image_is_read_where_a_pipeline_is_compiled(tmp_path, monkeypatch):
    monkeypatch.setenv("INFNET_IMAGE", "registry.test/infnet:9")
    compile_it = [sys.executable, "-m", "pipelines", "compile", "--out", str(tmp_path)]
    subprocess.run(compile_it, cwd=ROOT, check=True, capture_output=True)
    text = (tmp_path / "recommender.yaml").read_text()
    assert text.count("image: registry.test/infnet:9") == len(VERBS) + 1
    assert "image: infnet-ray" not in text
