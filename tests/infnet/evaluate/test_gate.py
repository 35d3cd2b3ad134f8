import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infnet.cli import main
from infnet.evaluate.gate import gate
from rayrun import manifest
from rayrun.config import ConfigError
from rayrun.data.source import open_source
from rayrun.metrics import Result
from tests.infnet.evaluate.small_run import Trained, config


@dataclass(frozen=True)
class Untrained:
    """What a training that was of no use leaves."""

    evaluation: Path
    measured: Result


@pytest.fixture(scope="module")
def models(trained, older, evaluated):
    return {"trained": trained, "untrained": Untrained(evaluated[1], evaluated[0]), "older": older}


def decide(new, live, out, *sets):
    live = live.bundle if isinstance(live, Trained) else live
    places = [f"inputs.evaluation={new.evaluation}", *([f"serve.live={live}"] if live else [])]
    return gate(config(*places, *sets), str(out))


def test_without_a_live_model_the_new_one_passes(models, tmp_path):
    for number, live in enumerate(("", tmp_path / "nothing")):
        result = decide(models["untrained"], live, tmp_path / str(number))
        found = (result.details[key] for key in ("decision", "reason", "live"))
        assert tuple(found) == ("pass", "there is no live model", "")


def test_the_live_checkpoint_itself_passes_at_once(models, tmp_path):
    result = decide(models["trained"], models["trained"], tmp_path / "out")
    assert result.details["reason"] == "the live model is this very model"
    assert result.details["decision"] == "pass"
    assert result.details["differences"] == []


@pytest.mark.parametrize("shards", [False, True], ids=["raw rows", "shards"])
def test_a_worse_model_is_blocked_and_live_is_measured_as_its_own_evaluation_measured_it(
    models, tmp_path, shards
):
    trained = models["trained"]
    sets = [f"inputs.data={trained.data}"] if shards else []
    result = decide(models["untrained"], trained, tmp_path / "out", *sets)
    assert result.details["decision"] == "blocked"
    (click,) = [d for d in result.details["differences"] if d["task"] == "click"]
    assert click["blocks"]
    assert click["interval"][0] <= click["gain"] <= click["interval"][1] < 0
    assert click["gain"] == pytest.approx(click["new"] - click["live"])
    assert "click auc" in result.details["reason"]
    assert result.rows == trained.measured.rows
    assert result.details["seen_by_live"] == 0
    assert set(result.baselines["live"]) == {"click", "like"}
    for task in result.baselines["live"]:
        for name, value in trained.measured.metrics[task].items():
            assert result.baselines["live"][task][name] == pytest.approx(value, abs=1e-3), name
    measured = models["untrained"].measured.metrics
    assert result.metrics == {task: measured[task] for task in ("click", "like")}


def test_a_better_model_passes(models, tmp_path):
    result = decide(models["trained"], models["older"], tmp_path / "out")
    assert result.details["decision"] == "pass"
    assert result.details["differences"][0]["interval"][0] > 0


def test_the_decision_is_the_same_every_time(models, tmp_path):
    first, second = (
        decide(models["untrained"], models["trained"], tmp_path / str(n)) for n in range(2)
    )
    assert first.details == second.details


def test_a_live_model_of_another_schema_is_scored_by_its_own_encoder(models, tmp_path):
    older = models["older"]
    result = decide(models["trained"], older, tmp_path / "out")
    assert [d["task"] for d in result.details["differences"]] == ["click"]
    assert result.details["not_compared"] == {
        "like": "the live model does not have it",
        "watched": "the live model does not have it",
        "viewed": "the new model does not have it",
    }
    for name, value in older.measured.metrics["click"].items():
        assert result.baselines["live"]["click"][name] == pytest.approx(value, abs=2e-4), name


def test_a_margin_forgives(models, tmp_path):
    result = decide(models["untrained"], models["trained"], tmp_path / "out", "gate.margin=0.6")
    assert result.details["decision"] == "pass"


def test_of_a_loss_less_is_better(models, tmp_path):
    worse = decide(models["untrained"], models["trained"], tmp_path / "1", "gate.metric=logloss")
    better = decide(models["trained"], models["older"], tmp_path / "2", "gate.metric=logloss")
    assert [r.details["decision"] for r in (worse, better)] == ["blocked", "pass"]
    assert worse.details["differences"][0]["new"] > worse.details["differences"][0]["live"]


def test_a_blocked_model_is_no_error_of_the_command(models, tmp_path, capsys):
    new, live = models["untrained"].evaluation, models["trained"].bundle
    code = main(["gate", str(new), "--set", f"serve.live={live}", "--out", str(tmp_path / "out")])
    said = capsys.readouterr().out
    assert code == 0
    assert "gate: blocked: click auc" in said
    assert "95 % interval" in (tmp_path / "out" / "report.html").read_text()


def test_rows_that_the_live_model_was_trained_on_are_told(models, tmp_path):
    shutil.copytree(models["trained"].bundle, tmp_path / "live")
    path = tmp_path / "live" / "manifest.json"
    raw = json.loads(path.read_text())
    raw["config"]["data"]["split"] |= {"valid_from": "2022-04-19", "test_from": "2022-04-20"}
    path.write_text(json.dumps(raw))
    result = decide(models["untrained"], tmp_path / "live", tmp_path / "out")
    assert 0 < result.details["seen_by_live"] < result.rows
    assert "was trained on" in result.details["reason"]


def test_a_live_bundle_that_is_damaged_is_refused(models, tmp_path):
    shutil.copytree(models["trained"].bundle, tmp_path / "live")
    graph = tmp_path / "live" / "model.onnx"
    graph.write_bytes(graph.read_bytes()[:-1])
    with pytest.raises(ConfigError, match=r"serve\.live .*model\.onnx is truncated.* Roll back"):
        decide(models["untrained"], tmp_path / "live", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_place_without_a_bundle_is_refused(models, tmp_path):
    with pytest.raises(ConfigError, match=r"serve\.live .*'infnet\.evaluation'.* is needed"):
        decide(models["untrained"], models["trained"].evaluation, tmp_path / "out")


def test_a_live_model_that_cannot_score_this_log_is_refused(models, tmp_path):
    log = open_source(config().data.source)
    rows = pa.concat_tables([t for f in log.fragments() for t in log.read(f)])
    rows = rows.drop_columns(["__row_id", "__bad", "topic"])
    pq.write_table(rows, tmp_path / "log.parquet")
    source = {"path": str(tmp_path / "log.parquet"), "columns": log.columns.to_dict()}
    with pytest.raises(ConfigError, match=r"live model .* cannot score this log: .*'topic'"):
        decide(
            models["trained"],
            models["older"],
            tmp_path / "out",
            f"data.source={json.dumps(source)}",
        )


def test_another_log_with_the_same_row_ids_is_refused(models, tmp_path):
    with pytest.raises(ConfigError, match=r"data\.source is not the log of inputs\.evaluation"):
        decide(models["untrained"], models["trained"], tmp_path / "out", "data.source.seed=9")


def test_a_log_without_the_rows_is_refused(models, tmp_path):
    with pytest.raises(ConfigError, match="has no row in common with data.source"):
        decide(models["untrained"], models["trained"], tmp_path / "out", "data.source.rows=500")


def test_an_evaluation_of_another_split_is_refused(models, tmp_path):
    shutil.copytree(models["trained"].evaluation, tmp_path / "evaluation")
    path = tmp_path / "evaluation" / "result.json"
    path.write_text(path.read_text().replace('"split": "test"', '"split": "valid"'))
    other = config(f"inputs.evaluation={tmp_path / 'evaluation'}")
    with pytest.raises(ConfigError, match="must be of the test split, found 'valid'"):
        gate(other, str(tmp_path / "out"))


def test_an_evaluation_of_rolling_statistics_is_refused(models, tmp_path):
    shutil.copytree(models["trained"].evaluation, tmp_path / "evaluation")
    path = tmp_path / "evaluation" / "manifest.json"
    path.write_text(path.read_text().replace('"statistics": "frozen"', '"statistics": "rolling"'))
    other = config(f"inputs.evaluation={tmp_path / 'evaluation'}")
    with pytest.raises(ConfigError, match="must be of data.statistics: frozen, found rolling"):
        gate(other, str(tmp_path / "out"))


def test_without_an_evaluation_there_is_no_gate(tmp_path):
    with pytest.raises(ConfigError, match=r"inputs\.evaluation must name the --out directory"):
        gate(config(), str(tmp_path / "out"))


@pytest.mark.parametrize("metric", ["acu", "rmse", "ndcg@0"])
def test_a_metric_that_no_task_has_is_refused_also_where_nothing_is_live(models, tmp_path, metric):
    with pytest.raises(ConfigError, match=rf"gate\.metric must be .*auc.*found '{metric}'"):
        decide(models["older"], "", tmp_path / "out", f"gate.metric={metric}")


def test_too_few_replicates_are_refused(models, tmp_path):
    with pytest.raises(ConfigError, match=r"evaluate\.bootstrap must be 20 or more .* found 5"):
        decide(models["trained"], "", tmp_path / "out", "evaluate.bootstrap=5")


def test_models_without_a_common_task_are_refused(models, tmp_path):
    with pytest.raises(ConfigError, match="no task .* can be compared: click: it has no rmse"):
        decide(models["trained"], models["older"], tmp_path / "out", "gate.metric=rmse")


def test_a_metric_that_the_rows_do_not_define_is_refused(models, tmp_path):
    shutil.copytree(models["untrained"].evaluation, tmp_path / "evaluation")
    (part,) = (tmp_path / "evaluation" / "predictions").iterdir()
    rows = pq.read_table(part)
    for task in ("click", "like"):
        at = rows.column_names.index(f"y.{task}")
        ones = pa.array([1.0] * rows.num_rows, pa.float32())
        rows = rows.set_column(at, f"y.{task}", ones)
    pq.write_table(rows, part)
    manifest.write(
        tmp_path / "evaluation", kind="infnet.evaluation", format_version=1, config=config()
    )
    one_class = Untrained(tmp_path / "evaluation", models["untrained"].measured)
    with pytest.raises(ConfigError, match=r"defined for no task .* labels are positive"):
        decide(one_class, models["trained"], tmp_path / "out")
