"""The compiled pipelines: golden files, which the wheel carries too; steps, inputs, caching."""

import importlib.resources
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipelines import PIPELINES, compact_llm, recommender
from pipelines.compiled import PipelineError, compiled, inputs_of, steps_of

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "pipelines"
SHIPPED = ROOT / "rayrun" / "pipelines_yaml"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """All pipelines as the command compiles them, with the image that is shipped."""
    out = tmp_path_factory.mktemp("compiled")
    environment = {k: v for k, v in os.environ.items() if k != "INFNET_IMAGE"}
    command = [sys.executable, "-m", "pipelines", "compile", "--out", str(out)]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [str(out / f"{name}.yaml") for name in PIPELINES]
    return out


def pinned(text: str) -> str:
    """Without the version of the SDK, which an installation may have newer."""
    return "".join(
        line for line in text.splitlines(True) if not line.startswith("sdkVersion: kfp-")
    )


@pytest.mark.parametrize("name", PIPELINES)
def test_golden_of_a_compiled_pipeline(written, name):
    """`make golden` rewrites it; the copy in the wheel is rewritten with it."""
    text = (written / f"{name}.yaml").read_text()
    if os.environ.get("GOLDEN_WRITE"):
        for folder in (GOLDEN, SHIPPED):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{name}.yaml").write_text(text)
    assert pinned(text) == pinned((GOLDEN / f"{name}.yaml").read_text())


@pytest.mark.parametrize("name", PIPELINES)
def test_the_wheel_carries_what_is_compiled(written, name):
    shipped = importlib.resources.files("rayrun") / "pipelines_yaml" / f"{name}.yaml"
    assert pinned(shipped.read_text()) == pinned((written / f"{name}.yaml").read_text())


STEPS = {"recommender": recommender.STEPS, "compact_llm": compact_llm.STEPS}
OWN = {
    "recommender": {"live": ("STRING", False, "")},
    "compact_llm": {"model": ("STRING", False, "")},
}


@pytest.fixture(scope="module", params=PIPELINES)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def spec(written, name):
    return yaml.safe_load((written / f"{name}.yaml").read_text())


def test_the_steps_stand_in_their_order(spec, name):
    assert steps_of(spec) == STEPS[name]


def test_the_cache_of_kfp_is_off_for_every_task(spec, name):
    """Its key holds names, not content: `enableCache` would reuse a changed log."""
    dags = [spec["root"]["dag"], *(c["dag"] for c in spec["components"].values() if "dag" in c)]
    tasks = [task for dag in dags for task in dag["tasks"].values()]
    real = [task for task in tasks if "dag" not in spec["components"][task["componentRef"]["name"]]]
    assert len(real) == len(STEPS[name]) + 1
    assert all(task["cachingOptions"] == {} for task in real)


def test_no_step_installs_anything(spec):
    text = yaml.safe_dump(spec)
    assert "pip install" not in text
    assert "pip_index" not in text


def test_inputs_are_typed(spec, name):
    found = {i.name: (i.type, i.required, i.default) for i in inputs_of(spec).values()}
    assert found == {
        "config": ("STRING", True, None),
        "root": ("STRING", True, None),
        **OWN[name],
        "serve_address": ("STRING", False, ""),
        "sets": ("LIST", False, []),
    }


def test_an_unknown_pipeline():
    message = (
        r"NAME must be one of the pipelines \(recommender, compact_llm\), found 'recomender'; "
    )
    with pytest.raises(PipelineError, match=message + "did you mean"):
        compiled("recomender")
