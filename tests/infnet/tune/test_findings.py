"""What is made of trials: findings, table and page; what a model costs."""

import json

import pyarrow.parquet as pq
import pytest
import torch

from infnet.tune import table
from infnet.tune.cost import cost_of
from infnet.tune.findings import findings
from infnet.tune.points import M
from infnet.tune.report import report
from infnet.tune.trial import objectives_of
from rayrun.config import ConfigError
from rayrun.ray.space import Choice
from rayrun.ray.tune import Outcome, Search
from tests.infnet.train import written_dataset as written

RATE = "train.optimizer.lr"
PLAN = Search(
    space={M: Choice(values=(2, 4, 8)), RATE: Choice(values=(0.1, 0.2))},
    objectives={"auc": "max", "parameters": "min"},
)


def outcome(name: str, m: int, aucs: list[float], rate: float = 0.1, **changes) -> Outcome:
    cost = {"parameters": 100 * m, "table_parameters": 7, "latency_ms": 1.5, "latency": 3.0}
    seeds = {
        str(seed): {
            "objectives": {"auc": auc, "parameters": 100.0 * m},
            "metrics": {"click": {"auc": auc}},
            "best_step": 13, "steps": 26, "stopped_early": False, "train_s": 1.0,
            "peak_memory_bytes": 1,
        }
        for seed, auc in enumerate(aucs)
    }  # fmt: skip
    reports = [{"at": 13, "seconds": 0.5, "objectives": {"auc": aucs[0], "parameters": 100.0 * m}}]
    whole = {
        "state": "finished",
        "objectives": {"auc": sum(aucs) / len(aucs), "parameters": 100.0 * m},
        "reports": reports,
        "details": {"cost": cost, "seeds": seeds},
        "pid": 5,
        **changes,
    }
    return Outcome(name, {M: m, RATE: rate}, **whole)


STOPPED = {"state": "stopped", "details": {}, "objectives": {"auc": 0.4, "parameters": 200.0}}
OUTCOMES = [
    outcome("a", 2, [0.60, 0.61, 0.60]),
    outcome("b", 4, [0.70, 0.71, 0.70]),
    outcome("c", 8, [0.705, 0.71, 0.704]),
    outcome("d", 8, [0.705, 0.71, 0.704], repeats="c"),
    outcome("e", 2, [0.4], rate=0.2, **STOPPED),
    outcome("f", 4, [0.4], rate=0.2, state="failed", details={}, error="killed", objectives={}),
]


def test_the_best_the_front_and_what_can_be_told():
    found = findings(PLAN, OUTCOMES)
    assert found.best.id == "c"
    assert [found.finished[i].id for i in found.front] == ["a", "b", "c"]  # dearer and better
    assert found.counts() == {
        "total": 6, "finished": 4, "stopped": 1, "failed": 1, "repeated": 1,
    }  # fmt: skip
    told = {p["trial"]: p["told"] for p in found.to_json()["points"]}
    assert told == {"a": True, "b": False, "c": False}
    assert found.sentence().startswith(
        "The best auc is 0.7063 ± 0.0032 over 3 seeds, at m = 8, train.optimizer.lr = 0.1. The "
        "data tell it from 1 of the other 2 points, and not from 1: the smallest difference"
    )
    assert [(value, found.finished[i].id) for value, i, _ in found.by_value(M)] == [
        (2, "a"), (4, "b"), (8, "c"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("outcomes", "sentence"),
    [
        ([outcome("a", 2, [0.6, 0.6])], "there is nothing to compare it with"),
        ([outcome("a", 2, [0.6]), outcome("b", 4, [0.7])], "cannot tell it from the other 1 poin"),
        (
            [outcome("a", 2, [0.6, 0.8]), outcome("b", 4, [0.8, 0.61])],
            "The data cannot tell it from any of the other 1 points: the smallest difference",
        ),
        (
            [outcome("a", 2, [0.6, 0.601, 0.6]), outcome("b", 4, [0.8, 0.8, 0.801])],
            "The data tell it from all other 1 points",
        ),
    ],
)
def test_what_the_data_cannot_tell_is_said(outcomes, sentence):
    assert sentence in findings(PLAN, outcomes).sentence()


def test_a_search_of_which_nothing_finished_is_refused():
    with pytest.raises(
        ConfigError, match=r"none of the 2 trials ran .*: 1 failed \(killed\), the ot"
    ):
        findings(PLAN, OUTCOMES[4:])


def test_the_table_has_a_row_per_trial_and_seed(tmp_path):
    table.write(OUTCOMES, list(PLAN.space), list(PLAN.objectives), str(tmp_path))
    rows = pq.read_table(tmp_path / "trials.parquet").to_pylist()
    assert [(r["trial"], r["seed"]) for r in rows[:4]] == [("a", 0), ("a", 1), ("a", 2), ("b", 0)]
    assert {r["state"] for r in rows} == {"finished", "stopped", "failed"}
    assert rows[1][M] == 2
    assert rows[1]["auc"] == 0.61
    assert json.loads(rows[1]["metrics"]) == {"click": {"auc": 0.61}}
    (stopped,) = [r for r in rows if r["trial"] == "e"]
    assert (stopped["auc"], stopped["parameters"], stopped["steps"]) == (0.4, 200.0, 13)
    (failed,) = [r for r in rows if r["trial"] == "f"]
    assert (failed["error"], failed["auc"]) == ("killed", None)


def test_the_page_says_what_was_found_and_how_it_ended():
    page = report(written.config(), findings(PLAN, OUTCOMES)).html()
    assert "6 trials: 4 finished, 1 stopped early, 1 failed; 1 met a point again" in page
    assert "told apart" in page
    assert "--set model.num_categorical_proxies=8" in page
    assert page.count("<svg") == 3


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return written.dataset(tmp_path_factory.mktemp("cost") / "dataset")


def test_the_cost_of_a_model_is_counted_and_timed_beside_the_floor(dataset):
    schema = written.schema()
    costs = [
        cost_of(written.config(f"{M}={m}"), schema, dataset, torch.device("cpu")) for m in (2, 3)
    ]
    tables = sum(table.rows * table.dim for table in schema.tables.values())
    assert [cost.table_parameters for cost in costs] == [tables, tables]
    # one proxy more: a row of D outputs of φ (hidden 8, and the bias), and D inputs of the gate's
    # first layer (hidden 8) where the categorical tokens are gated: in the first of two blocks
    assert costs[1].parameters - costs[0].parameters == 8 * (8 + 1) + 8 * 8
    assert costs[0].latency > 1  # the floor is one small product
    assert costs[0].latency_ms > 0
    config = written.config("tune.objectives=[{type: metric}, {type: latency}, {type: parameters}]")
    metrics = {"click": {"auc": 0.7}, "like": {"auc": 0.9}, "watch": {"rmse": 1.0}}
    assert objectives_of(config, metrics, costs[0]) == {
        "auc": pytest.approx(0.8),
        "latency": costs[0].latency,
        "parameters": costs[0].parameters,
    }
    own = written.config("tune.objectives=[{type: metric, task: click, metric: auc}]")
    assert objectives_of(own, metrics, costs[0]) == {"click.auc": 0.7}
    none = {"click": {"auc": None}, "like": {"auc": None}}
    assert objectives_of(own, none, costs[0]) == {"click.auc": None}
