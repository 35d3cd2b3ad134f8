"""A component under KFP's local runner: nothing to hand on, and a key that knows no place."""

import json
import os
from pathlib import Path

import pytest
from kfp import components, local
from kfp.dsl import HTML, Dataset, Metrics, TaskConfig

import rayrun
from components.infnet_prepare import infnet_prepare
from pipelines.compiled import compiled_component

PRODUCT = """
import os, sys, time
from rayrun import manifest, storage
from rayrun.cli import Verb, main
from rayrun.config import Config
from rayrun.metrics import Result
from rayrun.ray.compute import Compute, LocalCompute

class Toy(Config):
    name: str
    rows: int = 3
    compute: Compute = LocalCompute()

def make(config, out):
    print("task config:", os.environ.get("INFNET_TASK_CONFIG", "none"))
    started = time.monotonic()
    with storage.output(out) as staging:
        Result.of("prepare", config, started=started, metrics={"click": {"auc": 0.5}}, rows=config.rows).write(staging)
        (staging / "report.html").write_text("<p>found</p>")
        manifest.write(staging, kind="toy.dataset", format_version=1, config=config, inputs={"source": "sha256:0a"})
    return Result.read(str(out))

VERBS = (Verb(name="prepare", help="it", run=make, config=Toy, store=True, sections=("rows",)),)
if __name__ == "__main__":
    sys.exit(main("infnet", VERBS))
"""


@pytest.fixture(autouse=True)
def product(tmp_path, monkeypatch):
    """A product called infnet with one verb that needs no Ray; the child processes find it first."""
    package = tmp_path / "here" / "infnet"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "cli.py").write_text(PRODUCT)
    (tmp_path / "toy.yaml").write_text("name: a")
    roots = [str(package.parent), str(Path(rayrun.__file__).parents[1])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(roots))
    monkeypatch.chdir(package.parent)


def call(folder: Path, capfd, **more):
    folder.mkdir()
    outputs = {
        "dataset": Dataset(name="dataset", uri=str(folder / "dataset")),
        "metrics": Metrics(name="metrics", uri=str(folder / "metrics")),
        "report": HTML(name="report", uri=str(folder / "report")),
    }
    given = {"task_config": TaskConfig(), "root": str(folder / "root"), "run": "r1", **more}
    infnet_prepare.python_func(**outputs, config=str(folder.parent / "toy.yaml"), **given)
    said = capfd.readouterr().out
    return outputs, next(line for line in said.splitlines() if line.startswith("task config: "))


def test_the_key_knows_no_place_no_run_no_name_and_no_resources(tmp_path, capfd):
    set_by_a_backend = TaskConfig(
        resources={"limits": {"cpu": "4"}},
        node_selector={"pool": "gpu"},
        env=[{"name": "TOKEN", "value": "secret"}],
    )
    first, said = call(tmp_path / "a", capfd)
    assert said == "task config: none"
    other, said = call(
        tmp_path / "b",
        capfd,
        task_config=set_by_a_backend,
        run="r2",
        step="prepare_again",
        sets=["compute={type: attached, address: '10.0.0.1:6379', workers: 8}"],
    )
    assert json.loads(said.removeprefix("task config: ")) == {
        "resources": {"limits": {"cpu": "4"}},
        "env": [{"name": "TOKEN", "value": "secret"}],
        "nodeSelector": {"pool": "gpu"},
    }
    changed, _ = call(tmp_path / "c", capfd, sets=["rows=4"])
    key = first["dataset"].metadata["key"]
    assert other["dataset"].metadata["key"] == key
    assert not other["dataset"].metadata["cached"]  # another store
    assert changed["dataset"].metadata["key"] != key
    assert (tmp_path / "b/root/runs/r2/steps/prepare_again.json").exists()


def test_what_is_handed_on_is_told_without_its_values(tmp_path, capfd):
    given = TaskConfig(env=[{"name": "TOKEN", "value": "secret"}], resources={})
    outputs = {
        "dataset": Dataset(name="dataset", uri=str(tmp_path / "dataset")),
        "metrics": Metrics(name="metrics", uri=str(tmp_path / "metrics")),
        "report": HTML(name="report", uri=str(tmp_path / "report")),
    }
    with pytest.raises(SystemExit):
        infnet_prepare.python_func(
            **outputs, task_config=given, config="/nowhere.yaml", root=str(tmp_path), run="r1"
        )
    said = capfd.readouterr().out
    assert "handed on to the pods of a Ray cluster: env\n" in said
    assert "secret" not in said


def test_the_artifacts_say_what_was_made_from_what(tmp_path, capfd):
    outputs, _ = call(tmp_path / "a", capfd, sets=["compute={type: local, workers: 2}"])
    found = outputs["dataset"].metadata
    assert found["kind"] == "toy.dataset"
    assert (found["rows"], found["world_size"], found["cached"]) == (3, 2, False)
    assert found["data_digest"] == found["input_source"] == "sha256:0a"
    assert found["config_digest"].startswith("sha256:")
    assert found["digest"].startswith("sha256:")
    assert "checkpoint" not in found
    assert "url" not in found
    assert outputs["dataset"].uri.startswith(f"{tmp_path}/a/root/store/infnet-prepare/")
    assert outputs["metrics"].metadata == {"metrics.click.auc": 0.5}
    assert Path(outputs["report"].path).read_text() == "<p>found</p>"


def test_the_compiled_component_runs_in_the_local_runner(tmp_path, capfd):
    """As the wheel ships it; KFP fills in a TaskConfig of Nones."""
    local.init(
        local.SubprocessRunner(use_venv=False),
        pipeline_root=str(tmp_path / "kfp"),
        raise_on_error=True,
    )
    task = components.load_component_from_text(compiled_component("infnet_prepare"))(
        config=str(tmp_path / "toy.yaml"), root=str(tmp_path / "root"), run="r1"
    )
    assert "task config: none" in capfd.readouterr().out
    assert task.outputs["uri"] == task.outputs["dataset"].uri
    assert task.outputs["uri"].startswith(f"{tmp_path}/root/store/infnet-prepare/")
    assert task.outputs["dataset"].metadata["data_digest"] == "sha256:0a"
