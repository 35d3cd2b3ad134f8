"""Does a choice know its task? Targets that a few planted layers give, true and shuffled."""

from dataclasses import replace

import pytest
import torch

from layer_select.coalitions import Coalitions
from layer_select.plan import Plan
from layer_select.selection import LayerBudget, Select
from layer_select.selection.baselines import random_sets
from layer_select.selection.choose import choose
from layer_select.selection.comparison import Bootstrap, compare, signal
from layer_select.selection.report import signal_line
from layer_select.selection.room import Room
from layer_select.selection.search import Search
from rayrun.config import ConfigError
from rayrun.ray.worker import SingleWorker
from tests.layer_select.selection.small_task import NextToken, batches, deep_decoder

PLANTED = (0, 2, 5)
LAYERS = 6


@pytest.fixture(scope="module")
def decoder():
    return deep_decoder(LAYERS)


def part(decoder, tmp_path, seed: int, shuffled: int = 0) -> Coalitions:
    """48 prompts whose targets the planted layers name; `shuffled` times exchanged."""
    made = []
    generator = torch.Generator().manual_seed(seed)
    for batch in batches(samples=48, of=24, length=5, seed=seed):
        with torch.no_grad():
            normed = decoder.finish(decoder.through(decoder.start(batch.ids, batch.mask), PLANTED))
            target = decoder.logits(normed[:, -1]).argmax(-1)
        for _ in range(shuffled):
            target = target[torch.randperm(len(target), generator=generator)]
        made.append(replace(batch, target=target))
    return Coalitions(decoder, NextToken(decoder), made, SingleWorker(tmp_path))


def chosen(decoder, tmp_path, times: int) -> Plan:
    """A whole selection, on targets that were exchanged `times` times."""
    search = Search(Room(LAYERS, 3), part(decoder, tmp_path, 1, times))
    return choose(
        Select(bootstrap=400, budget=LayerBudget(keep=3), protect=(), optimum=True),
        search,
        test=part(decoder, tmp_path, 2, times),
        shuffled=part(decoder, tmp_path, 2, times + 1),
        digests={"model": "sha256:m", "task": "sha256:t"},
        budget={"type": "layers", "layers": 3},
    )


def test_the_planted_layers_are_found_and_their_signal_too(decoder, tmp_path):
    plan = chosen(decoder, tmp_path, 0)
    assert plan.kept == PLANTED
    assert plan.signal["found"] is True
    assert plan.signal["difference"]["low"] > 0
    assert plan.chosen["metrics"]["mrr"]["mean"] == 1
    assert plan.baselines["optimum_test"]["kept"] == list(PLANTED)
    assert plan.baselines["optimum_calibration"]["worse_by"]["mean"] == 0
    assert plan.baselines["first_k"]["worse_by"]["low"] > 0
    assert {f"random_{i}" for i in range(5)} | {"full", "every_nth"} <= set(plan.baselines)
    assert signal_line(plan.signal).startswith("**The choice follows the task**")


def test_with_shuffled_targets_the_selection_says_that_there_is_no_signal(decoder, tmp_path):
    plan = chosen(decoder, tmp_path, 1)
    assert plan.signal["found"] is False
    assert signal_line(plan.signal).startswith("**No signal**")


def test_intervals_are_those_of_the_bootstrap_and_differences_are_paired(decoder, tmp_path):
    measured = part(decoder, tmp_path, 3)
    bootstrap = Bootstrap(measured.num_samples, 4000, seed=0)
    told = compare(measured, PLANTED, {"other": (1, 3)}, bootstrap)
    losses, own = measured.losses((1, 3)), measured.losses(PLANTED)
    other = told["other"]
    assert other["loss"] == float(losses.mean())
    error = float(losses.std(correction=0)) / 48**0.5
    assert other["high"] - other["low"] == pytest.approx(2 * 1.96 * error, rel=0.05)
    worse = other["worse_by"]
    assert worse["mean"] == pytest.approx(float((losses - own).mean()))
    error = float((losses - own).std(correction=0)) / 48**0.5
    assert worse["high"] - worse["low"] == pytest.approx(2 * 1.96 * error, rel=0.05)
    assert told["chosen"]["worse_by"] is None


def test_without_replicates_nothing_is_claimed(decoder, tmp_path):
    measured = part(decoder, tmp_path, 4)
    told = signal(
        measured,
        part(decoder, tmp_path, 4, 1),
        PLANTED,
        random_sets(Room(LAYERS, 3), 2, 0),
        Bootstrap(48, 0, seed=0),
    )
    assert told["found"] is None
    assert told["true"]["low"] is None
    assert "Without intervals nothing follows" in signal_line(told)
    assert "there are no test samples" in signal_line({})


PLAN = Plan(
    model="sha256:a",
    task="sha256:t",
    num_layers=6,
    kept=(0, 2, 5),
    budget={"type": "layers", "layers": 3},
    strategy={"type": "top_k"},
)


def test_a_plan_comes_back_as_it_was_written(tmp_path):
    PLAN.write(tmp_path)
    assert Plan.read(tmp_path, "sha256:a") == Plan.read(tmp_path / "plan.json") == PLAN


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (None, "there is no plan at .*plan.json; make one with `layer-select select"),
        (("{", ""), "is damaged .*; select again"),
        (('"sha256:a"', '"sha256:b"'), "plan of another model: sha256:b, here it is sha256:a"),
        (('"format_version": 1', '"format_version": 2'), "format_version 2; .* reads up to 1"),
        (
            ('"num_layers": 6', '"num_layers": 5'),
            r"kept must lie in 0\.\.4, the layers of the model",
        ),
        (("  0,\n  2,", "  2,\n  0,"), "at least one layer, ascending, each once"),
        (('"stopped"', '"stoped"'), "stoped"),
    ],
)
def test_a_plan_that_is_none_for_this_model_is_refused(tmp_path, edit, message):
    if edit is not None:
        PLAN.write(tmp_path)
        text = (tmp_path / "plan.json").read_text()
        assert edit[0] in text
        (tmp_path / "plan.json").write_text(text.replace(*edit, 1))
    with pytest.raises(ConfigError, match=message):
        Plan.read(tmp_path, "sha256:a")
