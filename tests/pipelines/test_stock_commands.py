"""KFP's own command line takes the compiled files as they are: what docs/kubeflow.md tells to type."""

import json
import os
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest
import yaml

from tests.pipelines.kfp_api import KfpApi

ROOT = Path(__file__).parents[2]
SHIPPED = Path(str(files("rayrun"))) / "pipelines_yaml"
PIPELINE = SHIPPED / "recommender.yaml"
ARGUMENTS = ["config=s3://b/c.yaml", "root=s3://b/r", 'sets=["train.epochs=2"]']
PARAMETERS = {"config": "s3://b/c.yaml", "root": "s3://b/r", "sets": ["train.epochs=2"]}


@pytest.fixture
def api():
    with KfpApi(token="right", namespaces=("team-a",)) as found:
        yield found


@pytest.fixture
def kfp(api, tmp_path):
    def call(*words: str) -> subprocess.CompletedProcess[str]:
        address = ["--endpoint", api.url, "--existing-token", "right", "--namespace", "team-a"]
        return subprocess.run(
            [Path(sys.executable).with_name("kfp"), *address, "--output", "json", *words],
            env={**os.environ, "HOME": str(tmp_path)},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
        )

    return call


def spec(path: Path) -> dict:
    return yaml.safe_load(path.read_text())


def test_kfp_run_create_takes_a_compiled_pipeline(api, kfp):
    done = kfp("run", "create", "-e", "weekly", "-r", "monday", "-f", str(PIPELINE), *ARGUMENTS)
    assert done.returncode == 0, done.stderr
    (run,) = api.sent("POST", "/runs")
    assert run.headers["authorization"] == "Bearer right"
    assert run.body["display_name"] == "monday"
    assert run.body["runtime_config"]["parameters"] == PARAMETERS
    assert run.body["pipeline_spec"] == spec(PIPELINE)
    assert api.experiments["experiment-1"]["namespace"] == "team-a"


def test_kfp_pipeline_create_uploads_a_compiled_pipeline(api, kfp):
    done = kfp("pipeline", "create", "-p", "recommender", str(PIPELINE))
    assert done.returncode == 0, done.stderr
    (upload,) = api.sent("POST", "/pipelines/upload")
    assert upload.headers["content-type"].startswith("multipart/form-data")
    assert upload.query == {"name": "recommender"}
    assert upload.body == {"uploadfile": PIPELINE.read_text()}
    assert json.loads(done.stdout[done.stdout.index("{") :])["pipeline_id"] == "pipeline-1"


def test_kfp_recurring_run_create_schedules_a_compiled_pipeline(api, kfp):
    schedule = [
        "recurring-run", "create", "--experiment-name", "nightly", "--job-name", "night",
        "--cron-expression", "0 0 4 * * *", "--enabled", "--no-catchup",
        "--pipeline-package-path", str(PIPELINE),
    ]  # fmt: skip
    done = kfp(*schedule, *ARGUMENTS[:2])
    assert done.returncode == 0, done.stderr
    (made,) = api.sent("POST", "/recurringruns")
    assert made.body["trigger"] == {"cron_schedule": {"cron": "0 0 4 * * *"}}
    assert (made.body["mode"], made.body["no_catchup"]) == ("ENABLE", True)
    assert made.body["runtime_config"]["parameters"] == {
        n: PARAMETERS[n] for n in ("config", "root")
    }
    done = kfp(*schedule, *ARGUMENTS)  # every argument is sent as text; ours are typed
    assert done.returncode != 0
    assert "parameter sets is of a wrong type" in done.stderr


def test_kfp_runs_a_compiled_component_by_itself(api, kfp):
    """One step alone, from the file that the wheel carries."""
    file = SHIPPED / "components" / "infnet_prepare.yaml"
    done = kfp("run", "create", "-e", "one", "-f", str(file), *ARGUMENTS, "run=by-hand")
    assert done.returncode == 0, done.stderr
    (run,) = api.sent("POST", "/runs")
    assert run.body["pipeline_spec"]["pipelineInfo"]["name"] == "infnet-prepare"


def test_kfp_has_no_pipeline_submit(api, kfp):
    done = kfp("pipeline", "submit", str(PIPELINE))
    assert done.returncode == 2
    assert "Unrecognized command 'submit'" in done.stderr
