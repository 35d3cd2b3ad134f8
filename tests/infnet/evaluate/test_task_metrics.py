import numpy as np
import pytest
from sklearn.metrics import log_loss, ndcg_score, r2_score, roc_auc_score

from infnet.evaluate.metrics import AVERAGE, compute, metrics_of
from infnet.evaluate.predictions import Predictions
from infnet.tasks import BinaryTask
from tests.infnet.evaluate.scored_log import TASKS, predictions, scored


def brute(rows, task):
    """By scikit-learn and loops over users; a tuple of the metrics of a binary task."""
    counts = rows.observed[:, task] & (rows.weight > 0)
    user, y, p, w = (
        c[counts].astype(np.int64 if c is rows.user else np.float64)
        for c in (rows.user, rows.label[:, task], rows.prediction[:, task], rows.weight)
    )
    per_user, gains = [], []
    for one in np.unique(user):
        mine = user == one
        if len(set(y[mine])) == 2:
            value = roc_auc_score(y[mine], p[mine], sample_weight=w[mine])
            per_user.append((value, w[mine].sum(), 1.0, w[mine] @ y[mine]))
        one_row = mine.sum() == 1
        gains.append(y[mine][0] if one_row else ndcg_score([y[mine]], [p[mine]], k=5))
    value, *shares = np.array(per_user).T
    clipped = np.clip(p, 2.0**-23, 1 - 2.0**-23)
    loss, rate = log_loss(y, clipped, sample_weight=w), np.average(y, weights=w)
    bins = np.minimum((p * 15).astype(int), 14)
    gaps = [abs((w * (p - y))[bins == b].sum()) for b in range(15)]
    return {
        "auc": roc_auc_score(y, p, sample_weight=w),
        "gauc_impressions": np.average(value, weights=shares[0]),
        "gauc_users": np.average(value, weights=shares[1]),
        "gauc_positives": np.average(value, weights=shares[2]),
        "logloss": loss,
        "ne": loss / -(rate * np.log(rate) + (1 - rate) * np.log(1 - rate)),
        "ece": sum(gaps) / w.sum(),
        "ndcg@5": np.mean(gains),
    }


def assert_equal(found, expected, rel=1e-10):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=rel, abs=1e-12), name


@pytest.mark.parametrize("seed", range(3))
def test_metrics_are_those_of_scikit_learn_by_brute_force(seed):
    rows = scored(seed=seed)
    found = compute(predictions(rows), TASKS).values
    assert_equal(found["click"], brute(rows, 0))
    assert_equal(found["like"], brute(rows, 1))
    counts = rows.observed[:, 2] & (rows.weight > 0)
    y, p, w = rows.label[counts, 2], rows.prediction[counts, 2], rows.weight[counts]
    assert found["spend"]["r2"] == pytest.approx(r2_score(y, p, sample_weight=w), rel=1e-6)


@pytest.mark.parametrize("shards", [2, 5])
def test_merged_shards_equal_one_process(shards):
    rows = scored()
    order = np.random.default_rng(1).permutation(len(rows))
    parts = [predictions(rows.take(part)) for part in np.array_split(order, shards)]
    for part in parts[1:]:
        parts[0].merge(part)
    whole, merged = compute(predictions(rows), TASKS), compute(parts[0], TASKS)
    assert merged.digest == whole.digest
    assert merged.users == whole.users
    for task, values in whole.values.items():
        assert_equal(merged.values[task], values)


@pytest.mark.parametrize("workers", [1, 3])
def test_spilled_rows_give_the_same_within_the_proven_bound(workers, tmp_path):
    rows = scored(rows=2000)
    parts = [
        predictions(rows.take(slice(w, None, workers)), exact_rows=600, spill=tmp_path / str(w))
        for w in range(workers)
    ]
    for part in parts[1:]:
        parts[0].merge(part)
    exact, spilled = compute(predictions(rows), TASKS), compute(parts[0], TASKS)
    assert exact.exact
    assert not spilled.exact
    assert spilled.digest == exact.digest
    for task in TASKS:
        bounds = spilled.bounds[task]
        assert set(bounds) == {"auc", "gini"} & set(exact.values[task])
        for metric, value in exact.values[task].items():
            error = abs(spilled.values[task][metric] - value)
            assert error <= bounds.get(metric, 0) + 1e-12, metric
    assert spilled.correlations["labels"][0][1] == pytest.approx(
        exact.correlations["labels"][0][1], rel=1e-9
    )


def test_the_error_of_a_histogram_can_be_as_large_as_its_bound_says():
    # 1e-9 apart: one bin; the true AUC is 1, the histogram sees a tie
    found = Predictions(["click"], exact_rows=1)
    label = np.array([[0.0], [1.0]] * 4)
    score = 0.5 + 1e-9 * label
    found.update(np.arange(8), np.arange(8), np.ones(8), score, label, np.ones((8, 1), bool))
    measured = compute(found, {"click": TASKS["click"]})
    assert measured.values["click"]["auc"] == 0.5
    assert measured.bounds["click"]["auc"] == 0.5


def test_memory_stays_at_the_bound_while_rows_spill(tmp_path):
    rows = scored(rows=3000, users=300)
    found = predictions(rows, exact_rows=500, spill=tmp_path)
    sizes = [len(part) for part in found.partitions()]
    assert sum(sizes) == 3000
    largest = np.unique(rows.user, return_counts=True)[1].max()
    assert max(sizes) <= max(500, largest)


def test_a_user_with_more_rows_than_memory_stays_whole(tmp_path):
    rows = scored(rows=3000, users=20)
    rows.user[::2] = 7
    found = predictions(rows, exact_rows=500, spill=tmp_path)
    parts = [set(part.user) for part in found.partitions()]
    assert sum(len(users) for users in parts) == len(set(rows.user))
    values = compute(found, TASKS).values["click"]
    assert values["gauc_users"] == pytest.approx(brute(rows, 0)["gauc_users"], rel=1e-10)


def test_unobserved_labels_and_rows_without_weight_change_nothing():
    rows = scored()
    before = compute(predictions(rows), TASKS)
    rows.label[~rows.observed] = np.nan
    idle = rows.weight == 0
    rows.prediction[idle] = 1 - np.minimum(rows.prediction[idle], 1)
    assert compute(predictions(rows), TASKS).values == before.values


def test_averages_are_over_the_tasks_that_have_the_metric():
    found = compute(predictions(scored()), TASKS).values
    assert found[AVERAGE]["auc"] == (found["click"]["auc"] + found["like"]["auc"]) / 2
    assert "rmse" not in found[AVERAGE]


def test_one_label_has_no_auc_and_says_why():
    rows = scored()
    rows.label[:, 0] = 1
    rows.observed[:, 1] = False
    rows.label[:, 2] = 3
    found = compute(predictions(rows), TASKS, bootstrap=30)
    counted = found.observed["click"]
    assert found.values["click"]["auc"] is None
    assert found.values["click"]["logloss"] is not None
    assert found.reasons["click"]["auc"] == (
        f"all {counted} observed labels are positive, both are needed"
    )
    assert found.reasons["click"]["gauc_users"] == (
        f"no user has both labels in {counted} observed rows"
    )
    assert set(found.values["like"].values()) == {None}
    assert found.reasons["like"]["auc"] == "no row has an observed label and a weight above 0"
    assert found.reasons["spend"]["r2"] == (
        f"all {found.observed['spend']} observed labels are equal"
    )
    assert found.interval("click", "auc") is None
    assert found.interval("click", "logloss") is not None


def test_negative_amounts_have_no_gini():
    rows = scored()
    rows.label[0, 2], rows.observed[0, 2], rows.weight[0] = -1, True, 1
    found = compute(predictions(rows), TASKS)
    assert found.values["spend"]["gini"] is None
    assert found.reasons["spend"]["gini"] == "labels below 0"


@pytest.mark.parametrize("exact_rows", [100, 0])
def test_no_rows_give_no_metric_and_no_error(exact_rows):
    found = compute(Predictions(list(TASKS), exact_rows=exact_rows), TASKS, bootstrap=30)
    assert {v for row in found.values.values() for v in row.values()} == {None}
    assert found.rows == found.users == 0


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("prediction", np.nan, r"the prediction of task 'click' must be a finite number, found nan in row_id 3"),
        ("label", np.inf, r"the label of task 'click' must be a finite number, found inf in row_id 3"),
        ("weight", np.nan, r"the weight must be a finite number, found nan in row_id 3"),
        ("weight", -1.0, r"the weight must be 0 or more, found -1.0 in row_id 3"),
    ],
)  # fmt: skip
def test_a_number_that_cannot_be_measured_is_refused_with_its_row(column, value, message):
    rows = scored()
    rows.observed[3] = True
    target = getattr(rows, column)
    target[(3, 0) if target.ndim == 2 else 3] = value
    with pytest.raises(ValueError, match=message):
        predictions(rows)


def test_predictions_of_another_number_of_tasks_are_refused():
    rows = scored()
    with pytest.raises(ValueError, match=r"\(600, 1\); found the shape \(600, 3\)"):
        Predictions(["click"]).add(rows)


def test_tasks_must_have_different_names():
    with pytest.raises(ValueError, match="one or more different names"):
        Predictions(["click", "click"])


def test_other_tasks_cannot_be_merged():
    with pytest.raises(ValueError, match=r"tasks \['b'\] cannot be merged into \['a'\]"):
        Predictions(["a"]).merge(Predictions(["b"]))


def test_an_unknown_metric_of_a_task_type_is_refused():
    class Odd(BinaryTask):
        @property
        def metrics(self):
            return ("auc", "accuracy")

    with pytest.raises(ValueError, match=r"metrics \['accuracy'\] are not known"):
        metrics_of(Odd(label="click"))


def test_metrics_do_not_depend_on_the_order_of_rows():
    rows = scored()
    shuffled = rows.take(np.random.default_rng(0).permutation(len(rows)))
    first, second = compute(predictions(rows), TASKS), compute(predictions(shuffled), TASKS)
    for task, values in first.values.items():
        assert_equal(second.values[task], values)
