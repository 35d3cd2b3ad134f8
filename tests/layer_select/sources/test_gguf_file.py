"""GGUF files: quantised tensors, other spellings, rotary factors, and everything wrong with them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader, quants
from transformers import PreTrainedModel
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from layer_select.sources import Gguf, load
from layer_select.sources.checkpoint import Checkpoint
from layer_select.sources.gguf_header import read_header
from layer_select.sources.gguf_tensors import GgufTensors
from layer_select.sources.gguf_write import write_gguf
from rayrun import storage
from rayrun.config import ConfigError
from rayrun.object_store import remote
from tests.layer_select.sources.forms import folder, gguf, logits, model_of, opened, rewritten

Q = GGMLQuantizationType
DEQUANTISED = sorted(quants._type_traits, key=lambda kind: kind.name)


def open_file(path: Path) -> Checkpoint:
    return Gguf(path=str(path)).open()


def write_tensors(path: Path, tensors: dict[str, tuple[np.ndarray, GGMLQuantizationType]]) -> Path:
    from gguf import GGUFWriter

    writer = GGUFWriter(path, "llama")
    for name, (data, kind) in tensors.items():
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


# ---------------------------------------------------------------------------------------------
# Quantised tensors


@pytest.mark.parametrize("kind", DEQUANTISED, ids=lambda kind: kind.name)
def test_every_type_is_dequantised_as_gguf_py_does(
    kind: GGMLQuantizationType, tmp_path: Path
) -> None:
    generator = np.random.default_rng(0)
    width = quants.quant_shape_to_byte_shape((512,), kind)[0]
    data = generator.integers(0, 256, (2, 3, width), dtype=np.uint8)
    path = write_tensors(tmp_path / "x.gguf", {"x": (data, kind)})
    tensors = GgufTensors(read_header(path, "x"), "x")
    with np.errstate(all="ignore"):  # random scales are not always numbers
        found = tensors.read("x", torch.float32)
        expected = quants.dequantize(data, kind)
    assert found.shape == (2, 3, 512)
    assert np.array_equal(found.numpy(), expected, equal_nan=True)
    assert tensors.infos["x"].quantised == (None if kind == Q.BF16 else kind.name)


def test_q8_0_is_the_rounded_model_and_its_blocks_are_the_digest(tmp_path: Path) -> None:
    model = model_of("qwen3", layers=2)
    full = opened(folder(model, tmp_path / "hf"))
    write_gguf(full, tmp_path / "q8.gguf", type="Q8_0")
    rounded = open_file(tmp_path / "q8.gguf")
    assert rounded.quantised == "Q8_0"
    for name, info in full.shapes.items():
        before, after = full.tensor(name), rounded.tensor(name)
        if len(info.shape) == 1 or info.shape[-1] % 32:
            assert torch.equal(before, after)
            continue
        rows = before.numpy()
        assert np.array_equal(
            after.numpy(), quants.dequantize(quants.quantize(rows, Q.Q8_0), Q.Q8_0)
        )
        # A block of 32 is rounded to 1/127 of its largest number, that itself to half precision.
        blocks = before.reshape(-1, 32).abs().amax(1, keepdim=True)
        error = (after - before).abs().reshape(-1, 32)
        assert bool((error <= blocks * (0.5 / 127 + 2**-10)).all())
    moved = (logits(load(rounded)) - logits(model)).abs().max()
    assert 0 < moved < 0.05 * logits(model).abs().max()
    write_gguf(full, tmp_path / "again.gguf", type="Q8_0")
    digest = open_file(tmp_path / "again.gguf").digest
    assert digest == rounded.digest != full.digest


@pytest.mark.parametrize(("type", "dtype"), [("F16", torch.float16), ("BF16", torch.bfloat16)])
def test_half_precision_is_no_quantisation(type: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = model_of("llama", layers=1)
    checkpoint = open_file(gguf(model, tmp_path / "half.gguf", type=type))
    assert checkpoint.quantised is None
    name = "model.layers.0.self_attn.q_proj.weight"
    assert checkpoint.shapes[name].dtype == dtype
    assert torch.equal(checkpoint.tensor(name), model.get_parameter(name).to(dtype))
    assert checkpoint.shapes["model.norm.weight"].dtype == torch.float32


# ---------------------------------------------------------------------------------------------
# gpt-oss


def experts(model: PreTrainedModel, layer: int) -> Any:
    return model.model.layers[layer].mlp.experts


def ollama_spelling(model: PreTrainedModel, source: Path, target: Path) -> Path:
    """As Ollama's converter writes it: fused q, k, v; experts interleaved in MXFP4 of type 4, whose
    values stand in order; no `.weight` behind the sinks; architecture gptoss; no scaling type.
    """
    rename, drop, put = {}, ["gpt-oss.rope.scaling.type", "gpt-oss.expert_feed_forward_length"], {}
    drop += ["gpt-oss.rope.scaling.yarn_beta_fast", "gpt-oss.rope.scaling.yarn_beta_slow"]
    for index in range(model.config.num_hidden_layers):
        block = f"blk.{index}."
        for old, new in (("attn_output", "attn_out"), ("post_attention_norm", "ffn_norm")):
            for kind in (".weight", ".bias"):
                rename[f"{block}{old}{kind}"] = f"{block}{new}{kind}"
        rename[f"{block}attn_sinks.weight"] = f"{block}attn_sinks"
        attention = model.model.layers[index].self_attn
        for kind in ("weight", "bias"):
            parts = [getattr(getattr(attention, f"{p}_proj"), kind) for p in "qkv"]
            put[f"{block}attn_qkv.{kind}"] = (torch.cat(parts).detach().numpy(), Q.F32)
            drop += [f"{block}attn_{p}.{kind}" for p in "qkv"]
        drop += [
            f"{block}ffn_{p}_exps.{k}" for p in ("gate", "up", "down") for k in ("weight", "bias")
        ]
        for theirs, ours in (("ffn_gate_up_exps", "gate_up_proj"), ("ffn_down_exps", "down_proj")):
            held = experts(model, index)
            rows = getattr(held, ours).detach().transpose(1, 2).contiguous().numpy()
            put[f"{block}{theirs}.weight"] = (in_order(quants.quantize(rows, Q.MXFP4)), Q.MXFP4)
            put[f"{block}{theirs}.bias"] = (getattr(held, f"{ours}_bias").detach().numpy(), Q.F32)
    rewritten(source, target, rename=rename, drop=tuple(drop), put=put, architecture="gptoss")
    content = bytearray(target.read_bytes())
    for name, (_, kind) in put.items():
        if kind == Q.MXFP4:  # the type follows the name, the count of dimensions and three of them
            at = content.index(name.encode()) + len(name) + 4 + 3 * 8
            assert content[at] == int(Q.MXFP4)
            content[at] = 4
    target.write_bytes(content)
    return target


def in_order(blocks: np.ndarray) -> np.ndarray:
    """ggml's blocks (value j beside value j + 16) with values 2 j and 2 j + 1 in a byte."""
    out = blocks.copy().reshape(-1, 17)
    for block in out:
        values = [*(block[1:] & 15), *(block[1:] >> 4)]
        block[1:] = [values[2 * j] | values[2 * j + 1] << 4 for j in range(16)]
    return out.reshape(blocks.shape)


def rounded_to_mxfp4(model: PreTrainedModel) -> PreTrainedModel:
    for layer in range(model.config.num_hidden_layers):
        for name in ("gate_up_proj", "down_proj"):
            parameter = getattr(experts(model, layer), name)
            rows = parameter.detach().transpose(1, 2).contiguous().numpy()
            back = quants.dequantize(quants.quantize(rows, Q.MXFP4), Q.MXFP4)
            parameter.data = torch.from_numpy(back).transpose(1, 2).contiguous()
    return model


def test_gpt_oss_of_llama_cpp_and_of_ollama_is_the_same_model(tmp_path: Path) -> None:
    model = rounded_to_mxfp4(model_of("gpt_oss", layers=4))
    expected = logits(model)
    plain = gguf(model, tmp_path / "plain.gguf")
    put = {}
    for index in range(4):  # llama.cpp: gate and up apart, MXFP4 of type 39
        for name, rows in (
            ("gate", experts(model, index).gate_up_proj[..., 0::2]),
            ("up", experts(model, index).gate_up_proj[..., 1::2]),
            ("down", experts(model, index).down_proj),
        ):
            data = rows.detach().transpose(1, 2).contiguous().numpy()
            put[f"blk.{index}.ffn_{name}_exps.weight"] = (quants.quantize(data, Q.MXFP4), Q.MXFP4)
    packed = open_file(rewritten(plain, tmp_path / "packed.gguf", drop=tuple(put), put=put))
    other = open_file(ollama_spelling(model, plain, tmp_path / "ollama.gguf"))
    assert packed.quantised == "MXFP4"
    assert other.quantised == "MXFP4 (Ollama)"
    for checkpoint in (packed, other):
        rope = checkpoint.config.rope_parameters
        assert (rope["rope_type"], rope["factor"], rope["truncate"]) == ("yarn", 2.0, False)
        assert checkpoint.config.sliding_window == 4
        assert checkpoint.config.layer_types[:2] == ["sliding_attention", "full_attention"]
        assert torch.equal(logits(load(checkpoint)), expected)


# ---------------------------------------------------------------------------------------------
# Rotary factors and windows


@pytest.mark.parametrize(("factor", "old"), [(8.0, 8192), (32.0, 8192), (4.0, 4096)])
def test_the_rule_behind_rope_factors_is_found_again(
    factor: float, old: int, tmp_path: Path
) -> None:
    rope = {
        "rope_type": "llama3",
        "rope_theta": 500_000.0,
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": old,
    }
    model = model_of(
        "llama", layers=1, head_dim=128, rope_parameters=rope, max_position_embeddings=131072
    )
    checkpoint = open_file(gguf(model, tmp_path / "small.gguf"))
    assert checkpoint.config.rope_parameters == rope
    assert torch.equal(
        load(checkpoint).model.model.rotary_emb.inv_freq, model.model.rotary_emb.inv_freq
    )


def test_factors_of_no_known_rule_are_kept_as_they_are(tmp_path: Path) -> None:
    model = model_of("llama", layers=1)
    source = gguf(model, tmp_path / "plain.gguf")
    factors = np.array([1.0, 1.5, 3.0, 2.0], np.float32)
    put = {"rope_freqs.weight": (factors, Q.F32)}
    checkpoint = open_file(rewritten(source, tmp_path / "odd.gguf", put=put))
    found = load(checkpoint).model.model.rotary_emb.inv_freq
    expected, _ = ROPE_INIT_FUNCTIONS["longrope"](checkpoint.config)
    plain = model.model.rotary_emb.inv_freq
    assert torch.equal(found, expected)
    torch.testing.assert_close(found, plain / torch.from_numpy(factors), rtol=1e-6, atol=0)
    again = open_file(gguf(load(checkpoint).model, tmp_path / "again.gguf"))
    assert again.digest == checkpoint.digest
    ones = {"rope_freqs.weight": (np.ones(4, np.float32), Q.F32)}
    assert (
        open_file(rewritten(source, tmp_path / "ones.gguf", put=ones)).digest
        == open_file(source).digest
    )


def test_windows_follow_the_pattern_of_the_file(tmp_path: Path) -> None:
    source = gguf(model_of("gemma3", layers=6), tmp_path / "plain.gguf")
    pattern = [True, False, True, True, True, False]
    key = "attention.sliding_window_pattern"
    by_list = open_file(rewritten(source, tmp_path / "a.gguf", metadata={key: pattern}))
    assert [kind == "sliding_attention" for kind in by_list.config.layer_types] == pattern
    by_period = open_file(rewritten(source, tmp_path / "b.gguf", metadata={key: 3}))
    assert by_period.config.layer_types == ["sliding_attention"] * 2 + ["full_attention"] + [
        "sliding_attention"
    ] * 2 + ["full_attention"]
    with pytest.raises(ConfigError, match=r"an entry for each of 6 layers, found 2"):
        open_file(rewritten(source, tmp_path / "c.gguf", metadata={key: [True, False]}))


# ---------------------------------------------------------------------------------------------
# What is refused


@pytest.mark.parametrize("family", ["llama", "qwen3_moe", "gpt_oss", "gemma2"])
def test_no_tensor_may_be_missing_in_the_file(family: str, tmp_path: Path) -> None:
    source = gguf(model_of(family, layers=2), tmp_path / "whole.gguf")
    names = [tensor.name for tensor in GGUFReader(source).tensors]
    # GGUF has no entry for a tied head: a file without output.weight is a model with one.
    for name in [name for name in names if name != "output.weight"]:
        with pytest.raises(ConfigError, match=r"missing|has no tensors"):
            open_file(rewritten(source, tmp_path / "part.gguf", drop=(name,)))


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"attention.head_count_kv": [2, 1]}, "differs from layer to layer"),
        (
            {"attention.head_count": 0},
            r"llama\.attention\.head_count must be a positive number, found 0",
        ),
        ({"embedding_length": "wide"}, "embedding_length must be a positive number, found 'wide'"),
        ({"rope.dimension_count": 4}, r"must equal the width of a head \(8\), found 4"),
        ({"attention.value_length": 16}, r"value_length must equal .* \(8\), found 16"),
        ({"expert_count": 8}, r"a llama with 8 experts \(Mixtral\) is not read"),
        ({"rope.scaling.type": "longrope"}, "must be none, linear or yarn, found 'longrope'"),
        ({"block_count": 3}, r"of 3 layers needs tensors that are missing: blk\.2"),
        ({"block_count": 1}, r"of 1 layers has no tensors blk\.1"),
        (
            {"feed_forward_length": 40},
            r"shape \[40, 32\] by the configuration; the files hold blk\.0",
        ),
        ({"attention.head_count": 3}, "makes no valid llama"),
    ],
)
def test_metadata_that_cannot_be_is_refused(
    metadata: dict[str, Any], message: str, tmp_path: Path
) -> None:
    source = gguf(model_of("llama", layers=2), tmp_path / "plain.gguf")
    with pytest.raises(ConfigError, match=message):
        open_file(rewritten(source, tmp_path / "odd.gguf", metadata=metadata))


def test_other_things_that_cannot_be_are_refused(tmp_path: Path) -> None:
    source = gguf(model_of("llama", layers=1), tmp_path / "plain.gguf")

    def change(**changes: Any) -> None:
        open_file(rewritten(source, tmp_path / "odd.gguf", **changes))

    with pytest.raises(
        ConfigError, match=r"must be one of llama, qwen2, .*gptoss.*; found 'bloom'"
    ):
        change(architecture="bloom")
    with pytest.raises(ConfigError, match=r"attention\.layer_norm_rms_epsilon must be a positive"):
        change(drop=("llama.attention.layer_norm_rms_epsilon",))
    three = {"rope_freqs.weight": (np.ones(3, np.float32), Q.F32)}
    with pytest.raises(ConfigError, match=r"must hold 4 positive factors.*found shape \[3\]"):
        change(put=three)
    four = {"rope_freqs.weight": (np.full(4, 2, np.float32), Q.F32)}
    scaled = {"rope.scaling.type": "linear", "rope.scaling.factor": 2.0}
    with pytest.raises(ConfigError, match="are both given; one way of scaling"):
        change(put=four, metadata=scaled)
    whole = {"output_norm.weight": (np.ones(32, np.int32), Q.I32)}
    with pytest.raises(ConfigError, match=r"output_norm\.weight is of type I32, which cannot be"):
        change(drop=tuple(whole), put=whole)


def test_a_file_on_s3_is_the_file_and_is_fetched_once(
    tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    own = gguf(model_of("llama", layers=1), tmp_path / "own.gguf")
    place = f"{bucket}/models/small.gguf"
    storage.write_bytes(place, own.read_bytes())
    storage.write_bytes(f"{bucket}/models/template", b"beside")
    there = Gguf(path=place).open()
    assert there.digest == open_file(own).digest
    assert there.file("template") == b"beside"
    assert there.file("nothing") is None
    (copy,) = (tmp_path / "cache").rglob("small.gguf")
    written = copy.stat().st_mtime_ns
    Gguf(path=place).open()
    assert copy.stat().st_mtime_ns == written
    damaged = bytearray(copy.read_bytes())
    damaged[-1] ^= 1
    copy.write_bytes(damaged)
    assert Gguf(path=place).open().digest == there.digest
    assert copy.read_bytes() == own.read_bytes()
    storage.write_bytes(place, own.read_bytes() + bytes(32))  # another object in its place
    filesystem, _ = remote(place)
    monkeypatch.setattr(filesystem, "get_file", lambda _key, to: Path(to).write_bytes(b"-"))
    with pytest.raises(ConfigError, match=r"small\.gguf has .* bytes, 1 arrived at .*call again"):
        Gguf(path=place).open()
    with pytest.raises(ConfigError, match=r"none\.gguf"):
        Gguf(path=f"{bucket}/models/none.gguf").open()


def test_a_gguf_file_that_shrinks_under_the_reader_is_noticed(tmp_path: Path) -> None:
    path = gguf(model_of("llama", layers=1), tmp_path / "plain.gguf", type="Q8_0")
    checkpoint = open_file(path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ConfigError, match="became shorter while it was read"):
        load(checkpoint)


@pytest.mark.parametrize(
    ("family", "change", "message"),
    [
        (
            "gemma2",
            {"query_pre_attn_scalar": 256},
            "GGUF cannot say query_pre_attn_scalar 256 of gemma2",
        ),
        ("qwen3_moe", {"norm_topk_prob": False}, "cannot say norm_topk_prob False"),
        ("mistral", {"sliding_window": 4}, r"period 1\); these layer_types differ: sliding"),
        (
            "gpt_oss",
            {"layer_types": ["full_attention"] * 2},
            r"\(period 2\); these layer_types differ",
        ),
    ],
)
def test_what_gguf_cannot_say_is_not_written(
    family: str, change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    model = model_of(family, layers=2)
    for key, value in change.items():
        setattr(model.config, key, value)
    with pytest.raises(ConfigError, match=message):
        gguf(model, tmp_path / "small.gguf")
    with pytest.raises(ConfigError, match="must be one of F32, F16, BF16, Q8_0; found 'Q9'"):
        gguf(model, tmp_path / "small.gguf", type="Q9")
