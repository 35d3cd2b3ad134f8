"""Intervals, differences and verdicts from ranks that are known."""

import numpy as np
import pytest
import torch

from layer_select.compact.origin import GapRepair
from layer_select.evaluate.bootstrap import Bootstrap
from layer_select.evaluate.table import compare
from layer_select.evaluate.targets import targets
from layer_select.evaluate.timing import ratio

SIZES = {"full": {"block_parameters": 1200, "width": 192}, "student": {"block_parameters": 300}}
SAMPLES = 400


@pytest.fixture(scope="module")
def ranks() -> dict[str, dict[str, torch.Tensor]]:
    """The student ranks as the full model but for every tenth sample, and far above `first_k`."""
    full = torch.from_numpy(np.random.default_rng(0).geometric(0.2, SAMPLES)).double()
    student = full + (torch.arange(SAMPLES) % 10 == 0)
    return {
        "full": {"rank": full},
        "student": {"rank": student},
        "first_k": {"rank": full + 3},
        "random_0": {"rank": full + 1},
        "random_1": {"rank": full + 9},
        "sasrec": {"rank": student.flip(0)},
    }


@pytest.fixture(scope="module")
def compared(ranks):
    return compare(
        ranks,
        "student",
        Bootstrap(SAMPLES, 500, seed=1),
        draws={"random": ["random_0", "random_1"]},
    )


def test_retention_is_the_ratio_of_means_and_its_interval_is_paired(ranks, compared):
    full, student = (1 / ranks[name]["rank"] for name in ("full", "student"))
    found = compared["retained"]["mrr"]
    assert found["mean"] == pytest.approx(float(student.mean() / full.mean()), abs=1e-12)
    # Delta method for a ratio of paired means, and what it would be for independent samples.
    r = found["mean"]
    paired = float((student - r * full).std()) / SAMPLES**0.5 / float(full.mean())
    apart = float((student.var() + r**2 * full.var()) ** 0.5) / SAMPLES**0.5 / float(full.mean())
    assert found["high"] - found["low"] == pytest.approx(2 * 1.96 * paired, rel=0.15)
    assert found["high"] - found["low"] < 0.5 * 2 * 1.96 * apart


def test_random_layers_stand_for_the_mean_of_their_draws(ranks, compared):
    draws = torch.stack([1 / ranks[f"random_{n}"]["rank"] for n in (0, 1)])
    expected = float((1 / ranks["student"]["rank"]).mean() - draws.mean())
    assert compared["differences"]["random"]["mrr"]["mean"] == pytest.approx(expected, abs=1e-12)
    assert "student" not in compared["differences"]


def test_ratings_are_told_by_the_root_of_the_mean_square():
    generator = torch.Generator().manual_seed(0)
    errors = {n: torch.rand(50, generator=generator).double() for n in ("full", "student")}
    found = {
        name: {"squared_error": e**2, "absolute_error": e, "accuracy": (e < 0.5).double()}
        for name, e in errors.items()
    }
    told = compare(found, "student", Bootstrap(50, 200, seed=0))
    rmse = told["models"]["full"]["rmse"]
    assert rmse["mean"] == pytest.approx(float((errors["full"] ** 2).mean()) ** 0.5)
    assert rmse["low"] < rmse["mean"] < rmse["high"]
    assert told["retained"].keys() == {"accuracy"}  # lower is better for the others


def test_a_target_is_met_by_its_interval_or_told_as_it_is(compared):
    timing = {"batch": 32, "ratios": {"student": {"mean": 3.6, "low": 3.4, "high": 3.8}}}
    repairs = [
        GapRepair(after=0, gap=(1, 2), loss_before=5.2, loss_after=5.0, used=True),
        GapRepair(after=3, gap=(4,), loss_before=5.0, loss_after=5.4, used=False),
    ]
    lines = {t.name: t for t in targets(SIZES, compared, timing, repairs)}
    told = {name: line.to_dict()["met"] for name, line in lines.items()}
    assert told == {
        "parameters of the layers": "met",
        "ndcg@10 retained": "met",
        "mrr retained": "met",
        "better than first_k": "met",
        "better than every_n": "not measured",
        "better than random": "met",
        "better than block_influence": "not measured",
        "better than scratch": "not measured",
        "better than sasrec": "not met",  # the same ranks in another order: 0 is inside
        "prefill, times faster": "not met",  # 3.6, but its interval begins below 3.5
        "loss gained by repair": "met",
    }
    assert lines["loss gained by repair"].value == pytest.approx(0.2)
    fast = {"batch": 32, "ratios": {"student": {"mean": 4.0, "low": 3.5, "high": 4.5}}}
    again = {t.name: t.met for t in targets(SIZES, compared, fast, ())}
    assert again["prefill, times faster"] is True
    assert again["loss gained by repair"] is None
    few = {t.name: t.met for t in targets(SIZES, compared, {**fast, "batch": 8}, ())}
    assert few["prefill, times faster"] is None
    narrow = {**SIZES, "full": {**SIZES["full"], "width": 128}}
    assert {t.name: t.met for t in targets(narrow, compared, fast, ())}[
        "prefill, times faster"
    ] is None
    large = {**SIZES, "student": {"block_parameters": 301}}
    assert {t.name: t.met for t in targets(large, compared, None, ())}[
        "parameters of the layers"
    ] is False


def test_a_ratio_of_times_is_that_of_medians_and_pairs_cancel_what_both_suffer():
    load = np.random.default_rng(0).uniform(1, 3, 60)  # the machine, the same for either pass
    found = ratio(0.4 * load, 0.1 * load, seed=0)
    assert found == pytest.approx({"mean": 4.0, "low": 4.0, "high": 4.0})
