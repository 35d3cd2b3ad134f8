"""KFP's own command line takes the compiled files as they are: the lines of docs/kubeflow.md, run."""

import json
import os
import re
import shlex
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest
import yaml

from pipelines.__main__ import _parser
from tests.pipelines.kfp_api import KfpApi

ROOT = Path(__file__).parents[2]
SHIPPED = Path(str(files("rayrun"))) / "pipelines_yaml"
PIPELINE = SHIPPED / "recommender.yaml"
PAGES = [ROOT / "docs" / "kubeflow.md", ROOT / "docs" / "pipelines.md"]
TYPED = [
    shlex.split(line, comments=True)
    for page in PAGES
    for block in re.findall(r"^```sh\n(.*?)^```$", page.read_text(), re.M | re.S)
    for line in block.splitlines()
]


def typed(*start: str) -> list[str]:
    """What the page says to type after the address, of the one line that has these words."""
    lines = [line for line in TYPED if line[:1] == ["kfp"]]
    (found,) = [line for line in lines if all(word in line for word in start)]
    assert found[1:7] == [
        *("--endpoint", "$KFP_HOST", "--existing-token", "$KFP_TOKEN", "--namespace", "team-a")
    ]
    return [word.replace("build/", f"{SHIPPED}/") for word in found[7:]]


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


def test_kfp_run_create_takes_a_compiled_pipeline(api, kfp):
    done = kfp(*typed("run", "monday"))
    assert done.returncode == 0, done.stderr
    (run,) = api.sent("POST", "/runs")
    assert run.headers["authorization"] == "Bearer right"
    assert run.body["display_name"] == "monday"
    assert run.body["runtime_config"]["parameters"] == {
        "config": "s3://b/c.yaml",
        "root": "s3://b/r",
        "sets": ["train.epochs=2"],
    }
    assert run.body["pipeline_spec"] == yaml.safe_load(PIPELINE.read_text())
    assert api.experiments["experiment-1"]["namespace"] == "team-a"


def test_kfp_pipeline_create_uploads_a_compiled_pipeline(api, kfp):
    done = kfp(*typed("pipeline", "create"))
    assert done.returncode == 0, done.stderr
    (upload,) = api.sent("POST", "/pipelines/upload")
    assert upload.headers["content-type"].startswith("multipart/form-data")
    assert upload.query == {"name": "recommender"}
    assert upload.body == {"uploadfile": PIPELINE.read_text()}
    assert json.loads(done.stdout[done.stdout.index("{") :])["pipeline_id"] == "pipeline-1"


def test_kfp_recurring_run_create_schedules_a_compiled_pipeline(api, kfp):
    schedule = typed("recurring-run", "create")
    done = kfp(*schedule)
    assert done.returncode == 0, done.stderr
    (made,) = api.sent("POST", "/recurringruns")
    assert made.body["trigger"] == {"cron_schedule": {"cron": "0 0 4 * * *"}}
    assert (made.body["mode"], made.body["no_catchup"]) == ("ENABLE", True)
    found = made.body["runtime_config"]["parameters"]
    assert found == {"config": "s3://b/c.yaml", "root": "s3://b/r"}
    done = kfp(
        *schedule, 'sets=["train.epochs=2"]'
    )  # every argument is sent as text; ours are typed
    assert done.returncode != 0
    assert "parameter sets is of a wrong type" in done.stderr


def test_kfp_runs_a_compiled_component_by_itself(api, kfp):
    """One step alone, from the file that the wheel carries."""
    done = kfp(*typed("run", "one"))
    assert done.returncode == 0, done.stderr
    (run,) = api.sent("POST", "/runs")
    assert run.body["pipeline_spec"]["pipelineInfo"]["name"] == "infnet-prepare"


def test_kfp_has_no_pipeline_submit(api, kfp):
    done = kfp("pipeline", "submit", str(PIPELINE))
    assert done.returncode == 2
    assert "Unrecognized command 'submit'" in done.stderr


OURS = [line[line.index("pipelines") + 1 :] for line in TYPED if "pipelines" in line[:5]]


@pytest.mark.parametrize("words", OURS, ids=lambda words: " ".join(words[:2]))
def test_our_commands_of_the_pages_are_ones_that_the_parser_takes(words):
    assert len(OURS) >= 7
    parsed, rest = _parser().parse_known_args(words)
    assert parsed.command == words[0]
    assert all("=" in word and not word.startswith("-") for word in rest)
