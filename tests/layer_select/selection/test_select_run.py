"""`layer-select select` on a real trained decoder of twelve layers."""

import json
import time

import pytest
import torch

from layer_select.cli import main
from layer_select.importance.run import on_worker as score_on_worker
from layer_select.opened import open_inputs
from layer_select.plan import Plan
from layer_select.scores import Scores
from layer_select.selection import run as select_run
from layer_select.selection.costs import timed
from rayrun.config import ConfigError, apply_override, validate
from rayrun.ray.worker import SingleWorker


@pytest.fixture(scope="module")
def config(tiny_config, tiny_model):
    return with_settings(tiny_config, [f"inputs.model={tiny_model}", "select.budget.share=0.34"])


def with_settings(config, settings):
    raw = config.to_dict()
    for setting in settings:
        raw = apply_override(raw, setting)
    return validate(type(config), raw, where="test")


def selected(config, state, scores=None) -> Plan:
    opened = open_inputs(config)
    argument = {
        "config": config.to_dict(),
        "key": select_run.key_of(config, opened, scores),
        "digests": opened.digests,
        "scores": None if scores is None else scores.to_dict(),
        "infnet_data": "",
        "state": str(state),
    }
    threads = torch.get_num_threads()
    found = select_run.on_worker(SingleWorker(state / "worker"), argument)
    torch.set_num_threads(threads)
    return validate(Plan, found["plan"], where="the worker")


def test_a_selection_ends_with_a_plan_and_a_second_one_finds_its_measurements(config, tmp_path):
    plan = selected(config, tmp_path)
    assert len(plan.kept) == plan.budget["layers"] == 4
    assert plan.kept[0] == 0
    assert plan.kept[-1] == 11
    assert [len(step["kept"]) for step in plan.history] == [12, 11, 10, 9, 8, 7, 6, 5, 4]
    assert plan.history[-1]["metrics"].keys() > {"loss", "ndcg@10", "mrr"}
    assert plan.baselines.keys() == {
        "full",
        "first_k",
        "every_nth",
        *(f"random_{i}" for i in range(5)),
    }
    assert isinstance(plan.signal["found"], bool)
    assert plan.cost["ratio"] <= 0.65
    started = time.monotonic()
    again = selected(config, tmp_path)
    assert again.cost["evaluations"] == 0
    assert time.monotonic() - started < 30
    assert again.model_copy(update={"cost": plan.cost}) == plan


def test_importance_can_choose_and_milliseconds_can_be_the_budget(config, tmp_path):
    scoring = with_settings(
        config, ["score.methods=[{type: leave_one_out}, {type: shapley, permutations: 4}]"]
    )
    opened = open_inputs(scoring)
    argument = {
        "config": scoring.to_dict(),
        "key": "k",
        "task": opened.task.digest,
        "infnet_data": "",
        "state": str(tmp_path / "scoring"),
        "samples": str(tmp_path / "samples.safetensors"),
    }
    threads = torch.get_num_threads()
    found = score_on_worker(SingleWorker(tmp_path / "worker"), argument)
    torch.set_num_threads(threads)
    scores = validate(Scores, {**found["scores"], **opened.digests}, where="the worker")
    chosen = with_settings(
        config,
        [
            "select.strategy={type: top_k, method: shapley}",
            "select.budget={type: milliseconds, limit: 1.0e6, repeats: 3}",
        ],
    )
    plan = selected(chosen, tmp_path, scores)
    assert plan.kept == tuple(range(12))
    assert plan.budget["layer_ms"] > 0
    assert (
        plan.budget["layer_quartiles"][0]
        <= plan.budget["layer_ms"]
        <= plan.budget["layer_quartiles"][1]
    )
    least = plan.budget["other_ms"] + 3.5 * plan.budget["layer_ms"]
    narrow = with_settings(chosen, [f"select.budget.limit={least}"])
    (tmp_path / "narrow").mkdir()
    # The times of the interrupted run before stand, so the budget means what it meant then.
    (tmp_path / "narrow" / "times.json").write_bytes((tmp_path / "times.json").read_bytes())
    plan = selected(narrow, tmp_path / "narrow", scores)
    order = sorted(range(1, 11), key=lambda i: -scores.methods["shapley"].scores[i])
    assert plan.kept == (0, order[0], 11)
    assert timed.__doc__


def test_plans_of_bad_input_are_refused_before_anything_runs(config, tmp_path, tiny_model, capsys):
    path = tmp_path / "config.yaml"
    path.write_text(config.to_yaml())
    assert main(["select", str(path), "--dry-run", "--out", str(tmp_path / "out")]) == 0
    told = capsys.readouterr().out
    assert "budget: 4 of 12 layers, 45 possible sets; protected: [0, 11]" in told
    scores = {
        "format_version": 1, "model": "sha256:other", "task": "t", "num_layers": 12, "samples": 1,
        "methods": {}, "loss": 1.0,
    }  # fmt: skip
    (tmp_path / "scores.json").write_text(json.dumps(scores))
    for setting, message in (
        ("select.budget={type: layers, keep: 1}", "fewer than the 2 protected ones"),
        ("select.budget={type: layers, keep: 13}", "keep must be 1 to 12"),
        ("select.budget={type: parameters, share: 0.01}", "must hold at least one layer"),
        ("select.protect=[0, 12]", "names layers 0..11"),
        (f"inputs.scores={tmp_path}", "scores of another model: sha256:other"),
    ):
        arguments = ["select", str(path), "--set", setting, "--out", str(tmp_path / "out")]
        assert main([*arguments, "--dry-run"]) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(ConfigError, match="the task differs between the machines of the run"):
        select_run.on_worker(
            SingleWorker(tmp_path),
            {
                "config": config.to_dict(),
                "infnet_data": "",
                "digests": {"model": "m", "task": "another"},
            },
        )
