"""Ratings through all of it: a fitted head, fewer layers, healed with the head, evaluated."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from layer_select.compact.origin import Origin
from layer_select.compact.view import Compacted
from layer_select.config import LayerSelectConfig
from layer_select.evaluate import worker as evaluation
from layer_select.evaluate.bootstrap import Bootstrap
from layer_select.evaluate.contestants import Contestant, check, open_student
from layer_select.evaluate.table import compare
from layer_select.heal import work
from layer_select.heal.run import _checked, key_of
from layer_select.heal.start import Folder, Random
from layer_select.opened import open_inputs
from layer_select.pretrain.texts import NONE
from layer_select.run import stages_of
from layer_select.sources.huggingface_write import write_folder
from layer_select.task import fit_head
from layer_select.task.rating import RATING_HEAD
from rayrun.config import validate
from rayrun.ray.worker import SingleWorker

KEPT = (0, 1, 11)


@pytest.fixture(scope="module", params=["regression", "classes"])
def rated(request, tiny_config, tiny_model, tmp_path_factory) -> LayerSelectConfig:
    """The small decoder with a head that was fitted on its last hidden states."""
    folder = tmp_path_factory.mktemp("rated")
    raw = tiny_config.to_dict()
    raw["data"]["source"] |= {"ratings": True, "users": 200, "rows": 7000}
    raw["task"] = {
        "type": "rating",
        "head": request.param,
        "prompt": {"item": "{title} {rating}\n"},
        "calibration": 8,
        "validation": 24,
        "test": 60,
        "fit_samples": 200,
        "max_history": 8,
        "max_tokens": 90,
    }
    raw["pretrain"] = None
    raw["inputs"] = {"model": str(tiny_model)}
    raw["heal"] = {"row_tokens": 128, "batch_rows": 6, "steps": 16, "lr": 4e-3, "bootstrap": 100}
    raw["evaluate"] = {"rivals": [], "timing": {"repeats": 0}}
    config = validate(LayerSelectConfig, raw, where="test")
    _, task = fit_head._opened(config)
    argument = {"config": config.to_dict(), "task": task.digest, "infnet_data": ""}
    fit_head.on_worker(
        SingleWorker(folder / "state"), {**argument, "head": str(folder / RATING_HEAD)}
    )
    inputs = config.inputs.model_copy(update={"rating_head": str(folder)})
    return config.model_copy(update={"inputs": inputs})


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_texts_ask_for_the_rating_of_the_event_that_follows(rated):
    opened = open_inputs(rated)
    rows = work.text_maker(rated, opened).rows(0)
    prompts, sequences = opened.task.prompts, opened.task.sequences
    assert sequences.ratings is not None
    known = {
        (item, stars)
        for items, all_stars in zip(sequences.histories, sequences.ratings, strict=True)
        for item, stars in zip(items[:-2].tolist(), all_stars[:-2].tolist(), strict=True)
    }
    places = (rows.answers != NONE).nonzero().tolist()
    assert len(places) >= len(sequences.histories) * 0.9
    for row, at in places[:40]:
        begin = int((rows.text[row] == rows.text[row, at]).nonzero()[0])
        ids = rows.ids[row, begin : at + 1].tolist()
        ends = [n for n in range(begin, at) if int(rows.items[row, n]) != NONE]
        asked = int(rows.items[row, ends[-1]])  # what follows the last title shown
        assert ids[-len(prompts.questions[asked]) :] == prompts.questions[asked]
        assert (asked, int(rows.answers[row, at])) in known


def test_a_head_is_healed_with_its_layers_and_judged_by_the_table(rated, tmp_path):
    opened = open_inputs(rated)
    cut = tmp_path / "cut"
    cut.mkdir()
    write_folder(Compacted(opened.checkpoint, KEPT), cut)
    Origin(model=opened.digests["model"], num_layers=12, kept=KEPT).write(cut)
    start = Folder(place=str(cut))
    key = key_of(rated, opened, _checked(rated, opened, start), start)
    argument = {
        "config": rated.to_dict(),
        "start": start.to_dict(),
        "key": key,
        "digests": opened.digests,
        "infnet_data": "",
        "model": str(tmp_path / "healed"),
        "cache": str(tmp_path / "cache"),
    }
    found = work.on_worker(SingleWorker(tmp_path / "state"), argument)
    assert json.loads(json.dumps(found)) == found
    before, after = (found["metrics"][who]["test"] for who in ("before", "after"))
    assert after.keys() == {"rmse", "mae", "accuracy", "loss"}
    assert found["objectives"] == ["task", "kl", "ranking", "hidden"]
    assert after["loss"] < before["loss"]
    assert found["retained"]["test"]["after"]["rmse"]["low"] is not None
    heads = [load_file(place / RATING_HEAD)["weight"] for place in (cut, tmp_path / "healed")]
    assert not torch.equal(*heads)
    # another head beside the same weights is another student
    other = (tmp_path / "healed" / RATING_HEAD).read_bytes()
    (cut / RATING_HEAD).write_bytes(other)
    assert key_of(rated, opened, _checked(rated, opened, start), start) != key

    inputs = rated.inputs.model_copy(update={"student": str(tmp_path / "healed")})
    judged = rated.model_copy(update={"inputs": inputs})
    check(judged, open_student(judged, opened))
    models = [Contestant(name="full"), Contestant(name="student", place=inputs.student)]
    told = evaluation.on_worker(
        SingleWorker(tmp_path / "evaluating"),
        {
            "config": judged.to_dict(),
            "models": [model.to_dict() for model in models],
            "domains": {"next_item": opened.task.sequences.digest},
            "sasrec": {},
            "task": opened.digests["task"],
            "infnet_data": "",
            "state": str(tmp_path / "found"),
        },
    )
    columns = {
        n: load_file(evaluation.file_of(told["state"], "next_item", n)) for n in ("full", "student")
    }
    users = np.array([sample.user for sample in opened.task.samples["test"]])
    table = compare(columns, "student", Bootstrap(users, 100, 0))
    for name in ("rmse", "mae", "accuracy"):
        assert table["models"]["student"][name]["mean"] == pytest.approx(after[name], rel=1e-5)
        full = found["metrics"]["full"]["test"][name]
        assert table["models"]["full"][name]["mean"] == pytest.approx(full, rel=1e-5)
    assert [stage.verb for stage in stages_of(judged)][-1] == "evaluate"


def test_a_student_of_random_weights_begins_with_a_head_that_says_three_stars(rated):
    opened = open_inputs(rated)
    begun = _checked(rated, opened, Random(kept=KEPT))
    student = work.student_of(begun, opened, seed=0, device=torch.device("cpu"))
    assert student.rating is not None
    stars = student.rating.stars(torch.randn(3, int(begun.checkpoint.config.hidden_size)))
    assert stars.tolist() == pytest.approx([3.0] * 3)
