"""`layer-select score`: workers, executions, a second call, scores at rest, the dry run."""

import json
from dataclasses import replace

import pytest
import torch

from layer_select.cli import main
from layer_select.config import LayerSelectConfig
from layer_select.importance.agreement import agreement
from layer_select.importance.method import Found
from layer_select.importance.report import report
from layer_select.importance.run import SAMPLES, key_of, on_worker, plan
from layer_select.opened import open_inputs, with_model
from layer_select.scores import Scores
from rayrun.config import ConfigError, validate
from rayrun.ray.worker import SingleWorker

METHODS = [
    {"type": "fisher"},
    {"type": "fisher", "monte_carlo": True},
    {"type": "taylor"},
    {"type": "block_influence"},
    {"type": "cka"},
]
REMOVAL = [
    {"type": "leave_one_out"},
    {"type": "hybrid", "weights": {"fisher": 1, "block_influence": 1}, "fit": "leave_one_out"},
]


def configured(tiny_config, tiny_model, workers=1, methods=(*METHODS, *REMOVAL), **settings):
    raw = tiny_config.to_dict() | {
        "inputs": {"model": str(tiny_model)},
        "compute": tiny_config.compute.to_dict() | {"workers": workers, "num_cpus": 2},
        "score": {"methods": list(methods), "bootstrap": 200, **settings},
    }
    return validate(LayerSelectConfig, raw, where="test")


def alone(config, folder) -> Scores:
    """In this process, without Ray."""
    opened = open_inputs(config)
    argument = {
        "config": config.to_dict(),
        "key": key_of(config, opened),
        "task": opened.task.digest,
        "infnet_data": "",
        "state": str(folder),
        "samples": str(folder / SAMPLES),
    }
    found = on_worker(SingleWorker(folder / "worker"), argument)
    return validate(Scores, {**found["scores"], **opened.digests}, where="test")


def assert_same(ours: Scores, expected: Scores, rtol: float) -> None:
    for key, found in ours.methods.items():
        other = expected.methods[key]
        torch.testing.assert_close(found.tensor, other.tensor, rtol=rtol, atol=1e-12, msg=key)
        errors = torch.tensor([found.errors, other.errors], dtype=torch.float64)
        torch.testing.assert_close(errors[0], errors[1], rtol=10 * rtol, atol=1e-12, msg=key)


def test_streamed_blocks_score_as_whole_ones(tiny_config, tiny_model, tmp_path):
    methods = METHODS[:1] + METHODS[3:4] + REMOVAL[:1]
    few = tiny_config.model_copy(
        update={"task": tiny_config.task.model_copy(update={"calibration": 16})}
    )
    whole = alone(configured(few, tiny_model, methods=methods), tmp_path / "whole")
    streamed = configured(few, tiny_model, methods=methods, execution={"type": "streamed"})
    assert_same(alone(streamed, tmp_path / "streamed"), whole, rtol=1e-6)


def test_the_dry_run_prints_the_memory_of_every_execution(
    tiny_config, tiny_model, capsys, tmp_path
):
    config = configured(tiny_config, tiny_model)
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    assert main(["score", str(tmp_path / "config.yaml"), "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "memory of one of 1 workers, whole (chosen):" in told
    assert "memory of one of 1 workers, streamed:" in told
    assert "this worker's part of the blocks (1/1)" in told
    assert "48 of calibration in 3 micro-batches" in told
    unnamed = config.model_copy(update={"inputs": type(config.inputs)()})
    assert "score makes the one of pretrain: first" in plan(unnamed, "out")


def test_without_a_model_there_must_be_a_way_to_make_one(tiny_config):
    config = tiny_config.model_copy(update={"pretrain": None})
    with pytest.raises(
        ConfigError, match=r"a model is needed and none is given: set model: {type:"
    ):
        with_model(config, "out")


def test_other_data_on_a_worker_is_refused(tiny_config, tiny_model, tmp_path):
    config = configured(tiny_config, tiny_model)
    argument = {"config": config.to_dict(), "task": "sha256:other", "infnet_data": ""}
    with pytest.raises(
        ConfigError, match="the task differs between the machines of the run: sha256:other"
    ):
        on_worker(SingleWorker(tmp_path), argument)


@pytest.mark.parametrize(
    ("score", "message"),
    [
        ({"methods": []}, "score: methods: at least one method is required"),
        (
            {"methods": [{"type": "fisher"}, {"type": "fisher", "seed": 1}]},
            "methods must give each score once, found twice: fisher",
        ),
    ],
)
def test_methods_that_cannot_be_run_together_are_refused(tiny_config, score, message):
    raw = tiny_config.to_dict() | {"score": score}
    with pytest.raises(ConfigError, match=message):
        validate(LayerSelectConfig, raw, where="test")


def test_a_page_of_many_methods_is_no_wider_than_the_window(tiny_config):
    keys = [f"method_{number}" for number in range(17)]
    found = {key: Found.mean(torch.rand(5, 12, dtype=torch.float64)) for key in keys}
    scores = Scores.of(
        {key: replace(one, seconds=1.0) for key, one in found.items()},
        types=dict.fromkeys(keys, "fisher"),
        model="sha256:m",
        task="sha256:t",
        samples=5,
        loss=1.0,
        shared_seconds={},
    )
    told = {"concentration": {}, "spearman": agreement(scores)}
    task = {"source": "s", "examples": [], "type": "head", "item_vectors": ""}
    page = report(tiny_config, scores, told, task, "model").html()
    assert all(row.count("<th") <= 8 for row in page.split("<thead")[1:])
    for key, one in scores.methods.items():
        assert page.count(key) >= 3  # heat map, panel, numbers
        assert f"{one.scores[11]:.3g} ± {one.errors[11]:.3g}" in page


# At rest


def written(folder, **changes) -> str:
    method = {"type": "fisher", "scores": [1.0, 2.0], "errors": [0.1, 0.1], "seconds": 1.0}
    raw = {
        "format_version": 1,
        "model": "sha256:m",
        "task": "sha256:t",
        "num_layers": 2,
        "samples": 3,
        "methods": {"fisher": method},
        "loss": 1.0,
    }
    (folder / "scores.json").write_text(json.dumps({**raw, **changes}))
    return str(folder)


def test_scores_survive_a_round_trip(tmp_path):
    scores = Scores.read(written(tmp_path), model="sha256:m", task="sha256:t")
    scores.write(str(tmp_path / "again"))
    assert Scores.read(str(tmp_path / "again" / "scores.json")) == scores
    assert scores.of_method("fisher").tensor.tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"format_version": 2},
            "has format_version 2; this program .* reads up to 1: install a newer",
        ),
        (
            {"model": "sha256:x"},
            "scores of another model: sha256:x, here it is sha256:m; run `layer",
        ),
        ({"task": "sha256:x"}, "scores of another task: sha256:x, here it is sha256:t"),
        ({"num_layers": 3}, "methods.fisher must have a score and an error for each of 3 layers"),
        ({"loss": "much"}, "scores.json is not a valid Scores"),
    ],
)
def test_scores_of_something_else_are_refused(changes, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        Scores.read(written(tmp_path, **changes), model="sha256:m", task="sha256:t")


def test_damaged_scores_and_unknown_methods_are_told(tmp_path):
    scores = Scores.read(written(tmp_path))
    with pytest.raises(ConfigError, match="the scores have no 'cka', they have fisher; name one"):
        scores.of_method("cka")
    (tmp_path / "scores.json").write_text("{")
    with pytest.raises(ConfigError, match=r"scores.json is damaged .*; score again"):
        Scores.read(str(tmp_path))
