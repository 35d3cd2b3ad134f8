"""A search over functions that know no model: what is stopped, fails, repeats; and its records."""

import json
import sys

import pytest
from ray import cloudpickle

from rayrun.config import ConfigError
from rayrun.ray import trial as trials
from rayrun.ray.compute import LocalCompute
from rayrun.ray.session import session
from rayrun.ray.space import AshaScheduler, Choice, GridSearcher, IntRange, OptunaSearcher
from rayrun.ray.trial import Trial
from rayrun.ray.tune import Search, search

COMPUTE = LocalCompute(num_cpus=2, object_store_bytes=200_000_000)


def climb(trial, argument):
    """Reports its value, a little higher each time; one value is bad input, one a fault."""
    value = trial.values["a.b"]
    if value == argument["refused"]:
        raise ConfigError(f"a.b must not be {value}")
    if value == argument["broken"]:
        raise ZeroDivisionError("by nothing")
    for step in range(3):
        trial.report({"score": value + step / 10}, at=10 * step)
    return {"score": value + 0.3}, {"seen": value}


def width(trial, argument):
    """The wider the better, and the dearer."""
    return {"score": sum(trial.values["widths"]), "cost": len(trial.values["widths"])}, {}


def refuse(trial, argument):
    raise ConfigError("it is never possible")


@pytest.mark.ray
def test_what_becomes_of_trials(tmp_path):
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import this file
    with session(COMPUTE):
        values = (9, 8, 7, 0, -1, 10)
        halving = Search(
            space={"a.b": Choice(values=values)},
            objectives={"score": "max"},
            searcher=GridSearcher(),
            scheduler=AshaScheduler(grace=2, reduction=2),
            max_concurrent=1,  # in this order
        )
        given, place = {"refused": 0, "broken": -1}, str(tmp_path / "asha")
        found = search(climb, given, halving, compute=COMPUTE, place=place)
        by_value = {outcome.values["a.b"]: outcome for outcome in found}
        assert {value: outcome.state for value, outcome in by_value.items()} == {
            9: "finished", 8: "stopped", 7: "stopped", 0: "failed", -1: "failed", 10: "finished",
        }  # fmt: skip
        assert [len(by_value[v].reports) for v in (9, 8, 0)] == [3, 2, 0]  # 8 at the second
        assert by_value[8].objectives == {"score": 8.1}
        assert by_value[10].objectives == {"score": 10.3}
        assert by_value[10].details == {"seen": 10}
        assert (by_value[0].error, by_value[0].bad_input) == ("a.b must not be 0", True)
        assert by_value[-1].error == "ZeroDivisionError: by nothing"
        assert len({by_value[v].pid for v in (9, 8, 7)}) == 1  # one process, used again

        learning = Search(
            space={
                "widths": Choice(values=([1], [1, 1], [2, 2])),
                "depth": IntRange(low=1, high=2),
            },
            objectives={"score": "max", "cost": "min"},
            searcher=OptunaSearcher(startup=2),
            trials=8,
            max_concurrent=1,
        )
        found = search(width, {}, learning, compute=COMPUTE, place=str(tmp_path / "optuna"))
        assert {outcome.state for outcome in found} == {"finished"}
        assert len(found) == 8
        assert any(outcome.repeats for outcome in found)  # there are 6 points
        for outcome in found:
            assert outcome.objectives["score"] == sum(outcome.values["widths"])

        again = search(width, {}, learning, compute=COMPUTE, place=str(tmp_path / "optuna"))
        assert {o.id: o for o in again} == {o.id: o for o in found}  # nothing ran again
        late = Search(space=learning.space, objectives=learning.objectives, max_seconds=1e-3)
        found = search(width, {}, late, compute=COMPUTE, place=str(tmp_path / "late"))
        assert [(o.state, o.reports, o.objectives) for o in found] == [("stopped", [], {})] * 6
        one = Search(space={"a": Choice(values=(1, 2))}, objectives={"score": "max"})
        with pytest.raises(ConfigError, match="all 2 trials failed; the first: it is never poss"):
            search(refuse, {}, one, compute=COMPUTE, place=str(tmp_path / "refused"))
        wide = Search(space=one.space, objectives=one.objectives, workers=3)
        with pytest.raises(ConfigError, match="one trial takes 3 workers with 1 CPUs .* found 2 C"):
            search(refuse, {}, wide, compute=COMPUTE, place=str(tmp_path / "wide"))


def test_a_search_of_nothing_is_refused():
    with pytest.raises(ConfigError, match="must have at least one path, found none"):
        Search(space={}, objectives={"score": "max"}).points()


@pytest.fixture
def trial(tmp_path):
    return Trial("t1", {"a": 1}, str(tmp_path), ("score",))


def test_a_later_attempt_replaces_the_reports_it_makes_again(trial):
    trials.begin(trial)
    for at in (5, 10, 15):
        told = trial.note({"score": at}, at=at)
    assert told == {trials.STEP: 3, "score": 15.0}
    trials.begin(trial)
    assert trial.note({"score": 11}, at=10) == {trials.STEP: 2, "score": 11.0}
    record = trials.read_record(trial.place, "t1")
    assert [(r["at"], r["objectives"]["score"]) for r in record["reports"]] == [(5, 5), (10, 11)]
    assert record["state"] == "running"


def test_an_equal_point_takes_over_the_result(trial, tmp_path):
    assert trials.known(trial) is None
    result = trial.finish({"score": 0.5}, {"more": [1]})
    other = Trial("t2", {"a": 1}, str(tmp_path), ("score",))
    found = trials.known(other)
    assert trials.repeat(other, found) == result
    record = json.loads((tmp_path / "trials" / "t2.json").read_text())
    assert (record["state"], record["repeats"]) == ("finished", "t1")
    before = trials.read_record(trial.place, "t1")
    trials.repeat(trial, trials.known(trial))  # the trial itself, after a restart: its own record
    assert trials.read_record(trial.place, "t1") == before


@pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
def test_an_objective_that_is_no_number_is_refused(trial, value):
    with pytest.raises(ConfigError, match="the objective score must be a finite number in every"):
        trial.note({"score": value}, at=1)
