"""Every component: what its module imports, what it says to the command line, how it is compiled."""

import ast
import importlib
import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest
from kfp.dsl import HTML, Artifact, Dataset, Metrics, Model, TaskConfig

from pipelines import recommender

ROOT = Path(__file__).parents[2]
SMOKE = ROOT / "configs" / "infnet" / "smoke.yaml"
QUICK = ROOT / "configs" / "layer_select" / "quick.yaml"
FILES = sorted([*(ROOT / "components").glob("*.py"), *(ROOT / "pipelines").glob("*.py")])
OF_KFP = {"kfp", "kfp_server_api", "urllib3", "docstring_parser"}
"""The SDK and what it is made of."""
MAY_IMPORT = {*OF_KFP, "components", "pipelines", *sys.stdlib_module_names}

PLACES = {
    "model": "/nowhere/model",
    "scores": "/nowhere/scores",
    "plan": "/nowhere/plan",
    "student": "/nowhere/student",
}


def of(*names):
    return {name: PLACES[name] for name in names}


VERBS = {
    "infnet_prepare": ("dataset", Dataset, {}),
    "infnet_train": ("model", Model, {"data": "/nowhere/data"}),
    "infnet_tune": ("search", Artifact, {"data": "/nowhere/data"}),
    "infnet_evaluate": (
        "evaluation",
        Artifact,
        {"data": "/nowhere/data", "checkpoint": "/nowhere/run", "without": "/nowhere/eval"},
    ),
    "infnet_gate": (
        "comparison",
        Artifact,
        {"evaluation": "/nowhere/eval", "live": "/nowhere/live"},
    ),
    "infnet_export": ("bundle", Model, {"checkpoint": "/nowhere/run"}),
    "infnet_deploy": (
        "deployment",
        Artifact,
        {
            "bundle": "/nowhere/bundle",
            "address": "10.0.0.1:6379",
            "live": "/nowhere/live",
            "route_prefix": "/one",
        },
    ),
    "layers_pretrain": ("model", Model, {}),
    "layers_score": ("scores", Artifact, of("model")),
    "layers_select": ("plan", Artifact, of("model", "scores")),
    "layers_compact": ("student", Model, of("model", "plan")),
    "layers_heal": ("healed", Model, of("model", "student")),
    "layers_evaluate": ("evaluation", Artifact, of("model", "scores", "student")),
    "layers_export": ("bundle", Model, of("model", "student")),
    "layers_embed": ("vectors", Dataset, of("model", "student")),
    "layers_deploy": (
        "deployment",
        Artifact,
        {
            "bundle": "/nowhere/bundle",
            "address": "10.0.0.1:6379",
            "live": "/nowhere/live",
            "route_prefix": "/one",
        },
    ),
}
CONFIGS = {
    "infnet": (SMOKE, "InfnetConfig", "train.epochs"),
    "layers": (QUICK, "LayerSelectConfig", "heal.epochs"),
}


def component(name: str):
    return getattr(importlib.import_module(f"components.{name}"), name)


def test_there_is_a_file_per_step():
    assert {path.stem for path in FILES if path.stem.startswith(("infnet_", "layers_"))} == set(
        VERBS
    )


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
    product, _, step = verb.partition("_")
    config, known_as, key = CONFIGS[product]
    artifact = kind(name=name, uri=str(tmp_path / name))
    outputs = {name: artifact}
    if step != "deploy":
        outputs["metrics"] = Metrics(name="metrics", uri=str(tmp_path / "metrics"))
        outputs["report"] = HTML(name="report", uri=str(tmp_path / "report"))
    if "task_config" in inspect.signature(component(verb).python_func).parameters:
        outputs["task_config"] = TaskConfig()
    events = tmp_path / "events.jsonl"
    monkeypatch.setenv("INFNET_EVENTS", str(events))
    with pytest.raises(SystemExit) as end:
        component(verb).python_func(
            **outputs,
            config=str(config),
            root=str(tmp_path / "root"),
            run="r1",
            sets=[f"{key}=many"],
            **places,
        )
    assert end.value.code == 2
    said = [json.loads(line) for line in events.read_text().splitlines()]
    lines = [event["line"] for event in said if event["state"] == "running"]
    error = lines[next(at for at, line in enumerate(lines) if line.startswith("error: ")) :]
    assert error[0] == f"error: {config} is not a valid {known_as}:"
    assert [line.split(":")[0] for line in error[1:]] == [key]
    record = json.loads((tmp_path / "root/runs/r1/steps" / f"{step}.json").read_text())
    assert (record["state"], record["exit_code"]) == ("failed", 2)


def test_the_image_is_read_where_a_pipeline_is_compiled(tmp_path, monkeypatch):
    monkeypatch.setenv("INFNET_IMAGE", "registry.test/infnet:9")
    compile_it = [sys.executable, "-m", "pipelines", "compile", "--out", str(tmp_path)]
    subprocess.run(compile_it, cwd=ROOT, check=True, capture_output=True)
    text = (tmp_path / "recommender.yaml").read_text()
    assert text.count("image: registry.test/infnet:9") == len(recommender.STEPS) + 1
    assert "image: infnet-ray" not in text


def test_a_model_that_is_given_is_not_trained(tmp_path):
    artifact = Model(name="model", uri=str(tmp_path / "model"))
    report = HTML(name="report", uri=str(tmp_path / "report"))
    found = component("layers_pretrain").python_func(
        model=artifact,
        metrics=Metrics(name="metrics"),
        report=report,
        task_config=TaskConfig(),
        config=str(QUICK),
        root=str(tmp_path),
        run="r1",
        given="/models/a",
    )
    assert found == ("/models/a",)
    assert artifact.uri == "/models/a"
    assert artifact.metadata == {"checkpoint": "/models/a", "given": True}
    assert "/models/a" in Path(report.path).read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["report"]


STARTS_RAY = {
    *("infnet_prepare", "infnet_train", "infnet_tune", "infnet_evaluate"),
    *("layers_pretrain", "layers_score", "layers_select", "layers_compact", "layers_heal"),
    *("layers_evaluate", "layers_embed"),
}


@pytest.mark.parametrize("name", sorted(VERBS))
def test_a_step_that_starts_ray_hands_on_what_its_task_was_given(name):
    found = component(name).component_spec
    given = {one.field.name for one in found.task_config_passthroughs or ()}
    both = {one.field.name for one in found.task_config_passthroughs or () if one.apply_to_task}
    if name not in STARTS_RAY:
        assert given == set()
        assert "task_config" not in found.inputs
        return
    assert found.inputs["task_config"].type == "TaskConfig"
    assert both == {"ENV", "KUBERNETES_VOLUMES"}
    assert given - both == {
        "RESOURCES", "KUBERNETES_NODE_SELECTOR", "KUBERNETES_TOLERATIONS", "KUBERNETES_AFFINITY",
    }  # fmt: skip


def test_a_search_that_is_not_wanted_hands_on_the_settings(tmp_path):
    outputs = {
        name: kind(name=name)
        for name, kind in (("search", Artifact), ("metrics", Metrics), ("report", HTML))
    }
    found = component("infnet_tune").python_func(
        task_config=TaskConfig(),
        config=str(SMOKE),
        root=str(tmp_path),
        run="r1",
        data="/nowhere/data",
        wanted=False,
        sets=["train.epochs=2"],
        **outputs,
    )
    assert found == ("", ["train.epochs=2"])
    assert list(tmp_path.iterdir()) == []
