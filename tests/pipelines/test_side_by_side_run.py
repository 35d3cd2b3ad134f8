"""The pipeline `side_by_side`, run whole on this machine: two models, two applications, one report.

What a step that is refused, killed, interrupted or cached does is told by test_pipeline_run.py.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from pipelines.side_by_side import STEPS
from rayrun.manifest import content_of
from tests.pipelines.whole_run import run_whole

WORLD = "rows: 20000, users: 400, items: 120, drift_days: 28.0, random_share: 0.0"
"""The videos of both logs are the same."""
MEMORY = "compute.object_store_bytes=200000000"
SETS = (
    f"data.source={{type: simulate, {WORLD}}}",
    "rivals={}",
    "train.epochs=1",
    "tune={space: {model.num_categorical_proxies: {type: choice, values: [1, 2]}}, trials: 2, "
    "seeds: [0]}",
    "serve.port=0",
    MEMORY,
)
LLM_SETS = (
    f"data.source={{type: simulate, {WORLD}, language: zh, days: 11.0}}",
    "task={type: head, max_history: 12, max_tokens: 72, calibration: 32, validation: 32, test: 64, "
    "micro_batch: 16}",
    "pretrain={model: {layers: 4, width: 32, heads: 2, key_value_heads: 1, feed_forward: 64, "
    "vocabulary: 480}, row_tokens: 96, batch_rows: 8, epochs: 6, lr: 5.0e-3, "
    "weights: {next_token: 0.5}}",
    "score={methods: [{type: block_influence}], bootstrap: 50}",
    "select={budget: {type: layers, keep: 2}, random_baselines: 2, bootstrap: 50}",
    "evaluate={rivals: [{type: popularity}], timing: {repeats: 0}, bootstrap: 100}",
    "serve.port=0",
    MEMORY,
)

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.whole,
    pytest.mark.timeout(1800),
]


@dataclass(frozen=True)
class Whole:
    root: Path
    folder: Path
    out: str
    status: dict
    report: str


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Whole:
    """All of it: with the search for proxies, and with the vectors of items in the scorer."""
    root = tmp_path_factory.mktemp("side") / "root"
    folder, out = run_whole(
        "side_by_side",
        root,
        *("config=configs/infnet/smoke.yaml", "llm_config=configs/layer_select/quick.yaml"),
        *("llm_features=true", f"live={root}/live/scorer", f"llm_live={root}/live/recommender"),
        *(f"--set={each}" for each in SETS),
        f"llm_sets={json.dumps(LLM_SETS)}",
        *("--serve", "--exit"),
    )
    status = json.loads((folder / "status.json").read_text())
    return Whole(root, folder, out, status, (folder / "report.html").read_text())


def uri(whole: Whole, step: str) -> Path:
    return Path(whole.status["steps"][step]["uri"])


def test_every_step_runs_and_the_report_links_the_page_of_each(whole):
    assert whole.status["state"] == "succeeded"
    assert {n: s["state"] for n, s in whole.status["steps"].items()} == dict.fromkeys(STEPS, "done")
    linked = re.findall(r'<a href="([^"]+/report\.html)">(\w+)</a>', whole.report)
    for place, _ in linked:
        assert (whole.folder / place).is_file()
    deployed = {"deploy_scorer", "deploy_recommender"}
    assert {name for _, name in linked} == set(STEPS) - deployed


def test_both_applications_answered_behind_one_port(whole):
    urls = dict(re.findall(r"^READY (http://127\.0\.0\.1:\d+)(/\w+)$", whole.out, re.M))
    assert len(urls) == 1
    found = re.findall(r"^READY http://127\.0\.0\.1:\d+(/\w+)$", whole.out, re.M)
    assert found == ["/scorer", "/recommender"]
    assert whole.out.count("candidates scored in") >= 2
    assert whole.out.count("items recommended in") >= 2
    for application in ("scorer", "recommender"):
        assert re.search(rf"{application} at http://[^<]+/{application}</h3>", whole.report)
        export = {"scorer": "export", "recommender": "export_llm"}[application]
        live = str(whole.root / "live" / application)
        assert content_of(live) == content_of(str(uri(whole, export)))


def test_the_scorer_is_trained_with_the_proxies_that_the_search_found(whole):
    (best,) = json.loads((uri(whole, "tune") / "best.json").read_text())["sets"]
    count = re.fullmatch(r"model\.num_categorical_proxies=([12])", best)
    assert count
    for step in ("train", "train_llm_features"):
        config = yaml.safe_load((uri(whole, step) / "config.yaml").read_text())
        assert config["model"]["num_categorical_proxies"] == int(count[1])


def test_what_the_vectors_of_items_bring_is_measured_on_the_rows_of_the_first_model(whole):
    """Paired with the evaluation without them; the smaller model made them."""
    first, more = (
        json.loads((uri(whole, step) / "result.json").read_text())
        for step in ("evaluate", "evaluate_llm_features")
    )
    assert more["rows"] == first["rows"]
    assert more["baselines"]["without"]["click"]["auc"] == first["metrics"]["click"]["auc"]
    schema = json.loads((uri(whole, "train_llm_features") / "schema.json").read_text())
    assert {"name": "llm_item", "width": 33} in [
        {key: slot[key] for key in ("name", "width")} for slot in schema["dense"]
    ]
    student = json.loads((uri(whole, "heal") / "config.json").read_text())
    assert student["num_hidden_layers"] == 2
    assert "What it brings" in whole.report
    assert "paired" in whole.report
