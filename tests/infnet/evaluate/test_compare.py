import dataclasses
import json

import numpy as np
import pytest

from infnet.evaluate.compare import compare, compare_measured, row_to_json
from infnet.evaluate.metrics import compute
from infnet.evaluate.predictions import Predictions, Rows
from infnet.evaluate.writing import PredictionWriter
from infnet.schema import Schema
from tests.infnet.evaluate.scored_log import TASKS, predictions, scored


def one_task(noise, seed, rows=1500, users=150):
    """The same rows for every seed; predictions further from the truth the larger the noise."""
    fixed, own = np.random.default_rng(0), np.random.default_rng([seed, 1])
    logit = fixed.normal(size=rows)
    user = fixed.integers(0, users, rows)
    label = (fixed.random(rows) < 1 / (1 + np.exp(-logit))).astype(np.float32)[:, None]
    p = 1 / (1 + np.exp(-logit - noise * own.normal(size=rows)))
    found = Predictions(["click"])
    found.add(
        Rows(np.arange(rows), user, np.ones(rows), p[:, None], label, np.ones((rows, 1), bool))
    )
    return found


def measured(noise, seed=0, bootstrap_seed=0):
    found = one_task(noise, seed)
    return compute(found, {"click": TASKS["click"]}, bootstrap=200, seed=bootstrap_seed)


def test_a_model_does_not_differ_from_itself():
    same = compare_measured({"a": [measured(0.5)], "b": [measured(0.5)]})
    found = same.row("b", "click", "auc").difference
    assert (found.value, found.users.low, found.users.high, found.smallest) == (0, 0, 0, 0)
    assert not found.clear


def test_a_much_worse_model_is_told_apart_and_an_equal_one_is_not():
    table = compare_measured(
        {"a": [measured(0.3)], "worse": [measured(2.0)], "equal": [measured(0.3, seed=1)]}
    )
    worse = table.row("worse", "click", "auc").difference
    assert worse.clear
    assert worse.high < 0
    equal = table.row("equal", "click", "auc").difference
    assert not equal.clear
    assert equal.low < 0 < equal.high


def test_pairing_narrows_the_interval():
    a, b = measured(0.3), measured(0.3, seed=1)
    paired = compare_measured({"a": [a], "b": [b]}).row("b", "click", "auc").difference
    alone = [one.interval("click", "auc").sd for one in (a, b)]
    assert paired.users.sd < 0.5 * np.hypot(*alone)


def test_seeds_are_averaged_and_their_spread_widens_the_interval():
    runs = {
        "a": [measured(0.5, seed) for seed in range(3)],
        "b": [measured(0.8, seed) for seed in range(3)],
    }
    row = compare_measured(runs).row("b", "click", "auc")
    values = [m.values["click"]["auc"] for m in runs["b"]]
    base = [m.values["click"]["auc"] for m in runs["a"]]
    assert row.mean == pytest.approx(np.mean(values))
    assert row.seed_sd == pytest.approx(np.std(values, ddof=1))
    found = row.difference
    assert found.value == pytest.approx(np.mean(values) - np.mean(base))
    variance = found.users.sd**2 + (np.var(values, ddof=1) + np.var(base, ddof=1)) / 3
    assert found.smallest == pytest.approx(1.96 * variance**0.5)
    assert found.high - found.value == pytest.approx(found.smallest)


def test_other_rows_cannot_be_compared():
    other = compute(one_task(0.3, 0, rows=1400), {"click": TASKS["click"]}, bootstrap=30)
    with pytest.raises(ValueError, match=r"run 0 of 'b' has 1400 rows, run 0 of 'a' has 1500"):
        compare_measured({"a": [measured(0.3)], "b": [other]})


def test_other_replicates_cannot_be_compared():
    with pytest.raises(ValueError, match="'b' was measured with seed 1 and run 0 of 'a' with 0"):
        compare_measured({"a": [measured(0.3)], "b": [measured(0.3, bootstrap_seed=1)]})


def test_a_metric_that_is_not_defined_has_no_difference_and_is_null_in_json():
    rows = scored()
    rows.label[:, 0] = 1
    both = [[compute(predictions(rows), TASKS, bootstrap=30)] for _ in range(2)]
    row = compare_measured(dict(zip("ab", both, strict=True))).row("b", "click", "auc")
    assert row.mean is None
    assert row.difference is None
    text = json.dumps(row_to_json(row), allow_nan=False)
    assert '"mean": null' in text


def test_directories_are_compared_as_evaluate_writes_them(tmp_path):
    rows = scored()
    schema = Schema(
        tables={}, fields=(), dense=(), sequences=(), tasks=TASKS, encoder_digest="sha256:0"
    )
    for seed in range(2):
        (tmp_path / str(seed)).mkdir()
        schema.write(tmp_path / str(seed) / "schema.json")
        for name, shift in (("", 0.0), ("rivals/floor", 0.3)):
            shifted = dataclasses.replace(rows, prediction=rows.prediction.copy())
            draw = np.random.default_rng([seed, 7]).random(len(rows))
            shifted.prediction[:, 0] = (1 - shift) * rows.prediction[:, 0] + shift * draw
            writer = PredictionWriter(tmp_path / str(seed) / name, list(TASKS))
            writer.write(shifted)
            writer.close()
    table = compare(
        {
            "model": [tmp_path / str(s) / "predictions" for s in range(2)],
            "floor": [tmp_path / str(s) / "rivals" / "floor" / "predictions" for s in range(2)],
        },
        bootstrap=50,
    )
    expected = compute(predictions(rows), TASKS).values["click"]["auc"]
    assert table.row("model", "click", "auc").mean == pytest.approx(expected, rel=1e-12)
    assert table.row("floor", "click", "auc").difference.value < 0
    json.dumps(table.to_json(), allow_nan=False)


def test_no_runs_are_refused():
    with pytest.raises(ValueError, match="at least one predictions directory for each model"):
        compare({"a": []})


def test_predictions_without_a_schema_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"must lie under a directory with schema\.json"):
        compare({"a": [tmp_path / "predictions"]})


def test_an_empty_predictions_directory_is_refused(tmp_path):
    Schema(
        tables={}, fields=(), dense=(), sequences=(), tasks=TASKS, encoder_digest="sha256:0"
    ).write(tmp_path / "schema.json")
    (tmp_path / "predictions").mkdir()
    with pytest.raises(ValueError, match=r"holds no part-\*\.parquet"):
        compare({"a": [tmp_path / "predictions"]})
