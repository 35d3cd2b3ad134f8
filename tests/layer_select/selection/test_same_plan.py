"""One model as a Hugging Face folder, a GGUF file and in an Ollama store: one plan."""

import shutil

import torch

from layer_select.importance.run import on_worker as score_on_worker
from layer_select.opened import open_inputs
from layer_select.plan import Plan
from layer_select.scores import Scores
from layer_select.selection import run as select_run
from layer_select.sources.gguf_write import write_gguf
from layer_select.task.head import ITEM_HEAD
from rayrun.config import apply_override, validate
from rayrun.ray.worker import SingleWorker
from tests.layer_select.sources.forms import ollama, opened

METHODS = "score.methods=[{type: fisher}, {type: block_influence}, {type: angular}]"


def of(config, settings):
    raw = config.to_dict()
    for setting in settings:
        raw = apply_override(raw, setting)
    return validate(type(config), raw, where="test")


def scores_and_plan(config, state) -> tuple[Scores, Plan]:
    found = open_inputs(config)
    shared = {"config": config.to_dict(), "key": "k", "infnet_data": "", "state": str(state)}
    threads = torch.get_num_threads()
    measured = score_on_worker(
        SingleWorker(state / "score"),
        {**shared, "task": found.digests["task"], "samples": str(state / "samples.safetensors")},
    )
    raw = {**measured["scores"], **found.digests}
    scores = validate(Scores, raw, where="the worker")
    chosen = select_run.on_worker(
        SingleWorker(state / "select"),
        {**shared, "digests": found.digests, "scores": scores.to_dict()},
    )
    torch.set_num_threads(threads)
    return scores, validate(Plan, chosen["plan"], where="the worker")


def test_every_form_of_a_model_gives_the_same_scores_and_the_same_plan(
    tiny_config, tiny_model, tmp_path, monkeypatch
):
    file = tmp_path / "gguf" / "model.gguf"
    file.parent.mkdir()
    folder = opened(tiny_model)
    write_gguf(folder, file, type="F32", tokenizer=folder.tokenizer())
    monkeypatch.setenv("OLLAMA_MODELS", str(ollama(file, tmp_path / "store")))
    places = {"hf": str(tiny_model), "gguf": str(file), "ollama": "ollama:small"}
    small = [
        "task={type: likelihood, max_history: 4, max_tokens: 48, calibration: 16, validation: 8, test: 16, micro_batch: 8}"
    ]
    found = {
        name: scores_and_plan(
            of(tiny_config, [*small, METHODS, "select.budget.share=0.5", f"inputs.model={place}"]),
            tmp_path / name,
        )
        for name, place in places.items()
    }
    scores, plan = found["hf"]
    assert 2 <= len(plan.kept) <= 6
    for name in ("gguf", "ollama"):
        other_scores, other_plan = found[name]
        assert other_plan == plan, name
        for key, method in scores.methods.items():
            assert other_scores.methods[key].scores == method.scores, (name, key)

    # by its head, too, where the trained projection lies beside the file
    shutil.copy(tiny_model / ITEM_HEAD, file.parent / ITEM_HEAD)
    tasks = [
        open_inputs(of(tiny_config, [f"inputs.model={place}"])).digests
        for place in (places["hf"], places["gguf"])
    ]
    assert tasks[0] == tasks[1]
