"""`layer-select evaluate` on a trained decoder of twelve layers and students of three."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from layer_select.cli import main
from layer_select.compact.origin import Origin
from layer_select.compact.view import Compacted
from layer_select.config import LayerSelectConfig
from layer_select.evaluate.config import Evaluate, Narrow, Scratch
from layer_select.evaluate.contestants import Contestant, Student
from layer_select.evaluate.healed import beginning, budget
from layer_select.evaluate.run import evaluate
from layer_select.evaluate.timing import generation
from layer_select.evaluate.worker import file_of, on_worker
from layer_select.heal import run as heal_run
from layer_select.heal.config import Heal
from layer_select.opened import open_inputs
from layer_select.sources import load, open_model
from layer_select.sources.huggingface_write import write_folder
from layer_select.task.ranking import rank_metrics, ranks
from rayrun import manifest
from rayrun.config import ConfigError, apply_override, validate
from rayrun.ray.worker import SingleWorker
from tests.layer_select.conftest import TINY
from tests.one_process import without_ray_train

KEPT = (0, 1, 11)
OTHER = {"source": {**TINY["data"]["source"], "seed": 5, "language": "en", "items": 60}}


def with_settings(config, *settings) -> LayerSelectConfig:
    raw = config.to_dict()
    for setting in settings:
        raw = apply_override(raw, setting)
    return validate(type(config), raw, where="test")


def write_student(source: Path, folder: Path, *, stages: tuple = ({"verb": "compact"},)) -> Path:
    full = open_model(None, str(source))
    folder.mkdir(parents=True)
    write_folder(Compacted(full, KEPT), folder)
    Origin(model=full.digest, num_layers=12, kept=KEPT, stages=stages).write(folder)
    return folder


@pytest.fixture(scope="module")
def student(tiny_model, tmp_path_factory) -> Path:
    """Only compacted."""
    return write_student(tiny_model, tmp_path_factory.mktemp("student") / "model")


@pytest.fixture(scope="module")
def config(tiny_config, tiny_model) -> LayerSelectConfig:
    return with_settings(
        tiny_config,
        f"inputs.model={tiny_model}",
        "evaluate.rivals=[{type: popularity}]",
        "evaluate.timing.repeats=0",
        "evaluate.bootstrap=200",
        "task.test=20",
        "task.validation=4",
    )


def evaluated(config, state: Path, models: list[Contestant]) -> dict[str, dict[str, np.ndarray]]:
    """Ranks by domain and model, of one process without Ray."""
    opened = open_inputs(config)
    domains = {"next_item": opened.task.sequences.digest}
    if config.evaluate.data is not None:
        other = with_settings(config, f"data={json.dumps(config.evaluate.data.to_dict())}")
        domains["transfer"] = open_inputs(other).task.sequences.digest
    argument = {
        "config": config.to_dict(),
        "models": [model.to_dict() for model in models],
        "domains": domains,
        "sasrec": {},
        "task": opened.digests["task"],
        "infnet_data": "",
        "state": str(state / "state"),
    }
    threads = torch.get_num_threads()
    told = on_worker(SingleWorker(state / "worker"), argument)
    torch.set_num_threads(threads)
    return {
        domain: {n: load_file(file_of(told["state"], domain, n))["rank"].numpy() for n in names}
        for domain, names in told["models"].items()
    }


def rank_by_hand(config, kept, *, exclude: bool = False) -> np.ndarray:
    """One sample at a time, without padding, by Hugging Face's own forward."""
    opened = open_inputs(config)
    decoder = load(opened.checkpoint)
    vectors = opened.task.objective(decoder).vectors
    decoder.model.model.layers = torch.nn.ModuleList(decoder.blocks[i] for i in kept)
    decoder.model.config.num_hidden_layers = len(kept)
    found = []
    for sample in opened.task.samples["test"]:
        ids = torch.tensor([opened.task.prompts.of(sample.history)])
        with torch.no_grad():
            hidden = decoder.model.model(input_ids=ids, use_cache=False).last_hidden_state
        scores = hidden[0, -1] @ vectors.T
        own = float(scores[sample.item])
        if exclude:
            history = opened.task.sequences.histories[sample.user][: sample.position]
            scores[torch.from_numpy(history)] = -torch.inf
            scores[sample.item] = own
        found.append(int((scores >= own).sum()))
    return np.array(found, float)


@pytest.mark.ray
def test_two_workers_make_the_table_that_one_process_makes(
    config, tiny_model, tmp_path_factory, capsys, monkeypatch
):
    """But for what is healed before: by two workers in tests/layer_select/heal/test_heal_run.py."""
    without_ray_train(monkeypatch, heal_run)
    folder = tmp_path_factory.mktemp("evaluation")
    place = write_student(
        tiny_model, folder / "student", stages=({"verb": "compact"}, {"verb": "heal"})
    )
    rivals = [
        {"type": "popularity"},
        {"type": "sasrec", "epochs": 2, "width": 16, "max_length": 8},
        {"type": "first_k"},
        {"type": "random", "draws": 2, "heal": False},
    ]
    made = with_settings(
        config,
        f"evaluate.rivals={json.dumps(rivals)}",
        "evaluate.timing={batch: 4, length: 24, repeats: 3, warmup: 1, decode_tokens: 2}",
        f"inputs.student={place}",
        "heal={steps: 3, row_tokens: 96, batch_rows: 4}",
        "compute.workers=2",
        f"cache={folder / 'kept'}",
    )
    out = folder / "out"
    result = evaluate(made, str(out))
    manifest.verify(str(out))
    assert result.metrics.keys() == {"next_item"}
    assert set(result.baselines) == {
        "full", "popularity", "sasrec", "first_k", "random", "random_0", "random_1",
    }  # fmt: skip
    found = load_file(out / "ranks.safetensors")
    one = evaluated(
        config,
        folder,
        [Contestant(name="full"), Contestant(name="student", place=str(place))],
    )["next_item"]
    for name, expected in one.items():
        assert np.array_equal(found[f"next_item/{name}/rank"].numpy(), expected), name
    told = result.details["domains"]["next_item"]
    assert {m["healed"] for n, m in result.details["models"].items() if "random" in n} == {False}
    kept, full = (np.mean(one[n] ** -1.0) for n in ("student", "full"))
    assert told["retained"]["mrr"]["mean"] == pytest.approx(kept / full)
    assert told["retained"]["mrr"]["low"] < kept / full < told["retained"]["mrr"]["high"]
    difference = told["differences"]["random"]["mrr"]
    draws = [float((1 / found[f"next_item/random_{n}/rank"]).mean()) for n in (0, 1)]
    assert difference["mean"] == pytest.approx(kept - np.mean(draws))
    timing = result.details["timing"]
    assert timing["models"].keys() == {"full", "student"} == timing["ratios"].keys() | {"full"}
    assert timing["models"]["student"]["peak_bytes"] is not None
    assert timing["decode"]["tokens"] == 2
    assert timing["decode"]["models"].keys() == {"full", "student"}
    assert timing["decode"]["ratios"]["student"]["low"] > 0
    verdicts = {line["name"]: line["met"] for line in result.details["targets"]}
    assert verdicts["parameters of the layers"] == "met"
    assert verdicts["prefill, times faster"] == "not measured"
    page, table = (out / "report.html").read_text(), (out / "table.md").read_text()
    for text in ("SASRec", "first k (healed)", "random", "met", "tokens/s"):
        assert text in table
    assert "first k <small>healed</small>" in page
    assert evaluate(made, str(out)) == result  # it stands
    names = sorted(p.name.partition("-")[0] for p in (folder / "kept").iterdir())
    assert names == ["healed", "sasrec"]
    assert sorted(p.name for p in folder.iterdir()) == ["kept", "out", "state", "student", "worker"]


def test_ranks_are_those_of_the_models_as_others_run_them(config, student, tmp_path):
    layers = (2, 5, 9)
    models = [
        Contestant(name="full"),
        Contestant(name="student", place=str(student)),
        Contestant(name="random_0", kept=layers),
    ]
    found = evaluated(config, tmp_path, models)["next_item"]
    for name, kept in (("full", range(12)), ("student", KEPT), ("random_0", layers)):
        expected = rank_by_hand(config, kept)
        assert np.mean(found[name] == expected) >= 0.95, name  # but for float ties of neighbours
        assert np.max(np.abs(found[name] - expected)) <= 1
    task = open_inputs(config).task
    counts = np.bincount(
        np.concatenate([items[:-2] for items in task.sequences.histories]), minlength=120
    )
    popular = [int((counts >= counts[s.item]).sum()) for s in task.samples["test"]]
    assert found["popularity"].tolist() == popular


def test_seen_items_are_left_out_and_another_domain_is_ranked_by_its_titles(config, tmp_path):
    made = with_settings(config, "evaluate.seen=exclude", f"evaluate.data={json.dumps(OTHER)}")
    found = evaluated(made, tmp_path, [Contestant(name="full")])
    expected = rank_by_hand(made, range(12), exclude=True)
    assert np.mean(found["next_item"]["full"] == expected) >= 0.95
    other = with_settings(made, f"data={json.dumps(OTHER)}")
    expected = rank_by_hand(other, range(12), exclude=True)
    assert np.mean(found["transfer"]["full"] == expected) >= 0.95
    assert found["transfer"]["popularity"].max() <= 60


def test_an_evaluation_that_was_cut_off_goes_on_with_what_is_finished(config, student, tmp_path):
    models = [Contestant(name="full"), Contestant(name="student", place=str(student))]
    first = evaluated(config, tmp_path, models[:1])["next_item"]["full"]
    kept = Path(file_of(str(tmp_path / "state"), "next_item", "full"))
    before = kept.stat().st_mtime_ns
    both = evaluated(config, tmp_path, models)["next_item"]
    assert kept.stat().st_mtime_ns == before
    assert np.array_equal(both["full"], first)
    metrics = rank_metrics(torch.from_numpy(both["student"]).long())
    assert metrics["mrr"].shape == (20,)
    assert ranks(torch.zeros(1, 3), torch.tensor([1])).tolist() == [3]


def test_the_dry_run_tells_the_rivals_and_their_layers(config, student, tmp_path, capsys):
    path = tmp_path / "config.yaml"
    made = with_settings(
        config,
        "evaluate.rivals=[{type: first_k, heal: false}, {type: every_n, heal: false}]",
        f"inputs.student={student}",
    )
    path.write_text(made.to_yaml())
    assert main(["evaluate", str(path), "--dry-run", "--out", str(tmp_path / "out")]) == 0
    told = capsys.readouterr().out
    assert "first_k: layers [0, 1, 2], as they are" in told
    assert "every_n: layers [0, 4, 8], as they are" in told
    assert "next_item: 20 test samples of the simulator" in told


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["task.test=0"], "evaluate needs test samples, but task.test is 0"),
        (["evaluate.rivals=[{type: first_k}]"], "first_k of evaluate.rivals have as many layers"),
        (
            ["evaluate.rivals=[{type: scratch}]", "inputs.student={student}"],
            "would be healed, but inputs.student .* was only compacted: set heal: false",
        ),
        (
            [
                "evaluate.rivals=[{type: block_influence, heal: false}]",
                "inputs.student={student}",
            ],
            "block_influence of evaluate.rivals goes by scores: set inputs.scores",
        ),
        (
            ["task={type: likelihood, test: 8}"],
            "popularity of evaluate.rivals rank the catalogue, which task.type likelihood",
        ),
        (
            ["task={type: likelihood, test: 8}", "evaluate.rivals=[]", "evaluate.seen=exclude"],
            "evaluate.seen: exclude leaves items out of a ranking",
        ),
    ],
)
def test_a_table_that_cannot_be_made_is_refused_before_any_work(
    config, student, tmp_path, settings, message
):
    made = with_settings(config, *(s.replace("{student}", str(student)) for s in settings))
    with pytest.raises(ConfigError, match=message):
        evaluate(made, str(tmp_path / "out"))
    assert not list(tmp_path.iterdir())


def test_students_of_other_models_and_damaged_ones_are_refused(config, tiny_model, tmp_path):
    place = write_student(tiny_model, tmp_path / "student")
    made = with_settings(config, f"inputs.student={place}")
    origin = Origin.read(str(place))
    assert origin is not None
    origin.model_copy(update={"model": "sha256:other"}).write(place)
    with pytest.raises(ConfigError, match="was made of another model: sha256:other, here it is"):
        evaluate(made, str(tmp_path / "out"))
    origin.write(place)
    text = json.loads((place / "tokenizer.json").read_text())
    text["model"]["vocab"] = dict(
        zip(
            text["model"]["vocab"],
            sorted(text["model"]["vocab"].values(), reverse=True),
            strict=True,
        )
    )
    good = (place / "tokenizer.json").read_text()
    (place / "tokenizer.json").write_text(json.dumps(text))
    with pytest.raises(ConfigError, match="has another tokenizer than the full model"):
        evaluate(made, str(tmp_path / "out"))
    (place / "tokenizer.json").write_text(good)
    manifest.write(place, kind="layer_select.student", format_version=1, config={})
    weights = place / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-5] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ConfigError, match="is damaged: its SHA-256 is not the manifest's"):
        evaluate(made, str(tmp_path / "out"))


def test_each_rival_is_named_once():
    with pytest.raises(ValueError, match="each type once, found twice: first_k"):
        validate(Evaluate, {"rivals": [{"type": "first_k"}, {"type": "first_k"}]}, where="test")


def test_rivals_that_begin_at_random_are_the_students_equals(student):
    origin = Origin.read(student)
    one = Student(open_model(None, str(student)), str(student), origin)
    section = Heal(stages=(6, 3), epochs=2, steps=5)
    assert budget(section).to_dict() == Heal(epochs=4, steps=10).to_dict()
    start, learnt = beginning(one, Scratch(), section)
    assert (start.to_dict(), learnt) == ({"type": "random", "kept": [*KEPT]}, section)
    rival = Narrow(width=16, feed_forward=32, heads=2)
    start, learnt = beginning(one, rival, section)
    assert start.to_dict()["layers"] == len(KEPT)
    assert (start.to_dict()["width"], start.to_dict()["key_value_heads"]) == (16, 2)
    assert [o.type for o in learnt.objectives] == ["task", "kl", "ranking"]


def test_timed_generation_is_greedy_search_and_begins_anew_each_time(tiny_model):
    decoder = load(open_model(None, str(tiny_model)))
    ids = torch.randint(5, 60, (3, 9), generator=torch.Generator().manual_seed(0))
    model: Any = decoder.model
    expected = model.generate(ids, max_new_tokens=5, do_sample=False, eos_token_id=[])
    generated = generation(decoder, ids, 4)
    assert torch.equal(generated(), expected[:, 10:])  # the first is the prefill's
    assert torch.equal(generated(), expected[:, 10:])
