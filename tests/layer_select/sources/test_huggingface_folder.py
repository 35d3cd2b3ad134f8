"""Folders: spellings of tensors, MXFP4, S3, and everything that can be wrong with them."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.models.gemma3 import Gemma3Config

from layer_select.sources import HuggingFace, load
from rayrun import storage
from rayrun.config import ConfigError
from tests.layer_select.sources.forms import folder, folder_of, logits, model_of, opened

FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder(model_of("llama", layers=2), tmp_path_factory.mktemp("llama") / "hf")


@pytest.fixture
def copy(llama: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(llama, tmp_path / "hf"))


def change_config(path: Path, **entries: Any) -> None:
    place = path / "config.json"
    place.write_text(json.dumps({**json.loads(place.read_text()), **entries}))


def test_experts_one_by_one_and_fused_are_the_same_model(tmp_path: Path) -> None:
    model = model_of("qwen3_moe", layers=2)
    apart = opened(folder(model, tmp_path / "apart"))
    names = load_file(tmp_path / "apart" / "model.safetensors")
    assert "model.layers.1.mlp.experts.3.up_proj.weight" in names
    together = opened(folder_of(model.config, model.state_dict(), tmp_path / "together"))
    assert apart.digest == together.digest
    name = "model.layers.1.mlp.experts.gate_up_proj"
    assert torch.equal(apart.tensor(name), model.state_dict()[name])


def mxfp4(
    generator: torch.Generator, experts: int, rows: int, groups: int
) -> tuple[Tensor, Tensor]:
    blocks = torch.randint(0, 256, (experts, rows, groups, 16), generator=generator)
    scales = torch.randint(118, 126, (experts, rows, groups), generator=generator)
    return blocks.to(torch.uint8), scales.to(torch.uint8)


def reference(blocks: Tensor, scales: Tensor) -> Tensor:
    """MXFP4 by plain loops: [E, R, G, 16] → [E, 32 G, R]."""
    experts, rows, groups, half = blocks.shape
    out = torch.zeros(experts, groups * half * 2, rows)
    for e in range(experts):
        for r in range(rows):
            for g in range(groups):
                scale = 2.0 ** (int(scales[e, r, g]) - 127)
                for b in range(half):
                    byte = int(blocks[e, r, g, b])
                    for place, nibble in enumerate((byte & 15, byte >> 4)):
                        value = FP4[nibble & 7] * (-1 if nibble & 8 else 1)
                        out[e, g * 32 + b * 2 + place, r] = value * scale
    return out


def test_mxfp4_experts_are_the_numbers_they_mean(tmp_path: Path) -> None:
    model = model_of("gpt_oss", layers=1)
    tensors = dict(model.state_dict())
    generator = torch.Generator().manual_seed(0)
    for projection, rows in (("gate_up_proj", 128), ("down_proj", 64)):
        name = f"model.layers.0.mlp.experts.{projection}"
        blocks, scales = mxfp4(generator, 4, rows, 2)
        tensors |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        del tensors[name]
        model.get_parameter(name).data = reference(blocks, scales)
    folder_of(model.config, tensors, tmp_path)
    change_config(tmp_path, quantization_config={"quant_method": "mxfp4"})
    checkpoint = opened(tmp_path)
    assert checkpoint.quantised == "MXFP4"
    assert torch.equal(logits(load(checkpoint)), logits(model))
    name = "model.layers.0.mlp.experts.down_proj"
    assert torch.equal(checkpoint.tensor(name, torch.bfloat16).float(), model.get_parameter(name))
    assert checkpoint.digest != opened(folder(model, tmp_path / "full")).digest
    del tensors[f"{name}_scales"]
    with pytest.raises(ConfigError, match=r"down_proj_scales \[E, R, G\] are needed together"):
        opened(folder_of(model.config, tensors, tmp_path))


def test_the_decoder_is_taken_out_of_a_model_with_eyes(tmp_path: Path) -> None:
    model = model_of("gemma3", layers=2)
    whole = Gemma3Config(text_config=model.config.to_dict())
    for prefix in ("language_model.model.", "model.language_model."):
        tensors = {
            name.replace("model.", prefix, 1): tensor
            for name, tensor in model.state_dict().items()
            if name != "lm_head.weight"
        }
        eyes = {"vision_tower.x.weight": torch.ones(2), "multi_modal_projector.y": torch.ones(2)}
        checkpoint = opened(folder_of(whole, {**tensors, **eyes}, tmp_path / prefix))
        assert torch.equal(logits(load(checkpoint)), logits(model))


def test_a_folder_on_s3_is_the_folder(llama: Path, bucket: str) -> None:
    place = f"{bucket}/models/small"
    for file in llama.iterdir():
        storage.write_bytes(f"{place}/{file.name}", file.read_bytes())
    storage.write_bytes(f"{place}/item_head.safetensors", b"projection")
    there, here = HuggingFace(path=place).open(), opened(llama)
    assert there.digest == here.digest
    assert torch.equal(logits(load(there)), logits(load(here)))
    assert there.file("item_head.safetensors") == b"projection"
    assert there.file("nothing") is None
    with pytest.raises(ConfigError, match="found no such folder"):
        HuggingFace(path=f"{bucket}/models/none").open()


def test_a_read_range_is_that_part_of_the_file(llama: Path, bucket: str, tmp_path: Path) -> None:
    for place in (str(tmp_path / "bytes"), f"{bucket}/bytes"):
        storage.write_bytes(place, bytes(range(100)))
        assert storage.read_range(place, 10, 5) == bytes(range(10, 15))
        assert storage.read_range(place, 95, 50) == bytes(range(95, 100))
        assert storage.read_range(place, 3, 0) == b""
    with pytest.raises(storage.StorageError, match="nothing"):
        storage.read_range(tmp_path / "nothing", 0, 1)


def test_old_and_needless_tensors_are_passed_over(copy: Path) -> None:
    place = copy / "model.safetensors"
    digest = opened(copy).digest
    tensors = load_file(place)
    save_file({**tensors, "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}, place)
    assert opened(copy).digest == digest


def test_a_written_tied_head_must_be_the_embedding(tmp_path: Path) -> None:
    model = model_of("qwen2", layers=1)
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    checkpoint = opened(folder_of(model.config, tensors, tmp_path))
    assert torch.equal(logits(load(checkpoint)), logits(model))
    tensors["lm_head.weight"][3, 4] += 1
    with pytest.raises(ConfigError, match=r"lm_head\.weight differs from the embedding"):
        opened(folder_of(model.config, tensors, tmp_path))


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss", "gemma3"])
def test_no_tensor_may_be_missing(family: str, tmp_path: Path) -> None:
    path = folder(model_of(family, layers=2), tmp_path)
    tensors = load_file(path / "model.safetensors")
    assert len(tensors) > 25
    for name in tensors:
        save_file({n: t for n, t in tensors.items() if n != name}, path / "model.safetensors")
        with pytest.raises(ConfigError, match="needs tensors that are missing|are needed together"):
            opened(path)


def test_left_over_and_misshapen_tensors_are_refused(copy: Path) -> None:
    place = copy / "model.safetensors"
    tensors = load_file(place)
    save_file({**tensors, "model.layers.2.mlp.up_proj.weight": torch.ones(48, 32)}, place)
    with pytest.raises(ConfigError, match=r"of 2 layers has no tensors model\.layers\.2\.mlp"):
        opened(copy)
    turned = {**tensors, "model.layers.1.mlp.up_proj.weight": torch.ones(32, 48)}
    save_file(turned, place)
    with pytest.raises(ConfigError, match=r"must have the shape \[48, 32\].* hold .*\[32, 48\]"):
        opened(copy)
    whole = {**tensors, "model.norm.weight": torch.ones(32, dtype=torch.int64)}
    save_file(whole, place)
    with pytest.raises(
        ConfigError, match=r"norm\.weight must hold floating-point numbers, found torch.int64"
    ):
        opened(copy)


def test_experts_that_do_not_stack_are_refused(tmp_path: Path) -> None:
    path = folder(model_of("qwen3_moe", layers=1), tmp_path)
    tensors = load_file(path / "model.safetensors")
    tensors["model.layers.0.mlp.experts.2.up_proj.weight"] = torch.ones(5, 5)
    save_file(tensors, path / "model.safetensors")
    with pytest.raises(ConfigError, match=r"gate_up_proj must have the shape \[4, 32, 32\]"):
        opened(path)


@pytest.mark.parametrize("share", [0.0001, 0.01, 0.3, 0.6, 0.95, 0.9999])
def test_a_file_cut_short_anywhere_is_refused(copy: Path, share: float) -> None:
    place = copy / "model.safetensors"
    content = place.read_bytes()
    place.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ConfigError, match="cut short|must be JSON"):
        opened(copy)
    place.write_bytes(content + b"more")
    with pytest.raises(ConfigError, match=r"the file must have \d+ bytes by its header, found"):
        opened(copy)


def safetensors(header: object, data: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (safetensors([1]), "must be JSON: no mapping"),
        (safetensors({"x": {"dtype": "F32"}}), "says of x .* data_offsets are needed"),
        (
            safetensors({"x": {"dtype": "Q7", "shape": [1], "data_offsets": [0, 4]}}, b"0000"),
            "x has the element type Q7; known are F64",
        ),
        (
            safetensors({"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, b"0000"),
            r"of shape \[2\] and type F32 takes 8 bytes; the header gives it \[0, 4\)",
        ),
    ],
)
def test_a_damaged_header_is_refused(copy: Path, content: bytes, message: str) -> None:
    (copy / "model.safetensors").write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        opened(copy)


def test_a_wrong_index_is_refused(tmp_path: Path) -> None:
    path = folder(model_of("llama", layers=2), tmp_path, shards=True)
    place = path / "model.safetensors.index.json"
    index = json.loads(place.read_text())
    shard = index["weight_map"]["model.norm.weight"]
    other = next(s for s in index["weight_map"].values() if s != shard)
    place.write_text(
        json.dumps({"weight_map": {**index["weight_map"], "model.norm.weight": other}})
    )
    with pytest.raises(
        ConfigError, match=rf"promises model\.norm\.weight in {other}, which does not"
    ):
        opened(path)
    place.write_text(json.dumps(index))
    (path / shard).rename(path / "elsewhere")
    with pytest.raises(ConfigError, match=rf"index.json names {shard}, which is not in the folder"):
        opened(path)
    place.write_text(json.dumps({"weight_map": []}))
    with pytest.raises(ConfigError, match=r"weight_map must map tensors to files, found \[\]"):
        opened(path)
    place.write_text("[")
    with pytest.raises(ConfigError, match=r"index\.json must be JSON"):
        opened(path)


def test_a_wrong_configuration_is_refused(copy: Path) -> None:
    for entries, message in (
        ({"model_type": "bloom"}, r"must be one of llama, mistral, qwen2, .*; found 'bloom'"),
        ({"num_hidden_layers": "two"}, "is no valid llama configuration"),
        ({"num_hidden_layers": 3}, r"of 3 layers needs tensors .*model\.layers\.2.* and 5 more"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantised by gptq are not read"),
    ):
        before = (copy / "config.json").read_text()
        change_config(copy, **entries)
        with pytest.raises(ConfigError, match=message):
            opened(copy)
        (copy / "config.json").write_text(before)
    (copy / "config.json").write_text("[]")
    with pytest.raises(ConfigError, match=r"config\.json must hold a mapping, found list"):
        opened(copy)


def test_only_safetensors_are_read(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "notes.txt")
    with pytest.raises(ConfigError, match=r"found neither; save_pretrained"):
        opened(copy)
    (copy / "notes.txt").rename(copy / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"pytorch_model\.bin is a pickle, which can run code"):
        opened(copy)
    (copy / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"config\.json is needed, found none in it"):
        opened(copy)


def test_a_file_that_shrinks_under_the_reader_is_noticed(copy: Path) -> None:
    checkpoint = opened(copy)
    place = copy / "model.safetensors"
    place.write_bytes(place.read_bytes()[:-100])
    with pytest.raises(ConfigError, match="became shorter while it was read"):
        for name in checkpoint.shapes:
            checkpoint.tensor(name)
