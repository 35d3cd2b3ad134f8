"""MXFP4 as Hugging Face files hold it: 4-bit floats in groups of 32 under one power of two.

`*_blocks [E, R, G, 16]` bytes of two values (low four bits first), `*_scales [E, R, G]` exponents
with bias 127; together a matrix [E, R, 32 G] whose transpose is the module's parameter. (OCP
Microscaling Formats 1.0: E2M1 elements, E8M0 scale.)
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from layer_select.sources.mapped import RawInfo
from rayrun.config import ConfigError

BLOCKS, SCALES = "_blocks", "_scales"


def packed(infos: Mapping[str, RawInfo], where: str) -> dict[str, tuple[str, str]]:
    """Parameter → its blocks and its scales.

    Raises:
        ConfigError: one without the other, or shapes that do not go together.
    """
    pairs: dict[str, tuple[str, str]] = {}
    for name in infos:
        base = name.removesuffix(BLOCKS).removesuffix(SCALES)
        if base == name:
            continue
        pair = (base + BLOCKS, base + SCALES)
        shapes = [infos[part].shape if part in infos else None for part in pair]
        blocks, scales = shapes
        if blocks is None or scales is None or len(blocks) != 4 or blocks[:3] != scales:
            raise ConfigError(
                f"{where}: {pair[0]} [E, R, G, 16] and {pair[1]} [E, R, G] are needed together, "
                f"found shapes {blocks} and {scales}; copy the model again"
            )
        pairs[base] = pair
    return pairs


def dequantised(blocks: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """The parameter [E, 32 G, R]. Exact in every floating type of 8 bits of exponent and more."""
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    return convert_moe_packed_tensors(blocks, scales, dtype=dtype)
