import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infnet.evaluate.predict import predict
from infnet.evaluate.run import evaluate
from infnet.schema import Schema
from rayrun import manifest
from rayrun.config import ConfigError
from rayrun.data.source import open_source
from tests.infnet.evaluate.small_run import config


def inputs(place, *sets):
    return config(f"inputs.checkpoint={place / 'run'}", f"inputs.data={place / 'data'}", *sets)


def raw_test_rows(place):
    log = open_source(config().data.source)
    rows = pa.concat_tables([t for f in log.fragments() for t in log.read(f)])
    wanted = pq.read_table(place / "data" / "test")["row_id"].to_numpy()
    return rows.filter(pa.array(np.isin(rows["__row_id"].to_numpy(), wanted)))


def scores(directory):
    table = pq.read_table(directory / "predictions").sort_by("row_id")
    return np.stack([table[f"p.{task}"].to_numpy() for task in config().tasks])


def test_the_result_holds_model_and_rival_with_intervals(evaluated):
    result, out = evaluated
    written = json.loads((out / "result.json").read_text())
    assert written["metrics"] == result.metrics
    assert set(result.metrics) == {"click", "like", "watched"}
    assert {"auc", "gauc_users", "ndcg@5", "ece"} <= set(result.metrics["click"])
    assert {"rmse", "gini"} <= set(result.metrics["watched"])
    assert set(result.baselines) == {"floor"}
    details = written["details"]
    low, high = details["models"]["infnet"]["intervals"]["click"]["auc"]
    assert low < result.metrics["click"]["auc"] < high
    difference = next(
        d for d in details["differences"] if (d["task"], d["metric"]) == ("click", "auc")
    )
    model, floor = (m["click"]["auc"] for m in (result.metrics, result.baselines["floor"]))
    assert difference["difference"]["value"] == pytest.approx(floor - model)
    manifest.verify(str(out))


def test_the_best_reachable_auc_of_a_simulation_is_above_every_model(evaluated):
    result, _ = evaluated
    best = result.details["best_reachable"]
    assert best["click"]["auc"] > max(
        result.metrics["click"]["auc"], result.baselines["floor"]["click"]["auc"]
    )


def test_the_report_shows_tables_and_plots_of_every_task(evaluated):
    page = (evaluated[1] / "report.html").read_text()
    for text in ("Reliability", "ROC", "Lift", "best reachable", "smallest told", "watched"):
        assert text in page


def test_what_a_model_had_before_stands_beside_it(place, evaluated, tmp_path):
    result = evaluate(inputs(place, f"inputs.evaluation={evaluated[1]}"), str(tmp_path / "out"))
    assert result.baselines["without"] == evaluated[0].metrics
    paired = [d["difference"] for d in result.details["differences"] if d["model"] == "without"]
    assert len(paired) > 5
    assert all(found["value"] == 0 and found["users"] == [0, 0] for found in paired)


def test_an_evaluation_of_other_rows_or_tasks_is_refused(place, older, tmp_path):
    other = tmp_path / "valid"
    evaluate(inputs(place), str(other), split="valid")
    for before, message in (
        (other, "must be of the rows that are evaluated now"),
        (older.evaluation, r"lacks the columns \['p.like'"),
    ):
        with pytest.raises(ConfigError, match=message):
            evaluate(inputs(place, f"inputs.evaluation={before}"), str(tmp_path / "out"))
        assert not (tmp_path / "out").exists()


def test_a_file_of_the_test_rows_is_scored_as_the_prepared_split(place, evaluated, tmp_path):
    rows = raw_test_rows(place).drop_columns(["__row_id", "__bad"])
    pq.write_table(rows, tmp_path / "rows.parquet")
    result = evaluate(inputs(place), str(tmp_path / "out"), data=str(tmp_path / "rows.parquet"))
    # to the rounding of a row in another batch
    np.testing.assert_allclose(scores(tmp_path / "out"), scores(evaluated[1]), rtol=1e-5)
    for name, value in result.metrics["click"].items():
        assert value == pytest.approx(evaluated[0].metrics["click"][name], abs=1e-4), name
    best = evaluated[0].details["best_reachable"]["click"]["auc"]
    assert result.details["best_reachable"]["click"]["auc"] == pytest.approx(best, abs=1e-12)


def test_one_row_alone_is_scored_as_among_others(place, evaluated, tmp_path):
    rows = raw_test_rows(place).drop_columns(["__row_id", "__bad"])
    pq.write_table(rows.slice(7, 1), tmp_path / "row.parquet")
    result = evaluate(inputs(place), str(tmp_path / "out"), data=str(tmp_path / "row.parquet"))
    np.testing.assert_allclose(
        scores(tmp_path / "out")[:, 0], scores(evaluated[1])[:, 7], rtol=1e-5
    )
    assert result.metrics["click"]["auc"] is None
    reason = result.details["models"]["infnet"]["reasons"]["click"]["auc"]
    assert reason.startswith("all 1 observed labels are")


def test_two_workers_give_what_one_process_gives(place, evaluated, tmp_path):
    two = inputs(place, "compute.workers=2", "train.strategy.type=ddp")
    result = evaluate(two, str(tmp_path / "out"))
    np.testing.assert_array_equal(scores(tmp_path / "out"), scores(evaluated[1]))
    for name, value in result.metrics["click"].items():
        assert value == pytest.approx(evaluated[0].metrics["click"][name], abs=1e-12), name


def test_predict_scores_rows_without_labels_and_keeps_their_keys(place, evaluated, tmp_path, capfd):
    rows = raw_test_rows(place)
    own = ["__row_id", "__bad", "is_click", "is_like", "play_time_ms"]
    unlabelled = rows.drop_columns(own)
    unlabelled = unlabelled.slice(0, 50).append_column("unused", pa.array(["x"] * 50))
    pq.write_table(unlabelled, tmp_path / "rows.parquet")
    result = predict(inputs(place), str(tmp_path / "out"), str(tmp_path / "rows.parquet"))
    found = pq.read_table(tmp_path / "out" / "predictions").sort_by("row_id")
    assert "core_worker" not in capfd.readouterr().err  # what Ray says of actors that end
    assert result.rows == 50
    assert found.column_names == ["row_id", "user_id", "video_id", "p.click", "p.like", "p.watched"]
    assert found["row_id"].to_pylist() == list(range(50))
    assert found["video_id"].to_pylist() == unlabelled["video_id"].to_pylist()
    np.testing.assert_allclose(scores(tmp_path / "out"), scores(evaluated[1])[:, :50], rtol=1e-5)


def with_bad_users(place, path, bad):
    rows = raw_test_rows(place).drop_columns(["__row_id", "__bad"]).slice(0, 60)
    users = rows["user_id"].to_pylist()
    users[:bad] = [None] * bad
    at = rows.column_names.index("user_id")
    pq.write_table(rows.set_column(at, "user_id", pa.array(users, pa.int64())), path)


def test_bad_rows_of_a_file_are_quarantined_with_their_reason(place, tmp_path):
    with_bad_users(place, tmp_path / "rows.parquet", bad=2)
    some = inputs(place, "data.max_bad_share=0.1")
    result = evaluate(some, str(tmp_path / "out"), data=str(tmp_path / "rows.parquet"))
    assert result.rows == 58
    kept = pq.read_table(tmp_path / "out" / "quarantine")
    assert kept.num_rows == 2
    assert all("user" in reason for reason in kept["__bad"].to_pylist())


def test_too_many_bad_rows_are_refused_and_leave_nothing(place, tmp_path):
    with_bad_users(place, tmp_path / "rows.parquet", bad=30)
    with pytest.raises(ConfigError, match=r"30 of 60 rows are bad.*\(30 rows\): .*user"):
        evaluate(inputs(place), str(tmp_path / "out"), data=str(tmp_path / "rows.parquet"))
    assert not (tmp_path / "out").exists()


def test_a_file_without_a_column_is_refused(place, tmp_path):
    rows = raw_test_rows(place).drop_columns(["__row_id", "__bad", "video_id"])
    pq.write_table(rows, tmp_path / "rows.parquet")
    with pytest.raises(ConfigError, match="video_id"):
        evaluate(inputs(place), str(tmp_path / "out"), data=str(tmp_path / "rows.parquet"))


def test_a_file_that_is_not_there_is_refused(place, tmp_path):
    with pytest.raises(ConfigError, match=r"--data .*nowhere\.parquet: there is no such file"):
        evaluate(inputs(place), str(tmp_path / "out"), data=str(tmp_path / "nowhere.parquet"))


def test_without_a_checkpoint_nothing_can_be_evaluated(tmp_path):
    with pytest.raises(ConfigError, match=r"inputs\.checkpoint must name the --out directory"):
        evaluate(config(), str(tmp_path / "out"))


def test_another_split_is_refused(place, tmp_path):
    with pytest.raises(ConfigError, match="--split must be valid or test, found 'train'"):
        evaluate(inputs(place), str(tmp_path / "out"), split="train")


def test_without_a_dataset_a_split_cannot_be_evaluated(place, tmp_path):
    alone = config(f"inputs.checkpoint={place / 'run'}")
    with pytest.raises(ConfigError, match=r"inputs\.data must name the dataset"):
        evaluate(alone, str(tmp_path / "out"))


def test_a_truncated_checkpoint_is_refused(place, tmp_path):
    shutil.copytree(place / "run", tmp_path / "run")
    weights = tmp_path / "run" / "checkpoint" / "network.safetensors"
    weights.write_bytes(weights.read_bytes()[:-50])
    broken = inputs(place, f"inputs.checkpoint={tmp_path / 'run'}")
    with pytest.raises(ConfigError, match=r"network\.safetensors"):
        evaluate(broken, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_rival_of_another_dataset_is_refused(place, tmp_path):
    shutil.copytree(place / "run", tmp_path / "run")
    path = tmp_path / "run" / "rivals" / "floor" / "schema.json"
    schema = Schema.read(path)
    schema.model_copy(update={"encoder_digest": "sha256:other"}).write(path)
    mixed = inputs(place, f"inputs.checkpoint={tmp_path / 'run'}")
    with pytest.raises(
        ConfigError, match="the rival 'floor' .* was trained with encoder sha256:other"
    ):
        evaluate(mixed, str(tmp_path / "out"))
