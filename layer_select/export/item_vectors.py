"""Item vectors as they lie in a bundle: float32, or int8 with one scale for each item.

    int8:  q_i = round(v_i / s_i),  s_i = max_d |v_id| / 127,  v_i ≈ s_i q_i,  |v − s q| ≤ s / 2

Shapes: I items, D width.
"""

from typing import Literal

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from rayrun.config import ConfigError

FILE = "item_vectors.safetensors"
VECTORS, SCALE = "vectors", "scale"
LARGEST = 127


def written(vectors: Float[Tensor, "I D"], kind: Literal["float32", "int8"] = "float32") -> bytes:
    """`item_vectors.safetensors`.

    Raises:
        ValueError: a number that is not finite.
    """
    vectors = vectors.detach().cpu().float().contiguous()
    if not vectors.isfinite().all():
        raise ValueError("item vectors must be finite, found a number that is not")
    if kind == "float32":
        return save({VECTORS: vectors})
    scale = vectors.abs().amax(1) / LARGEST
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))  # an item of zeros stays zero
    quantised = (vectors / scale[:, None]).round().clamp(-LARGEST, LARGEST).to(torch.int8)
    return save({VECTORS: quantised, SCALE: scale})


def read(content: bytes, where: str) -> Float[Tensor, "I D"]:
    """The vectors in float32, whatever they are kept in.

    Args:
        content: of the file.
        where: how messages call it.

    Raises:
        ConfigError: damaged, without `vectors`, of another type, or with a number that is not
            finite.
    """
    try:
        tensors = load(content)
    except SafetensorError as error:
        raise ConfigError(f"{where} is damaged ({error}); export the bundle again") from None
    vectors, scale = tensors.get(VECTORS), tensors.get(SCALE)
    held = {name: f"{t.dtype} {list(t.shape)}" for name, t in tensors.items()}
    expected = "'vectors' float32 [items, width], or int8 beside 'scale' float32 [items]"
    if vectors is None or vectors.dim() != 2:
        raise ConfigError(f"{where} must hold {expected}, found {held}; export the bundle again")
    if vectors.dtype == torch.int8:
        if scale is None or scale.dtype != torch.float32 or scale.shape != vectors.shape[:1]:
            raise ConfigError(
                f"{where} must hold {expected}, found {held}; export the bundle again"
            )
        vectors = vectors.float() * scale[:, None]
    elif vectors.dtype != torch.float32:
        raise ConfigError(f"{where} must hold {expected}, found {held}; export the bundle again")
    if not vectors.isfinite().all():
        raise ConfigError(f"{where} holds a number that is not finite; export the bundle again")
    return vectors
