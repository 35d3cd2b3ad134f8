"""The tensors of a GGUF file: memory-mapped, dequantised one at a time."""

from collections.abc import Mapping

import numpy as np
import torch
from gguf import quants
from gguf.constants import GGMLQuantizationType
from torch import Tensor

from layer_select.sources.gguf_header import OLLAMA_MXFP4, GgufHeader, GgufTensor
from layer_select.sources.mapped import RawInfo
from rayrun.config import ConfigError

_PLAIN = {
    GGMLQuantizationType.F32: torch.float32,
    GGMLQuantizationType.F16: torch.float16,
    GGMLQuantizationType.BF16: torch.bfloat16,
    GGMLQuantizationType.F64: torch.float64,
}
_AT_ONCE = 1 << 24
"""Numbers dequantised at once: bounds the float32 copy of a tensor wanted in bfloat16."""


class GgufTensors:
    """`RawTensors` of a file."""

    def __init__(self, header: GgufHeader, where: str) -> None:
        """Map the file.

        Raises:
            ConfigError: a tensor of a type that cannot be dequantised.
        """
        self._data = np.memmap(header.path, np.uint8, mode="r")
        self._tensors = header.tensors
        self.where = where
        self._infos = {name: self._info(tensor) for name, tensor in header.tensors.items()}

    @property
    def infos(self) -> Mapping[str, RawInfo]:
        """See `RawTensors`."""
        return self._infos

    def read(self, name: str, dtype: torch.dtype | None) -> Tensor:
        """One tensor, dequantised by the arithmetic of gguf-py, in memory of its own."""
        tensor = self._tensors[name]
        shape, own, quantised = self._infos[name]
        data = self._data[tensor.begin : tensor.begin + tensor.size]
        if quantised is None:
            plain = torch.from_numpy(np.array(data)).view(own).reshape(shape)
            return plain if dtype is None else plain.to(dtype)
        rows = data.reshape(-1, tensor.size // (int(np.prod(shape)) // shape[-1]))
        whole = torch.empty((len(rows), shape[-1]), dtype=dtype or own)
        step = max(1, _AT_ONCE // shape[-1])
        for start in range(0, len(rows), step):
            found = _dequantised(np.array(rows[start : start + step]), tensor.type)
            whole[start : start + step] = torch.from_numpy(found)
        return whole.reshape(shape)

    def blocks(self, name: str) -> bytes:
        """The bytes of a tensor as they stand in the file."""
        tensor = self._tensors[name]
        return self._data[tensor.begin : tensor.begin + tensor.size].tobytes()

    def _info(self, tensor: GgufTensor) -> RawInfo:
        if tensor.type != OLLAMA_MXFP4:
            kind = GGMLQuantizationType(tensor.type)
            if kind in _PLAIN:
                return RawInfo(tensor.shape, _PLAIN[kind])
            try:
                block = np.zeros(
                    (1, quants.quant_shape_to_byte_shape((tensor.shape[-1],), kind)[0])
                )
                quants.dequantize(block.astype(np.uint8), kind)
            except NotImplementedError:
                raise ConfigError(
                    f"{self.where}: {tensor.name} is of type {kind.name}, which cannot be "
                    "dequantised here; convert the file to F16 or Q8_0 with llama-quantize"
                ) from None
        return RawInfo(tensor.shape, torch.float32, tensor.type_name)


def _dequantised(rows: np.ndarray, kind: int) -> np.ndarray:
    if kind == OLLAMA_MXFP4:
        rows, kind = _in_ggml_order(rows), int(GGMLQuantizationType.MXFP4)
    return quants.dequantize(rows, GGMLQuantizationType(kind))


def _in_ggml_order(rows: np.ndarray) -> np.ndarray:
    """Blocks of MXFP4 (scale, 16 bytes) with values in order → value j beside value j + 16."""
    blocks = rows.reshape(-1, 17)
    values = np.stack([blocks[:, 1:] & 0x0F, blocks[:, 1:] >> 4], axis=2).reshape(-1, 32)
    packed = values[:, :16] | values[:, 16:] << 4
    return np.concatenate([blocks[:, :1], packed], axis=1).reshape(rows.shape)
