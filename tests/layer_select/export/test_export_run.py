"""`layer-select export`: what is in the bundle is what recommends, in every form."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.models.gemma2 import Gemma2Config

from layer_select import cli
from layer_select.config import LayerSelectConfig
from layer_select.decoder import Decoder
from layer_select.export import bundle as layout
from layer_select.export.answer import answered
from layer_select.export.bundle import Bundle
from layer_select.export.ranking import Ranking, hidden_of
from layer_select.export.run import _check, export, plan
from layer_select.opened import open_inputs
from layer_select.serve.config import Faiss
from layer_select.serve.index import FaissIndex
from layer_select.sources import Gguf, HuggingFace, load, stream
from layer_select.task.head import ITEM_HEAD
from rayrun import manifest
from rayrun.config import ConfigError, validate
from rayrun.metrics import Result
from tests.layer_select.families import LLAMA3_ROPE
from tests.layer_select.sources import forms


def with_changes(config: LayerSelectConfig, **sections) -> LayerSelectConfig:
    raw = config.to_dict()
    for name, values in sections.items():
        raw[name] = {**raw[name], **values} if raw[name] else values
    return validate(LayerSelectConfig, raw, where="test")


@pytest.fixture(scope="module")
def student(tiny_model, tmp_path_factory) -> Path:
    """The trained decoder with rotary frequencies of Llama 3.1, which GGUF keeps as a tensor."""
    place = tmp_path_factory.mktemp("student") / "student"
    shutil.copytree(tiny_model, place)
    config = json.loads((place / "config.json").read_text())
    config["rope_parameters"] = LLAMA3_ROPE
    (place / "config.json").write_text(json.dumps(config))
    return place


@pytest.fixture(scope="module")
def exported(tiny_config, tiny_model, student, tmp_path_factory):
    """A bundle of the student; the full model stands beside it and must not be taken."""
    out = tmp_path_factory.mktemp("export") / "bundle"
    inputs = {"model": str(tiny_model), "student": str(student)}
    config = with_changes(tiny_config, inputs=inputs)
    return config, str(out), export(config, str(out))


def test_every_form_ranks_every_test_sample_as_the_source_does(exported):
    _, out, result = exported
    manifest.verify(out)
    assert result.rows == 64
    assert result.split == "test"
    for form in ("model", "item vectors", "model.gguf"):
        assert result.details["compared"][form] == {
            "lossless": True,
            "samples": 64,
            "identical": 1.0,
            "overlap@10": 1.0,
            "largest_difference": 0.0,
        }
    assert result.metrics == result.baselines["source"] == result.baselines["gguf"]
    assert Result.read(out).metrics == result.metrics


def test_other_tools_read_the_folder_and_the_gguf_file_to_the_same_logits(exported, student):
    _, out, result = exported
    source = HuggingFace(path=str(student)).open()
    gguf = Gguf(path=f"{out}/model.gguf").open()
    assert {
        result.details["model"],
        source.digest,
        gguf.digest,
        HuggingFace(path=f"{out}/model").open().digest,
    } == {source.digest}
    assert gguf.file(ITEM_HEAD) == (student / ITEM_HEAD).read_bytes()
    ids = torch.arange(5, 45)[None]
    ours = load(source)
    expected = ours.logits(ours.finish(ours.through(ours.start(ids, torch.ones_like(ids)))))
    folder = AutoModelForCausalLM.from_pretrained(f"{out}/model", attn_implementation="eager")
    again = load(gguf)
    for found in (
        folder.eval()(input_ids=ids).logits,
        again.logits(again.finish(again.through(again.start(ids, torch.ones_like(ids))))),
    ):
        assert torch.equal(found, expected)
    text = "视频 quiet, part 2\n"
    assert gguf.tokenizer()(text)["input_ids"] == source.tokenizer()(text)["input_ids"]


def test_the_bundle_answers_its_sample_by_what_is_in_it(exported, tiny_config):
    _, out, _ = exported
    bundle = Bundle.read(out)
    for checkpoint in (HuggingFace(path=bundle.model).open(), Gguf(path=str(bundle.gguf)).open()):
        bundle.check_sample(answered(bundle, load(checkpoint)))
    sequences = open_inputs(exported[0]).task.sequences
    assert list(bundle.items) == list(sequences.items)
    assert list(bundle.titles) == list(sequences.titles)
    assert bundle.prompt.max_history == tiny_config.task.max_history
    text = (Path(out) / layout.MODELFILE).read_text()
    assert text.startswith("FROM ./model.gguf\n")
    assert 'PARAMETER stop "<|endoftext|>"' in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda b: b.sample["request"].update(history=["nobody"]),
            "names the item 'nobody', which",
        ),
        (
            lambda b: setattr(b, "vectors", b.vectors[:, :5]),
            "item vectors of width 5 belong to ano",
        ),
        (lambda b: setattr(b, "vectors", b.vectors * 2), "does not reproduce its own sample"),
    ],
)
def test_a_bundle_with_parts_of_another_is_told(exported, change, message):
    bundle = Bundle.read(exported[1])
    change(bundle)
    with pytest.raises(ConfigError, match=message):
        bundle.check_sample(answered(bundle, load(HuggingFace(path=bundle.model).open())))


def test_a_model_of_an_ollama_store_leaves_with_its_head_and_licences(
    exported, tmp_path, monkeypatch
):
    config, out, before = exported
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path))
    forms.ollama(Path(out) / "model.gguf", tmp_path)
    inputs = {"model": "ollama:small", "student": ""}
    result = export(with_changes(config, inputs=inputs), str(tmp_path / "b"))
    assert result.metrics == before.metrics  # by way of P in the metadata
    assert result.details["model"] == before.details["model"]
    inputs["student"] = f"{out}/model"
    export(with_changes(config, inputs=inputs, task={"test": 8}), str(tmp_path / "c"))
    for place in ("b", "c"):
        text = (tmp_path / place / layout.MODELFILE).read_text()
        assert 'PARAMETER stop "<|endoftext|>"' in text
        assert 'LICENSE """first licence\nsecond licence"""' in text


def test_a_streamed_decoder_gives_the_same_hidden_states(exported, student):
    batches = open_inputs(exported[0]).task.batches("test")
    checkpoint = HuggingFace(path=str(student)).open()
    whole, _ = hidden_of(load(checkpoint), batches)
    streamed, _ = hidden_of(stream(checkpoint), batches, memory_bytes=1 << 20)
    assert torch.equal(whole, streamed)


def test_what_rounds_is_told_and_not_refused(tiny_config, tiny_model, tmp_path):
    small = {"gguf": "Q8_0", "vectors": "int8", "dtype": "bfloat16", "index_above": 100}
    inputs = {"model": str(tiny_model)}
    config = with_changes(tiny_config, export=small, inputs=inputs, task={"test": 32})
    compared = export(config, str(tmp_path / "b")).details["compared"]
    assert ", indexed" in plan(config, "nowhere")
    assert [compared[form]["lossless"] for form in compared] == [False, False, False]
    for found in compared.values():
        assert 0.5 < found["overlap@10"] <= 1
        assert 0 < found["largest_difference"] < 0.2
    bundle = Bundle.read(str(tmp_path / "b"))
    vectors = bundle.vectors.numpy()
    assert bundle.index is not None
    index = FaissIndex(vectors, Faiss(probes=999), file=bundle.index)
    assert index.search(vectors[:1], 5)[0][0] == (vectors @ vectors[0]).argmax()
    model = AutoModelForCausalLM.from_pretrained(bundle.model, dtype="auto")
    assert model.dtype == torch.bfloat16
    decoder = Decoder(
        AutoModelForCausalLM.from_pretrained(
            bundle.model, dtype=torch.float32, attn_implementation="eager"
        )
    )
    bundle.check_sample(answered(bundle, decoder))


def test_a_family_that_gguf_cannot_say_leaves_as_a_folder(tiny_config, tiny_model, tmp_path):
    gemma = tmp_path / "gemma"
    shutil.copytree(tiny_model, gemma)
    torch.manual_seed(0)
    shape = Gemma2Config(
        vocab_size=480, hidden_size=32, intermediate_size=48, num_hidden_layers=4, head_dim=8,
        num_attention_heads=4, num_key_value_heads=2, sliding_window=16, query_pre_attn_scalar=5,
        bos_token_id=0, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(shape).save_pretrained(gemma)
    config = with_changes(tiny_config, inputs={"student": str(gemma)}, task={"test": 16})
    message = "GGUF cannot say query_pre_attn_scalar 5 .*--set export.gguf=none leaves the GGUF"
    with pytest.raises(ConfigError, match=message):
        export(config, str(tmp_path / "b"))
    with pytest.raises(ConfigError, match=message):
        plan(config, str(tmp_path / "b"))
    assert not (tmp_path / "b").exists()
    result = export(with_changes(config, export={"gguf": "none"}), str(tmp_path / "b"))
    assert result.details["compared"]["model"]["identical"] == 1
    assert not {"model.gguf", "Modelfile"} & {p.name for p in (tmp_path / "b").iterdir()}
    assert Bundle.read(str(tmp_path / "b")).gguf is None


def test_bad_input_ends_in_code_2_and_leaves_nothing(tiny_config, student, tmp_path, capsys):
    broken = tmp_path / "broken"
    shutil.copytree(student, broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    (tmp_path / "c.yaml").write_text(tiny_config.to_yaml())
    out = tmp_path / "runs" / "b"
    for sets, message in (
        ([f"inputs.student={broken}"], "model.safetensors"),
        ([f"inputs.student={tmp_path / 'none'}"], "no such folder"),
        ([f"inputs.student={student}", "task={type: yes_no}"], "task.type must be head"),
    ):
        arguments = [part for one in sets for part in ("--set", one)]
        assert cli.main(["export", str(tmp_path / "c.yaml"), *arguments, "--out", str(out)]) == 2
        assert message in capsys.readouterr().err
        assert not out.exists()
        assert not list(out.parent.glob("*")) or not out.parent.exists()


def test_the_plan_says_which_forms_are_checked(exported, tiny_config):
    config, out, _ = exported
    text = plan(config, out)
    assert "model.gguf: F32" in text
    assert "item vectors: 120 in float32" in text
    assert "checked on: 64 test samples, in every form" in text
    assert "none is named; export makes the one of pretrain: first" in plan(tiny_config, out)


def test_a_form_that_ranks_otherwise_is_never_published():
    items = torch.tensor([[1, 2], [3, 4]])
    one = Ranking(items, torch.ones(2, 2), torch.tensor([1, 2]))
    other = Ranking(items.flip(1), torch.ones(2, 2) * 1.5, torch.tensor([1, 2]))
    found = other.compared(one)
    assert found == {"samples": 2, "identical": 0, "overlap@10": 1, "largest_difference": 0.5}
    message = "model keeps every number and must rank all 2 samples as its source does, .* 0.0000"
    with pytest.raises(RuntimeError, match=message):
        _check({"model": {"lossless": True, **found}})
    _check({"model": {"lossless": False, **found}})
