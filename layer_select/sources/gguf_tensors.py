"""The tensors of a GGUF file, read and dequantised one at a time."""

import math
from collections.abc import Mapping

import numpy as np
import torch
from gguf import quants
from gguf.constants import GGMLQuantizationType
from torch import Tensor

from layer_select.sources.gguf_header import OLLAMA_MXFP4, GgufHeader, GgufTensor
from layer_select.sources.mapped import RawInfo
from rayrun.config import ConfigError
from rayrun.object_store import storage_errors

_PLAIN = {
    GGMLQuantizationType.F32: torch.float32,
    GGMLQuantizationType.F16: torch.float16,
    GGMLQuantizationType.BF16: torch.bfloat16,
    GGMLQuantizationType.F64: torch.float64,
}
_AT_ONCE = 1 << 22
"""Numbers dequantised at once: bounds what is in memory beside the tensor itself."""


class GgufTensors:
    """`RawTensors` of a file."""

    def __init__(self, header: GgufHeader, where: str) -> None:
        """Take the table of tensors.

        Raises:
            ConfigError: a tensor of a type that cannot be dequantised.
        """
        self._path = header.path
        self._tensors = header.tensors
        self.where = where
        self._infos = {name: self._info(tensor) for name, tensor in header.tensors.items()}

    @property
    def infos(self) -> Mapping[str, RawInfo]:
        """See `RawTensors`."""
        return self._infos

    def read(self, name: str, dtype: torch.dtype | None) -> Tensor:
        """One tensor, dequantised by the arithmetic of gguf-py, in memory of its own."""
        shape, own, quantised = self._infos[name]
        if quantised is None:
            plain = torch.from_numpy(self._bytes(name)).view(own).reshape(shape)
            return plain if dtype is None else plain.to(dtype)
        tensor, width = self._tensors[name], shape[-1]
        count = math.prod(shape) // width
        row_bytes = tensor.size // count
        whole = torch.empty((count, width), dtype=dtype or own)
        step = max(1, _AT_ONCE // width)
        for start in range(0, count, step):
            stop = min(start + step, count)
            rows = self._bytes(name, start * row_bytes, stop * row_bytes).reshape(-1, row_bytes)
            whole[start:stop] = torch.from_numpy(_dequantised(rows, tensor.type))
        return whole.reshape(shape)

    def blocks(self, name: str) -> bytes:
        """The bytes of a tensor as they stand in the file."""
        return self._bytes(name).tobytes()

    def _bytes(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Bytes [start, stop) of a tensor.

        Reading, unlike a map of the file, leaves nothing in memory that was not asked for.
        """
        tensor = self._tensors[name]
        count = (tensor.size if stop is None else stop) - start
        with storage_errors(self._path):
            data = np.fromfile(self._path, np.uint8, count, offset=tensor.begin + start)
        if len(data) != count:
            raise ConfigError(f"{self.where}: the file became shorter while it was read")
        return data

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
