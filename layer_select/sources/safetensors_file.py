"""Safetensors files read one tensor at a time, from a disk or an object store.

    8 bytes: length n of the header · n bytes of JSON: name → dtype, shape, [begin, end) · the bytes

The header is checked against the size of the file before anything is read, so that a file cut short
is found when it is opened and not in the middle of a run.
"""

import json
from typing import Any

import numpy as np
import torch
from torch import Tensor

from layer_select.sources.mapped import RawInfo
from rayrun import storage
from rayrun.config import ConfigError
from rayrun.object_store import local_path

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
LARGEST_HEADER = 100_000_000
"""Bytes; the format's own limit."""


class SafetensorsFile:
    """One file: `infos` by name, and `read`."""

    def __init__(self, uri: str) -> None:
        """Read and check the header.

        Raises:
            ConfigError: not a safetensors file, or cut short.
            StorageError: missing, unreachable or refused.
        """
        self.uri = uri
        size = storage.size(uri)
        length = int.from_bytes(storage.read_range(uri, 0, 8), "little")
        if size < 8 or not 2 <= length <= min(LARGEST_HEADER, size - 8):
            raise ConfigError(
                f"{uri}: no safetensors file, or one cut short: its {size} bytes cannot hold a "
                f"header of {length} bytes; copy the file again"
            )
        self._start = 8 + length
        self.infos: dict[str, RawInfo] = {}
        self._at: dict[str, tuple[int, int]] = {}
        for name, entry in self._header(storage.read_range(uri, 8, length)).items():
            if name != "__metadata__":
                self._add(name, entry, size - self._start)
        held = max((end for _, end in self._at.values()), default=0)
        if held != size - self._start:
            raise ConfigError(
                f"{uri}: the file must have {self._start + held} bytes by its header, found "
                f"{size}; copy the file again"
            )

    def read(self, name: str, dtype: torch.dtype | None) -> Tensor:
        """One tensor, in memory of its own.

        Raises:
            StorageError: the file went away, or became shorter.
        """
        info = self.infos[name]
        begin, end = self._at[name]
        path = local_path(self.uri)
        with storage.storage_errors(self.uri):
            if path is not None:
                data = np.fromfile(path, np.uint8, end - begin, offset=self._start + begin)
            else:
                got = storage.read_range(self.uri, self._start + begin, end - begin)
                data = np.frombuffer(bytearray(got), np.uint8)
        if len(data) != end - begin:
            raise ConfigError(f"{self.uri}: the file became shorter while it was read")
        tensor = torch.from_numpy(data).view(info.dtype).reshape(info.shape)
        return tensor if dtype is None else tensor.to(dtype)

    def _header(self, text: bytes) -> dict[str, Any]:
        try:
            header = json.loads(text)
            if not isinstance(header, dict):
                raise ValueError("no mapping")
        except ValueError as error:
            raise ConfigError(
                f"{self.uri}: the header of a safetensors file must be JSON: {error}; is this "
                "another kind of file?"
            ) from None
        return header

    def _add(self, name: str, entry: Any, available: int) -> None:
        try:
            kind, shape = str(entry["dtype"]), tuple(int(n) for n in entry["shape"])
            begin, end = (int(n) for n in entry["data_offsets"])
        except (KeyError, TypeError, ValueError):
            raise ConfigError(
                f"{self.uri}: the header says of {name} {entry!r}; dtype, shape and data_offsets "
                "are needed"
            ) from None
        dtype = DTYPES.get(kind)
        if dtype is None:
            raise ConfigError(
                f"{self.uri}: {name} has the element type {kind}; known are {', '.join(DTYPES)}"
            )
        needed = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        if not 0 <= begin <= end or end - begin != needed or min(shape, default=1) < 0:
            raise ConfigError(
                f"{self.uri}: {name} of shape {list(shape)} and type {kind} takes {needed} bytes; "
                f"the header gives it [{begin}, {end})"
            )
        if end > available:
            raise ConfigError(
                f"{self.uri}: the file is cut short: {name} ends at byte {self._start + end}, the "
                f"file at {self._start + available}; copy the file again"
            )
        self.infos[name] = RawInfo(shape, dtype)
        self._at[name] = (begin, end)
