"""Writing a checkpoint as a Hugging Face folder, one tensor at a time.

    config.json  model.safetensors (or model-00001-of-0000N.safetensors … and their index)
    generation_config.json  tokenizer.json  tokenizer_config.json  chat_template.jinja  …
    item_head.safetensors, where the source has one

`AutoModelForCausalLM.from_pretrained` loads it, with no code of ours.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from layer_select.sources.checkpoint import Checkpoint
from layer_select.sources.huggingface_folder import INDEX, SINGLE, HuggingFaceFolder
from layer_select.sources.mapped import memory
from layer_select.sources.reading import reading
from layer_select.sources.safetensors_file import DTYPES
from layer_select.sources.skeleton import skeleton, tied_names
from layer_select.sources.view import behind

SHARD_BYTES = 5 * 10**9
HEADS = ("item_head.safetensors", "rating_head.safetensors")
"""Of our own tasks; they go with the width of the model, whatever its layers."""
TEXT_FILES = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "LICENSE",
    "NOTICE",
)
"""Copied from a Hugging Face folder byte by byte, as far as they are there."""
_SPELLED = {dtype: name for name, dtype in DTYPES.items()}


class _Planned(NamedTuple):
    """A tensor to be written."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def write_folder(
    checkpoint: Checkpoint,
    directory: Path,
    *,
    dtype: torch.dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write the model into `directory`, which becomes whole by the caller's `storage.output`.

    At any time one tensor is in memory. Tied weights are written once.

    Args:
        checkpoint: the model, of whatever form.
        directory: an existing local directory.
        dtype: of the weights; None: each tensor's own, float32 for quantised ones.
        shard_bytes: largest size of one file of weights; a larger tensor has its own.

    Raises:
        ConfigError: a tensor or a file of the model cannot be read, or there is no tokenizer.
    """
    planned = planned_tensors(checkpoint, dtype)
    shards = _shards(planned, shard_bytes)
    count = len(shards)
    names = [f"model-{n:05d}-of-{count:05d}.safetensors" for n in range(1, count + 1)]
    if count == 1:
        names = [SINGLE]
    with reading(f"writing {directory.name}", checkpoint.shapes.values(), len(planned)) as bar:
        for name, shard in zip(names, shards, strict=True):
            with (directory / name).open("wb") as file:
                file.write(_header(shard))
                for tensor in shard:
                    file.write(memory(checkpoint.tensor(tensor.name, tensor.dtype)))
                    bar.advance()
    if count > 1:
        where = {t.name: name for name, shard in zip(names, shards, strict=True) for t in shard}
        total = {"total_size": sum(tensor.bytes for tensor in planned)}
        text = json.dumps({"metadata": total, "weight_map": where}, indent=2, sort_keys=True)
        (directory / INDEX).write_text(text + "\n", encoding="utf-8")
    _write_config(checkpoint.config, planned, directory)
    for name, content in files_of(checkpoint).items():
        (directory / name).write_bytes(content)
    if not isinstance(behind(checkpoint), HuggingFaceFolder):
        checkpoint.tokenizer().save_pretrained(str(directory))


def planned_tensors(checkpoint: Checkpoint, dtype: torch.dtype | None = None) -> list[_Planned]:
    """The tensors that `write_folder` writes, with shape, type and bytes of each."""
    model = skeleton(checkpoint.config)
    tied = tied_names(model)
    shapes = checkpoint.shapes
    return [
        _Planned(name, tuple(shapes[name].shape), dtype or shapes[name].dtype)
        for name in model.state_dict()
        if name not in tied
    ]


def files_of(checkpoint: Checkpoint) -> Mapping[str, bytes]:
    """What lies beside the weights and stays with the model."""
    whole = isinstance(behind(checkpoint), HuggingFaceFolder)
    names = (*TEXT_FILES, *HEADS) if whole else HEADS
    found = {name: checkpoint.file(name) for name in names}
    return {name: content for name, content in found.items() if content is not None}


def _shards(planned: Iterable[_Planned], shard_bytes: int) -> list[list[_Planned]]:
    shards: list[list[_Planned]] = []
    room = -1
    for tensor in planned:
        if tensor.bytes > room:
            shards.append([])
            room = shard_bytes
        shards[-1].append(tensor)
        room -= tensor.bytes
    # The format wants no gaps, and readers that map the file want numbers where they align.
    return [sorted(shard, key=lambda tensor: -tensor.dtype.itemsize) for shard in shards]


def _header(shard: Iterable[_Planned]) -> bytes:
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for tensor in shard:
        end = begin + tensor.bytes
        entries[tensor.name] = {
            "dtype": _SPELLED[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
        begin = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _write_config(config: Any, planned: list[_Planned], directory: Path) -> None:
    """config.json; its `dtype` is that of most numbers."""
    sizes: dict[torch.dtype, int] = {}
    for tensor in planned:
        sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.bytes // tensor.dtype.itemsize
    own = type(config).from_dict(config.to_dict())
    own.architectures = [type(skeleton(config)).__name__]
    own.dtype = max(sizes, key=lambda dtype: sizes[dtype])
    own.save_pretrained(str(directory))
