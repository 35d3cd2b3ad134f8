"""Small models of every family, written in every form a checkpoint can come in."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from layer_select.decoder import Decoder
from layer_select.sources import HuggingFace
from layer_select.sources.checkpoint import Checkpoint
from layer_select.sources.gguf_write import write_gguf
from tests.layer_select.families import CONFIGS, small_batch

FAMILIES = tuple(CONFIGS)
SAYABLE = {
    "qwen3_moe": {"norm_topk_prob": True},
    "gemma2": {"query_pre_attn_scalar": 8},
    "gemma3": {"query_pre_attn_scalar": 8},
}
"""What GGUF's runtimes compute with, where the small models of other tests differ."""


def model_of(family: str, layers: int = 6, seed: int = 0, **other: Any) -> PreTrainedModel:
    """Every parameter random; norms rounded to bfloat16, as the published ones are."""
    config = CONFIGS[family]()
    for key, value in {**SAYABLE.get(family, {}), **other}.items():
        setattr(config, key, value)
    config.num_hidden_layers = layers
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:layers]
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
            if "norm" in name:
                parameter.copy_(parameter.bfloat16())
    return model.eval()


@torch.no_grad()
def logits(model: PreTrainedModel | Decoder) -> Tensor:
    """At all tokens that are no padding."""
    ids, mask = small_batch()
    if isinstance(model, PreTrainedModel):
        return model(input_ids=ids, attention_mask=mask).logits[mask == 1]
    start = model.start(ids, mask)
    return model.logits(model.finish(model.through(start)))[mask == 1]


def folder(model: PreTrainedModel, path: Path, *, shards: bool = False) -> Path:
    """As `save_pretrained` writes it: one file or several; experts one by one."""
    model.save_pretrained(path, max_shard_size="40kB" if shards else "1GB")
    return path


def folder_of(config: Any, tensors: Mapping[str, Tensor], path: Path) -> Path:
    """A folder with exactly these tensors in one file."""
    path.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(path)
    save_file({name: t.contiguous() for name, t in tensors.items()}, path / "model.safetensors")
    return path


def opened(path: Path) -> Checkpoint:
    return HuggingFace(path=str(path)).open()


def gguf(model: PreTrainedModel, path: Path, type: str = "F32") -> Path:
    """Our writer's file, by way of a folder beside it."""
    write_gguf(opened(folder(model, path.with_suffix(".hf"))), path, type=type)
    return path


def rewritten(
    source: Path,
    target: Path,
    *,
    drop: tuple[str, ...] = (),
    metadata: Mapping[str, Any] | None = None,
    rename: Mapping[str, str] | None = None,
    put: Mapping[str, tuple[np.ndarray, GGMLQuantizationType]] | None = None,
    architecture: str | None = None,
) -> Path:
    """A GGUF file changed here and there, by gguf-py's own reader and writer.

    `drop` names tensors or metadata; `metadata` replaces or adds entries of the architecture.
    """
    reader = GGUFReader(source)
    before = reader.fields["general.architecture"].contents()
    writer = GGUFWriter(target, architecture or before)
    given = {f"{writer.arch}.{key}": value for key, value in (metadata or {}).items()}
    for key, field in reader.fields.items():
        name = key.replace(before, writer.arch, 1) if key.startswith(before + ".") else key
        if (
            key.startswith("GGUF.")
            or key == "general.architecture"
            or {key, name} & {*drop, *given}
        ):
            continue
        inner = field.types[1] if len(field.types) > 1 else None
        writer.add_key_value(name, field.contents(), field.types[0], inner)
    for key, value in given.items():
        add = {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32}
        add.get(type(value), writer.add_array)(key, value)
    for tensor in reader.tensors:
        if tensor.name not in drop:
            name = (rename or {}).get(tensor.name, tensor.name)
            writer.add_tensor(name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
    for name, (data, kind) in (put or {}).items():
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def blob(store: Path, content: bytes, kind: str) -> dict[str, Any]:
    """Put a blob into a store; its entry of a manifest."""
    digest = hashlib.sha256(content).hexdigest()
    (store / "blobs").mkdir(parents=True, exist_ok=True)
    (store / "blobs" / f"sha256-{digest}").write_bytes(content)
    media = f"application/vnd.ollama.image.{kind}"
    return {"mediaType": media, "digest": f"sha256:{digest}", "size": len(content)}


def manifest(store: Path, name: str, layers: list[dict[str, Any]]) -> Path:
    """`name` is host/namespace/model/tag."""
    path = store / "manifests" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"schemaVersion": 2, "config": {}, "layers": layers}))
    return path


def ollama(file: Path, store: Path, name: str = "registry.ollama.ai/library/small/latest") -> Path:
    """The GGUF file as a model of a store, with template and parameters."""
    layers = [
        blob(store, file.read_bytes(), "model"),
        blob(store, b"{{ .Prompt }}", "template"),
        blob(store, b'{"stop": ["<|endoftext|>"]}', "params"),
        blob(store, b"first licence", "license"),
        blob(store, b"second licence", "license"),
    ]
    manifest(store, name, layers)
    return store
