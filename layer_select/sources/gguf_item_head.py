"""P of the item head inside a GGUF file: `infnet_ray.item_head`, D · D numbers row by row.

Runtimes refuse a file with a tensor that they have no use for, and pass over metadata that they do
not know. So P travels as an array in the metadata, and an Ollama store, which has no place for a
file of ours, holds it too.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from gguf import GGUFValueType, GGUFWriter

from layer_select.task.head import read_projection, written_projection
from rayrun.config import ConfigError

KEY = "infnet_ray.item_head"


def item_head_entry(writer: GGUFWriter, content: bytes, width: int) -> None:
    """Write P of an `item_head.safetensors`, in float32.

    Raises:
        ConfigError: damaged, or of another width than the model's.
    """
    values = read_projection(content, width).float().flatten().tolist()
    writer.add_key_value(KEY, values, GGUFValueType.ARRAY, GGUFValueType.FLOAT32)


def item_head_of(metadata: Mapping[str, Any], width: int, where: str) -> bytes | None:
    """`item_head.safetensors` of P; None where the file has none.

    Raises:
        ConfigError: not D · D numbers.
    """
    if KEY not in metadata:
        return None
    values = np.asarray(metadata[KEY], dtype=np.float32)
    if values.shape != (width * width,):
        raise ConfigError(
            f"{where}: {KEY} must hold {width} · {width} numbers, the square of the model's width, "
            f"found {values.size}; the file is damaged, or another model's"
        )
    return written_projection(torch.tensor(values).reshape(width, width))
