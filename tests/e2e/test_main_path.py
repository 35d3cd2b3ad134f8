"""prepare → train → evaluate → predict, through the console entry, on the smoke configuration."""

import itertools
import json
import shutil
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infnet.config import InfnetConfig
from infnet.data.prepare import prepare
from infnet.evaluate.predict import predict
from infnet.evaluate.run import evaluate
from infnet.seeds import compare
from infnet.train.checkpoint import load as load_checkpoint
from infnet.train.run import train
from rayrun import manifest, storage
from rayrun.config import load, parse_yaml, validate

from .console import SMOKE, contents, done, infnet

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]

RESULT_KEYS = {
    "verb", "config_digest", "split", "metrics", "baselines", "wall_s", "peak_memory_bytes",
    "rows", "versions",
}  # fmt: skip
METRICS = {
    "auc", "gauc_impressions", "gauc_users", "gauc_positives", "logloss", "ne", "ece", "ndcg@5",
}  # fmt: skip
TASKS = ["click", "like"]


def result(directory):
    return json.loads(storage.read_bytes(storage.join(directory, "result.json")))


def config(*sets):
    return load(InfnetConfig, SMOKE, sets)


def scores(directory):
    table = pq.read_table(directory / "predictions").sort_by("row_id")
    return np.stack([table[f"p.{task}"].to_numpy() for task in TASKS], axis=1)


@pytest.fixture(scope="module")
def outputs(data, run, evaluated, predicted):
    return {"prepare": data, "train": run, "evaluate": evaluated.out, "predict": predicted.out}


# --- What stands at the end ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verb", "kind", "split", "rows"),
    [
        ("prepare", "infnet.dataset", "", 4000),
        ("train", "infnet.run", "valid", 2 * 12 * 256),
        ("evaluate", "infnet.evaluation", "test", 571),
        ("predict", "infnet.predictions", "", 571),
    ],
)
def test_every_output_has_a_manifest_a_result_and_its_configuration(
    outputs, verb, kind, split, rows
):
    out = outputs[verb]
    manifest.verify(out)
    found = manifest.read(out, kind=kind, format_version=1)
    resolved = validate(
        InfnetConfig, parse_yaml((out / "config.yaml").read_text(), where="config.yaml"), where=verb
    )
    assert found.config_digest == config().digest() == resolved.digest()
    written = result(out)
    assert set(written) >= RESULT_KEYS
    assert written["verb"] == verb
    assert written["config_digest"] == found.config_digest
    assert written["split"] == split
    assert written["rows"] == rows
    assert written["wall_s"] > 0
    assert written["peak_memory_bytes"] > 0
    assert not [path for path in out.parent.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("verb", ["train", "evaluate"])
def test_model_and_rival_have_every_metric_of_every_task(outputs, verb):
    written = result(outputs[verb])
    assert set(written["baselines"]) == {"floor"}
    for measured in (written["metrics"], written["baselines"]["floor"]):
        assert list(measured) == TASKS
        for values in measured.values():
            wanted = METRICS if verb == "evaluate" else METRICS - {"ndcg@5"}
            assert set(values) >= wanted
            assert all(isinstance(values[name], float) for name in wanted)


def test_the_inputs_of_a_run_are_named_by_digest(outputs):
    found = manifest.read(outputs["train"], kind="infnet.run", format_version=1)
    dataset = manifest.read(outputs["prepare"], kind="infnet.dataset", format_version=1)
    assert found.inputs == {"data": dataset.content_digest}
    assert found.info["complete"]


def test_the_terminal_shows_the_table_and_names_the_report(evaluated):
    lines = evaluated.said.out.splitlines()
    assert lines[0] == "click (test)"
    assert [line.split()[0] for line in lines[2:4]] == ["model", "floor"]
    report = evaluated.out / "report.html"
    assert lines[-1] == f"report: {report}"
    assert "http://" not in report.read_text().replace("http://www.w3.org", "")


# --- Calling again ---------------------------------------------------------------------------


@pytest.fixture
def copied_run(run, tmp_path):
    """Other processes may begin on a directory that nobody else writes to."""
    shutil.copytree(run, tmp_path / "run")
    return tmp_path / "run"


def test_training_again_returns_at_once_and_changes_nothing(data, copied_run):
    run = copied_run
    before = contents(run)
    started = time.monotonic()
    again = done("train", SMOKE, "--set", f"inputs.data={data}", "--out", run)
    assert time.monotonic() - started < 5
    assert "training" not in again.err
    assert again.out.splitlines()[0] == "click (valid)"
    assert contents(run) == before


def test_another_configuration_on_the_same_output_is_refused(data, copied_run):
    run = copied_run
    before = contents(run)
    sets = ("--set", f"inputs.data={data}", "--set", "train.seed=1")
    refused = infnet("train", SMOKE, *sets, "--out", run)
    assert refused.code == 2
    assert f"{run} holds a run with config digest" in refused.err
    assert "choose another --out" in refused.err
    assert contents(run) == before


# --- Rows of a file --------------------------------------------------------------------------


def test_a_file_of_the_test_rows_is_scored_as_the_test_split(run, evaluated, test_rows, tmp_path):
    done("evaluate", run, "--data", test_rows, "--out", tmp_path / "out")
    np.testing.assert_allclose(scores(tmp_path / "out"), scores(evaluated.out), rtol=0, atol=1e-6)
    found, split = result(tmp_path / "out"), result(evaluated.out)
    assert found["split"] == "file"
    assert found["metrics"]["click"]["auc"] == pytest.approx(
        split["metrics"]["click"]["auc"], abs=1e-6
    )


def test_predictions_join_the_file_by_row_id(predicted, evaluated, test_log):
    found = pq.read_table(predicted.out / "predictions")
    raw = test_log.append_column("row_id", pa.array(np.arange(test_log.num_rows)))
    joined = found.join(raw, "row_id", right_suffix=".raw").sort_by("row_id")
    assert joined.num_rows == test_log.num_rows
    assert joined["user_id"].equals(joined["user_id.raw"])
    assert joined["video_id"].equals(joined["video_id.raw"])
    np.testing.assert_allclose(scores(predicted.out), scores(evaluated.out), rtol=0, atol=1e-6)


# --- The same functions from a notebook ------------------------------------------------------


@pytest.fixture(scope="module")
def called(s3, ray_session, test_rows, tmp_path_factory):
    """Every verb as a Python function, with its output in a bucket; train prepares by itself.

    Without the rival, on which no number of the model depends.
    """
    root = f"{s3}/smoke"
    only = config("rivals={}")
    prepared = prepare(only, f"{root}/data")
    trained = train(only, f"{root}/run")
    there = config("rivals={}", f"inputs.checkpoint={root}/run")
    measured = evaluate(there, f"{root}/evaluated")
    told = predict(there, f"{root}/predicted", str(test_rows))
    return root, {"prepare": prepared, "train": trained, "evaluate": measured, "predict": told}


@pytest.mark.parametrize("verb", ["prepare", "train", "evaluate", "predict"])
def test_a_function_gives_what_the_command_gives(called, outputs, verb):
    written = result(outputs[verb])
    assert called[1][verb].metrics == written["metrics"]
    assert called[1][verb].baselines == {}
    assert called[1][verb].rows == written["rows"]


def test_the_function_predict_gives_the_scores_of_the_command(called, outputs, tmp_path):
    fetched = storage.fetch(f"{called[0]}/predicted", tmp_path)
    np.testing.assert_array_equal(scores(fetched), scores(outputs["predict"]))


def test_compare_gives_the_same_as_a_command_and_as_a_function(data, run, evaluated, tmp_path):
    for name in ("command", "function"):  # a complete run is not trained again
        shutil.copytree(run, tmp_path / name / "seed-0" / "train")
    done("compare", SMOKE, "--set", f"inputs.data={data}", "--out", tmp_path / "command")
    found = compare(config(f"inputs.data={data}"), str(tmp_path / "function"))
    written, measured = result(tmp_path / "command"), result(evaluated.out)
    assert found.metrics == written["metrics"]
    assert found.details == written["details"]
    assert written["metrics"]["click"]["auc"] == pytest.approx(measured["metrics"]["click"]["auc"])
    assert_table_says(written, (tmp_path / "command" / "table.md").read_text())


def assert_table_says(written, table):
    """The means, and the differences of model minus rival, of `result.json`, row by row."""
    lines = [line.split(" | ") for line in table.splitlines() if line.startswith("| ")]
    rows = [[cell.strip("| ") for cell in line] for line in lines if "---" not in line[0]]
    found = {
        (told["task"], told["metric"], told["model"]): told
        for told in written["details"]["differences"]
        if told["metric"] in config().compare.metrics
    }
    means, differences = [], []
    tasks = dict.fromkeys(task for task, _, _ in found)
    for task, metric in itertools.product(tasks, config().compare.metrics):
        model, rival = (found[task, metric, name] for name in ("infnet", "floor"))
        means.append([task, metric, f"{model['mean']:.4f}", f"{rival['mean']:.4f}"])
        told = rival["difference"]
        low, high = (-end for end in reversed(told["interval"]))
        better = "not told apart"
        if told["clear"]:
            more_is_better = metric != "logloss"
            better = "floor" if (told["value"] > 0) == more_is_better else "infnet"
        middle = [f"{-told['value']:+.4f}", f"[{low:+.4f}, {high:+.4f}]"]
        differences.append([task, metric, "floor", *middle, f"{told['smallest']:.4f}", better])
    for task in TASKS:
        value = written["metrics"][task]["auc"]
        assert [task, "auc", f"{value:.4f}"] in [row[:3] for row in means]
    headers = ["task", "metric", "rival", "difference", "95 % interval", "smallest told", "better"]
    assert rows == [["task", "metric", "infnet", "floor"], *means, headers, *differences]


def test_a_draft_of_init_plans_a_run(test_rows, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done("init", test_rows, "--out", tmp_path / "draft.yaml")
    planned = done("train", tmp_path / "draft.yaml", "--dry-run")
    assert "nothing was done" in planned.out


# --- On S3 -----------------------------------------------------------------------------------


def test_a_run_on_s3_gives_the_metrics_of_the_run_on_disk(called, outputs):
    """Dataset, run, evaluation and predictions all lie in the bucket."""
    root, found = called
    places = {"prepare": "data", "train": "run", "evaluate": "evaluated", "predict": "predicted"}
    for verb, name in places.items():
        manifest.verify(f"{root}/{name}")
        assert result(f"{root}/{name}")["metrics"] == result(outputs[verb])["metrics"], verb
        assert result(f"{root}/{name}")["rows"] == found[verb].rows
    again = done("train", SMOKE, "--set", "rivals={}", "--out", f"{root}/run")
    assert "training" not in again.err
    assert result(f"{root}/run")["config_digest"] == config("rivals={}").digest()
    assert {name.partition("/")[0] for name in storage.names(f"{root}/run")} == {
        "manifest.json", "config.yaml", "schema.json", "encoder", "checkpoint", "metrics.jsonl",
        "result.json", "report.html", "sample.json", "prepared",
    }  # fmt: skip
    recommender, _, _ = load_checkpoint(f"{root}/run")
    assert not recommender.training
    assert [n for n in storage.names(root) if "/." in f"/{n}"] == []
