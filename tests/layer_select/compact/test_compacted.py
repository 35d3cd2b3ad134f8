"""A model without some of its layers: as a view, as a folder, and in the hands of transformers."""

import json
import weakref
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from layer_select.compact.view import Compacted, cut_config
from layer_select.families import constraints
from layer_select.pretrain.tokenizer import train_tokenizer
from layer_select.sources import load, open_model
from layer_select.sources.gguf_write import write_gguf
from layer_select.sources.huggingface_write import write_folder
from layer_select.sources.view import View
from layer_select.task.head import written_projection
from rayrun.config import ConfigError
from tests.layer_select.families import CONFIGS, small_batch, small_model

KEPT = [0, 1, 4, 5]
"""Obeys the rule of every family but gemma3."""
TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"


def saved(model, folder: Path) -> Path:
    model.save_pretrained(folder)
    tokenizer = train_tokenizer(["one two three", "four five"], 80)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(str(folder))
    projection = written_projection(torch.eye(model.config.hidden_size))
    (folder / "item_head.safetensors").write_bytes(projection)
    (folder / "LICENSE").write_text("Terms.")
    return folder


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    root = tmp_path_factory.mktemp("families")
    return {family: saved(small_model(family), root / family) for family in CONFIGS}


def written(source: Path, kept, out: Path, **options) -> Path:
    out.mkdir()
    write_folder(Compacted(open_model(None, str(source)), kept), out, **options)
    return out


@torch.no_grad()
def logits(model) -> torch.Tensor:
    ids, mask = small_batch()
    return model(input_ids=ids, attention_mask=mask).logits[mask == 1]


@torch.no_grad()
def through(source: Path, kept) -> torch.Tensor:
    decoder = load(open_model(None, str(source)))
    ids, mask = small_batch()
    start = decoder.start(ids, mask)
    return decoder.logits(decoder.finish(decoder.through(start, kept)))[mask == 1]


@pytest.mark.parametrize("family", CONFIGS)
def test_the_full_plan_changes_no_logit_and_a_smaller_one_is_the_decoder_without_them(
    sources, family, tmp_path
):
    whole = written(sources[family], range(6), tmp_path / "whole")
    before, after = (
        AutoModelForCausalLM.from_pretrained(place, attn_implementation="eager")
        for place in (sources[family], whole)
    )
    assert torch.equal(logits(before), logits(after))
    assert before.config.to_diff_dict() == after.config.to_diff_dict()
    assert open_model(None, str(whole)).digest == open_model(None, str(sources[family])).digest
    small = written(sources[family], KEPT, tmp_path / "small")
    model = AutoModelForCausalLM.from_pretrained(small, attn_implementation="eager")
    assert torch.equal(logits(model), through(sources[family], KEPT))
    view = Compacted(open_model(None, str(sources[family])), KEPT)
    assert view.digest == open_model(None, str(small)).digest
    assert view.digest != view.source.digest


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt_oss", "gemma3"])
def test_generation_with_a_cache_is_the_forward_without_one(sources, family, tmp_path):
    small = written(sources[family], KEPT, tmp_path / "small")
    model = AutoModelForCausalLM.from_pretrained(small, attn_implementation="eager")
    ids = small_batch(rows=2)[0]  # longer than the window of four
    told = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=8,
        min_new_tokens=8,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
    )
    with torch.no_grad():
        expected = model(told.sequences[:, :-1], use_cache=False).logits[:, ids.shape[1] - 1 :]
    torch.testing.assert_close(torch.stack(told.logits, 1), expected, rtol=0, atol=1e-5)
    assert told.sequences.shape[1] == ids.shape[1] + 8


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_sliding_windows_of_qwen_follow_their_layers(family, tmp_path):
    config = type(CONFIGS[family]())(
        **{
            **{k: v for k, v in CONFIGS[family]().to_dict().items() if k != "layer_types"},
            "use_sliding_window": True,
            "sliding_window": 4,
            "max_window_layers": 3,
        }
    )
    assert config.layer_types == ["full_attention"] * 3 + ["sliding_attention"] * 3
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    source, kept = saved(model, tmp_path / "source"), [0, 2, 3, 5]
    cut = cut_config(config, kept)
    assert cut.max_window_layers == 2
    assert cut.layer_types == ["full_attention"] * 2 + ["sliding_attention"] * 2
    small = written(source, kept, tmp_path / "small")
    loaded = AutoModelForCausalLM.from_pretrained(small, attn_implementation="eager")
    assert torch.equal(logits(loaded), through(source, kept))


class Watched(View):
    """Counts the tensors that were given out and are still held."""

    def __init__(self, source) -> None:
        super().__init__(source, source.config)
        self.held: list[weakref.ref] = []
        self.most = 0

    def tensor(self, name, dtype=None):
        self.most = max(self.most, sum(ref() is not None for ref in self.held))
        found = super().tensor(name, dtype).clone()
        self.held.append(weakref.ref(found))
        return found


def test_shards_are_no_larger_than_told_and_one_tensor_is_held_at_a_time(sources, tmp_path):
    watched = Watched(open_model(None, str(sources["qwen3_moe"])))
    out = tmp_path / "out"
    out.mkdir()
    write_folder(watched, out, shard_bytes=10_000)
    assert watched.most <= 1
    index = json.loads((out / "model.safetensors.index.json").read_text())
    shards = sorted(set(index["weight_map"].values()))
    assert shards == [
        f"model-{n:05d}-of-{len(shards):05d}.safetensors" for n in range(1, len(shards) + 1)
    ]
    sizes = [
        {name: tensor.nbytes for name, tensor in load_file(out / shard).items()} for shard in shards
    ]
    assert all(sum(one.values()) <= 10_000 or len(one) == 1 for one in sizes)
    assert any(len(one) > 1 for one in sizes)
    assert any(sum(one.values()) > 10_000 for one in sizes)  # the experts of a layer
    assert index["metadata"]["total_size"] == sum(sum(one.values()) for one in sizes)
    assert open_model(None, str(out)).digest == watched.source.digest


def test_what_lies_beside_the_weights_goes_with_them_and_types_convert(sources, tmp_path):
    source = sources["llama"]
    small = written(source, KEPT, tmp_path / "small", dtype=torch.bfloat16)
    for name in (
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "item_head.safetensors",
        "LICENSE",
    ):
        assert (small / name).read_bytes() == (source / name).read_bytes(), name
    assert AutoTokenizer.from_pretrained(small).chat_template == TEMPLATE
    model = AutoModelForCausalLM.from_pretrained(small)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    full = open_model(None, str(source))
    expected = full.tensor("model.layers.4.mlp.up_proj.weight", torch.bfloat16)
    assert torch.equal(model.model.layers[2].mlp.up_proj.weight, expected)


def test_a_quantised_file_is_written_dequantised_with_its_own_tokenizer(tmp_path):
    config = CONFIGS["llama"]()
    config.vocab_size = 300
    model = AutoModelForCausalLM.from_config(config)
    source = open_model(None, str(saved(model, tmp_path / "source")))
    file = tmp_path / "model.gguf"
    write_gguf(source, file, type="Q8_0", tokenizer=source.tokenizer())
    (tmp_path / "tokenizer.json").write_text("of something else")
    quantised = open_model(None, str(file))
    assert quantised.quantised == "Q8_0"
    for dtype in (None, torch.bfloat16):
        out = tmp_path / str(dtype)
        small = written(file, KEPT, out, dtype=dtype)
        back = open_model(None, str(small))
        assert back.quantised is None
        name = "layers.{}.self_attn.q_proj.weight"
        expected = quantised.tensor(f"model.{name.format(5)}", dtype)
        assert torch.equal(back.tensor(f"model.{name.format(3)}"), expected)
        text = "one two five"
        assert back.tokenizer().encode(text) == source.tokenizer().encode(text)


@pytest.mark.parametrize("kept", [[], [1, 0], [0, 0], [0, 6], [-1, 2]])
def test_layers_that_are_not_there_are_refused(sources, kept):
    with pytest.raises(ConfigError, match=r"kept layers must be some of 0\.\.5, ascending"):
        Compacted(open_model(None, str(sources["llama"])), kept)


def test_a_mixture_whose_layers_differ_by_lists_of_indices_is_refused(sources):
    checkpoint = open_model(None, str(sources["qwen3_moe"]))
    checkpoint.config.mlp_only_layers = [2]
    with pytest.raises(ConfigError, match=r"mlp_only_layers \[2\]"):
        Compacted(checkpoint, [0, 1])
    checkpoint.config.mlp_only_layers = []
    assert constraints(checkpoint.config) is None
