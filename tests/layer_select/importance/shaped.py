"""Folders of models of published sizes: headers with every tensor, and no weights behind them."""

import json
import math
import struct
from pathlib import Path
from typing import Any

from transformers.models.gpt_oss import GptOssConfig
from transformers.models.llama import LlamaConfig

from layer_select.sources.skeleton import skeleton

SHAPES: dict[str, Any] = {
    "llama-3-8b": lambda: LlamaConfig(
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=8192,
    ),
    "gpt-oss-20b": lambda: GptOssConfig(
        vocab_size=201088,
        hidden_size=2880,
        intermediate_size=2880,
        num_hidden_layers=24,
        num_attention_heads=64,
        num_key_value_heads=8,
        head_dim=64,
        num_local_experts=32,
        num_experts_per_tok=4,
        sliding_window=128,
    ),
}


def shaped_folder(name: str, folder: Path, tokenizer: str) -> Path:
    """`config.json`, a sparse `model.safetensors` in bfloat16 (experts of gpt-oss in MXFP4), and a
    tokenizer.
    """
    folder.mkdir(parents=True)
    config = SHAPES[name]()
    written = config.to_dict()
    tensors: dict[str, tuple[str, list[int]]] = {}
    for key, tensor in skeleton(config).state_dict().items():
        shape = list(tensor.shape)
        if name == "gpt-oss-20b" and key.endswith(("gate_up_proj", "down_proj")):
            experts, inputs, outputs = shape
            tensors[f"{key}_blocks"] = ("U8", [experts, outputs, inputs // 32, 16])
            tensors[f"{key}_scales"] = ("U8", [experts, outputs, inputs // 32])
            written["quantization_config"] = {"quant_method": "mxfp4"}
        else:
            tensors[key] = ("BF16", shape)
    header, end = {}, 0
    for key, (kind, shape) in tensors.items():
        begin, end = end, end + math.prod(shape) * (1 if kind == "U8" else 2)
        header[key] = {"dtype": kind, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    (folder / "config.json").write_text(json.dumps(written))
    (folder / "tokenizer.json").write_text(tokenizer)
    return folder
