"""Compiled pipelines and components: golden files, which the wheel carries too; steps, inputs."""

import importlib.resources
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipelines import PIPELINES, compact_llm, proxy_search, recommender, side_by_side
from pipelines.compiled import PipelineError, compiled, inputs_of, steps_of, tasks_of
from pipelines.component_docs import reference
from pipelines.local import without_retries

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"
SHIPPED = ROOT / "rayrun" / "pipelines_yaml"
README = ROOT / "components" / "README.md"
COMPONENTS = sorted(
    f"components/{path.stem}"
    for path in (ROOT / "components").glob("*.py")
    if path.stem.startswith(("infnet_", "layers_", "finish"))
)
FILES = [*PIPELINES, *COMPONENTS]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """All pipelines and steps as the command compiles them, with the image that is shipped."""
    out = tmp_path_factory.mktemp("compiled")
    environment = {k: v for k, v in os.environ.items() if k != "INFNET_IMAGE"}
    command = [sys.executable, "-m", "pipelines", "compile", "--components", "--out", str(out)]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [str(out / f"{name}.yaml") for name in FILES]
    return out


def pinned(text: str) -> str:
    """Without the version of the SDK, which an installation may have newer."""
    return "".join(
        line for line in text.splitlines(True) if not line.startswith("sdkVersion: kfp-")
    )


def golden(name: str) -> Path:
    folder = GOLDEN if "/" in name else GOLDEN / "pipelines"
    return folder / f"{name}.yaml"


@pytest.mark.parametrize("name", FILES)
def test_golden_of_what_is_compiled(written, name):
    """`make golden` rewrites it; the copy in the wheel is rewritten with it."""
    text = (written / f"{name}.yaml").read_text()
    if os.environ.get("GOLDEN_WRITE"):
        for file in (golden(name), SHIPPED / f"{name}.yaml"):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
    assert pinned(text) == pinned(golden(name).read_text())


@pytest.mark.parametrize("name", FILES)
def test_the_wheel_carries_what_is_compiled(written, name):
    shipped = importlib.resources.files("rayrun") / "pipelines_yaml" / f"{name}.yaml"
    assert pinned(shipped.read_text()) == pinned((written / f"{name}.yaml").read_text())


def test_golden_page_of_the_components():
    text = reference()
    if os.environ.get("GOLDEN_WRITE"):
        README.write_text(text, encoding="utf-8")
    assert README.read_text(encoding="utf-8") == text


def test_nothing_is_kept_of_what_is_no_more():
    """A pipeline or a component that is gone leaves no file in the wheel."""
    for folder in (GOLDEN / "pipelines", SHIPPED):
        assert {path.stem for path in folder.glob("*.yaml")} == set(PIPELINES)
    for folder in (GOLDEN / "components", SHIPPED / "components"):
        assert {f"components/{path.stem}" for path in folder.glob("*.yaml")} == set(COMPONENTS)


STEPS = {
    "recommender": recommender.STEPS,
    "compact_llm": compact_llm.STEPS,
    "side_by_side": side_by_side.STEPS,
    "proxy_search": proxy_search.STEPS,
}
TEXT = ("STRING", False, "")
SERVES = {"serve_address": TEXT}
OWN = {
    "recommender": {"live": TEXT, **SERVES},
    "compact_llm": {"model": TEXT, **SERVES},
    "proxy_search": {},
    "side_by_side": {
        **SERVES,
        "llm_config": ("STRING", True, None),
        "model": TEXT,
        "live": TEXT,
        "llm_live": TEXT,
        "search": ("BOOLEAN", False, True),
        "llm_features": ("BOOLEAN", False, False),
        "item_column": ("STRING", False, "video_id"),
        "llm_sets": ("LIST", False, []),
    },
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


def test_a_backend_repeats_what_makes_something_and_a_local_run_repeats_nothing(spec):
    """What deploys or tells the end is done once."""
    acts = {"deploy", "deploy_scorer", "deploy_recommender", "finish"}
    for task in tasks_of(spec).values():
        once = task["taskInfo"]["name"] in acts
        assert ("retryPolicy" in task) != once
        assert once or task["retryPolicy"]["maxRetryCount"] == 2
    assert "retryPolicy" not in without_retries(yaml.safe_dump(spec))


def test_the_branches_of_side_by_side_wait_for_each_other_in_the_last_one_only(written):
    spec = yaml.safe_load((written / "side_by_side.yaml").read_text())
    (main,) = (c["dag"]["tasks"] for n, c in spec["components"].items() if "exit-handler" in n)
    waits = {name: set(task.get("dependentTasks", [])) for name, task in main.items()}
    for _ in waits:  # to the end of every chain
        waits = {name: found.union(*(waits[w] for w in found)) for name, found in waits.items()}

    def programs(names):
        return {name.partition("-")[0] for name in names} - {"condition"}

    assert programs(waits["infnet-gate"]) == {"infnet"}
    assert programs(waits["layers-export"]) == {"layers"}
    mixed = [name for name, found in waits.items() if programs(found) == {"infnet", "layers"}]
    assert len(mixed) == 1


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
        "sets": ("LIST", False, []),
    }


def test_an_unknown_pipeline():
    message = (
        r"NAME must be one of the pipelines \(recommender, compact_llm, .*\), found 'recomender'; "
    )
    with pytest.raises(PipelineError, match=message + "did you mean"):
        compiled("recomender")
