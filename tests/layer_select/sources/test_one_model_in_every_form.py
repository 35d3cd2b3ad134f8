"""A model is the same model as a folder, as a GGUF file and in an Ollama store."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from layer_select.sources import Gguf, Ollama, load, open_model, stream
from layer_select.sources.deciding import deciding_entries
from rayrun.config import ConfigError
from tests.layer_select.families import CONFIGS
from tests.layer_select.sources.forms import (
    FAMILIES,
    folder,
    gguf,
    logits,
    model_of,
    ollama,
    opened,
)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_digest_and_buffers_are_those_of_the_model(family: str, tmp_path: Path) -> None:
    model = model_of(family)
    expected = logits(model)
    shards = opened(folder(model, tmp_path / "shards", shards=True))
    file = Gguf(path=str(gguf(model, tmp_path / "small.gguf"))).open()
    store = ollama(tmp_path / "small.gguf", tmp_path / "store")
    pulled = Ollama(name="small", store=str(store)).open()
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    for checkpoint in (shards, file, pulled):
        decoder = load(checkpoint)
        assert torch.equal(logits(decoder), expected)
        assert {n: b.tolist() for n, b in decoder.model.named_buffers()} == {
            n: b.tolist() for n, b in model.named_buffers()
        }
        found = decoder.model.state_dict()
        assert all(torch.equal(found[name], value) for name, value in model.state_dict().items())
        assert checkpoint.quantised is None
    assert shards.digest == file.digest == pulled.digest
    assert shards.shapes == file.shapes


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss", "gemma3", "qwen2"])
@torch.no_grad()
def test_streaming_holds_one_block_and_computes_the_same(family: str, tmp_path: Path) -> None:
    model = model_of(family)
    checkpoint = opened(folder(model, tmp_path, shards=True))
    streamed = stream(checkpoint)
    assert torch.equal(logits(streamed), logits(load(checkpoint)))

    def here() -> list[int]:
        return [
            index
            for index, block in enumerate(streamed.blocks)
            if not all(p.is_meta for p in block.parameters())
        ]

    assert here() == []
    with streamed.block(2) as block:
        read = list(block.parameters())
        with streamed.block(2) as again:
            assert all(a is b for a, b in zip(again.parameters(), read, strict=True))
        assert here() == [2], "still in use"
        assert not any(p.is_meta for p in block.parameters())
        assert not any(b.is_meta for b in block.buffers())
    assert here() == []
    outside = [n for n, p in streamed.model.named_parameters() if ".layers." not in n and p.is_meta]
    assert outside == []


def test_a_streamed_block_gives_the_gradients_of_a_loaded_one(tmp_path: Path) -> None:
    checkpoint = opened(folder(model_of("llama"), tmp_path))
    x = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    found = []
    for decoder in (load(checkpoint), stream(checkpoint)):
        with torch.no_grad():
            start = decoder.start(
                torch.ones(2, 5, dtype=torch.long), torch.ones(2, 5, dtype=torch.long)
            )
        given = x.clone().requires_grad_(True)
        with decoder.block(3) as block:
            out = block(given, **start.calls[3]).square().sum()
            found.append(torch.autograd.grad(out, [given, *block.parameters()]))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_a_decoder_keeps_its_attention_when_another_is_loaded(tmp_path: Path) -> None:
    checkpoint = opened(folder(model_of("llama", layers=1), tmp_path))
    first = load(checkpoint, attention="eager")
    second = load(checkpoint, dtype=torch.bfloat16, attention="sdpa")
    assert first.config._attn_implementation == "eager"
    assert second.config._attn_implementation == "sdpa"
    assert (first.config.dtype, second.config.dtype) == (torch.float32, torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_types_are_those_of_transformers(dtype: torch.dtype, tmp_path: Path) -> None:
    folder(model_of("gemma3"), tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype, attn_implementation="sdpa")
    ours = load(opened(tmp_path), dtype=dtype, attention="sdpa")
    assert torch.equal(logits(ours), logits(theirs.eval()))


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "qwen3_moe", "gemma2", "gemma3"])
def test_transformers_reads_the_same_tensors_of_our_gguf(family: str, tmp_path: Path) -> None:
    # gpt-oss and the scaling of Llama 3.1 it does not read.
    model = model_of(family, layers=2)
    file = gguf(model, tmp_path / "small.gguf")
    theirs = load_gguf_checkpoint(str(file), return_tensors=True, model_to_load=model)["tensors"]
    ours = model.state_dict()
    assert set(theirs) >= set(ours) - {"lm_head.weight"}
    assert all(torch.equal(tensor, ours[name]) for name, tensor in theirs.items())


@pytest.mark.parametrize(
    ("family", "change"),
    [
        ("llama", {"rms_norm_eps": 1e-5}),
        ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}),
        ("llama31", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}),
        ("llama", {"num_key_value_heads": 4}),
        ("llama", {"hidden_act": "gelu"}),
        ("mistral", {"sliding_window": 4}),
        ("qwen3_moe", {"num_experts_per_tok": 3}),
        ("gpt_oss", {"sliding_window": 5}),
        ("gpt_oss", {"layer_types": ["full_attention"] * 6}),
        ("gemma2", {"final_logit_softcapping": None}),
        ("gemma3", {"query_pre_attn_scalar": 9}),
    ],
)
def test_what_decides_the_outputs_decides_the_digest(family: str, change: dict[str, Any]) -> None:
    before, after = CONFIGS[family](), CONFIGS[family]()
    for key, value in change.items():
        setattr(after, key, value)
    assert deciding_entries(before) != deciding_entries(after)
    for key, value in {
        "max_position_embeddings": 4096,
        "bos_token_id": 5,
        "use_cache": False,
    }.items():
        setattr(before, key, value)
    assert deciding_entries(before) == deciding_entries(CONFIGS[family]())


def test_inputs_model_wins_and_says_its_form_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of("llama", layers=1)
    gguf(model, tmp_path / "small.gguf")
    ollama(tmp_path / "small.gguf", tmp_path / "store")
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "store"))
    other = Gguf(path="/nowhere.gguf")
    places = [str(tmp_path / "small.hf"), str(tmp_path / "small.gguf"), "ollama:small"]
    found = [open_model(other, place) for place in places]
    assert [checkpoint.where for checkpoint in found] == [*places[:2], "ollama:small:latest"]
    assert len({checkpoint.digest for checkpoint in found}) == 1
    with pytest.raises(ConfigError, match=r"/nowhere\.gguf: there is no such file"):
        open_model(other)
    with pytest.raises(ConfigError, match="a model is needed and none is given: set model:"):
        open_model(None)
