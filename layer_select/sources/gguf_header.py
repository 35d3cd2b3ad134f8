"""The header of a GGUF file: metadata, and where each tensor lies.

    "GGUF" · version · counts · key, type, value … · name, shape, type, offset … · padding · data

Everything is checked against the size of the file while it is parsed: a count or a length that
points beyond the end is one error, not a crash or a loop. (Format: ggml's docs/gguf.md.)
"""

import mmap
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import (
    GGML_QUANT_SIZES,
    GGUF_DEFAULT_ALIGNMENT,
    GGUF_MAGIC,
    GGMLQuantizationType,
    GGUFValueType,
)

from rayrun.config import ConfigError

VERSIONS = (2, 3)
OLLAMA_MXFP4 = 4
"""Ollama's own files say 4 (ggml: a type long gone) for MXFP4 with values in their plain order."""
_DEEPEST, _MOST_DIMENSIONS = 4, 4
_LONG = 1 << 20
"""Longer arrays of numbers stay NumPy's: as Python's they would take eight times the memory."""
_SCALARS: dict[int, str] = {
    GGUFValueType.UINT8: "<u1",
    GGUFValueType.INT8: "<i1",
    GGUFValueType.UINT16: "<u2",
    GGUFValueType.INT16: "<i2",
    GGUFValueType.UINT32: "<u4",
    GGUFValueType.INT32: "<i4",
    GGUFValueType.FLOAT32: "<f4",
    GGUFValueType.UINT64: "<u8",
    GGUFValueType.INT64: "<i8",
    GGUFValueType.FLOAT64: "<f8",
    GGUFValueType.BOOL: "?",
}


@dataclass(frozen=True)
class GgufTensor:
    """One entry of the tensor table; `shape` has the fastest dimension last, as in torch."""

    name: str
    shape: tuple[int, ...]
    type: int
    begin: int
    """Position in the file."""
    size: int
    """Bytes."""

    @property
    def type_name(self) -> str:
        """As llama.cpp calls it."""
        if self.type == OLLAMA_MXFP4:
            return "MXFP4 (Ollama)"
        return GGMLQuantizationType(self.type).name


@dataclass(frozen=True)
class GgufHeader:
    """What a file says about itself."""

    path: Path
    metadata: dict[str, Any]
    """Numbers, texts, booleans; arrays as lists, very long ones of numbers as NumPy arrays."""
    types: dict[str, int]
    """The GGUF type of each value (of the items, for an array)."""
    tensors: dict[str, GgufTensor] = field(default_factory=dict)


def read_header(path: Path, where: str) -> GgufHeader:
    """Parse and check the header.

    Args:
        path: the file.
        where: how messages call it.

    Raises:
        ConfigError: not a GGUF file, of a version or byte order we do not read, or cut short.
    """
    try:
        with path.open("rb") as f:
            if path.stat().st_size < 24:
                raise ConfigError(f"{where}: {path.stat().st_size} bytes are no GGUF file")
            with mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _Parser(data, path, where).header()
    except FileNotFoundError:
        raise ConfigError(f"{where}: there is no such file; check the path") from None
    except (IsADirectoryError, PermissionError) as error:
        raise ConfigError(f"{where}: a GGUF file is needed: {error.strerror}") from None


class _Parser:
    def __init__(self, data: mmap.mmap, path: Path, where: str) -> None:
        self.data, self.path, self.where = data, path, where
        self.at = 0

    def header(self) -> GgufHeader:
        self._check_start()
        counts = [self.number("<u8") for _ in range(2)]
        metadata: dict[str, Any] = {}
        types: dict[str, int] = {}
        for _ in range(counts[1]):
            key = self.text()
            if key in metadata:
                raise ConfigError(f"{self.where}: the metadata key {key} stands twice")
            types[key], metadata[key] = self.value(self.number("<u4"))
        entries = [self._entry() for _ in range(counts[0])]
        alignment = metadata.get("general.alignment", GGUF_DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise ConfigError(
                f"{self.where}: general.alignment must be a power of two, found {alignment!r}"
            )
        start = -(-self.at // alignment) * alignment
        tensors: dict[str, GgufTensor] = {}
        for name, shape, kind, offset in entries:
            if name in tensors:
                raise ConfigError(f"{self.where}: the tensor {name} stands twice")
            tensors[name] = self._placed(name, shape, kind, start + offset)
        return GgufHeader(self.path, metadata, types, tensors)

    def _check_start(self) -> None:
        magic, version = self.number("<u4"), self.number("<u4")
        if magic != GGUF_MAGIC:
            raise ConfigError(
                f"{self.where}: a GGUF file begins with the bytes GGUF, found "
                f"{struct.pack('<I', magic)!r}; is this another kind of file?"
            )
        if version not in VERSIONS:
            swapped = version & 0xFFFF == 0
            raise ConfigError(
                f"{self.where}: GGUF of version {' and '.join(map(str, VERSIONS))} is read, found "
                f"{'one in big-endian byte order' if swapped else version}; convert the file with "
                "a current llama.cpp"
            )

    def _entry(self) -> tuple[str, tuple[int, ...], int, int]:
        name, dimensions = self.text(), self.number("<u4")
        if not 1 <= dimensions <= _MOST_DIMENSIONS:
            raise ConfigError(f"{self.where}: {name} has {dimensions} dimensions; 1 to 4 are known")
        shape = tuple(self.number("<u8") for _ in range(dimensions))[::-1]
        return name, shape, self.number("<u4"), self.number("<u8")

    def _placed(self, name: str, shape: tuple[int, ...], kind: int, begin: int) -> GgufTensor:
        known = kind if kind != OLLAMA_MXFP4 else int(GGMLQuantizationType.MXFP4)
        if known not in {int(member) for member in GGMLQuantizationType}:
            raise ConfigError(
                f"{self.where}: {name} has the tensor type {kind}, which is not known here; "
                "convert the file to F16 or Q8_0 with llama-quantize"
            )
        block, size = GGML_QUANT_SIZES[GGMLQuantizationType(known)]
        if min(shape) < 1 or shape[-1] % block:
            raise ConfigError(
                f"{self.where}: {name} of shape {list(shape)} cannot be of type "
                f"{GGMLQuantizationType(known).name}, whose blocks hold {block} numbers of a row"
            )
        total = 1
        for extent in shape:
            total *= extent
        tensor = GgufTensor(name, shape, kind, begin, total // block * size)
        if begin + tensor.size > len(self.data):
            raise ConfigError(
                f"{self.where}: the file is cut short: {name} ends at byte {begin + tensor.size}, "
                f"the file at {len(self.data)}; copy or download it again"
            )
        return tensor

    def take(self, count: int) -> bytes:
        end = self.at + count
        if end > len(self.data):
            raise ConfigError(
                f"{self.where}: the file is cut short, or damaged: its header needs {end} bytes, "
                f"the file has {len(self.data)}; copy or download it again"
            )
        got = self.data[self.at : end]
        self.at = end
        return got

    def number(self, kind: str) -> Any:
        return np.frombuffer(self.take(np.dtype(kind).itemsize), kind)[0].item()

    def text(self) -> str:
        length = int.from_bytes(self.take(8), "little")
        return self.take(length).decode("utf-8", "replace")

    def value(self, kind: int, depth: int = 0) -> tuple[int, Any]:
        if kind in _SCALARS:
            return kind, self.number(_SCALARS[kind])
        if kind == GGUFValueType.STRING:
            return kind, self.text()
        if kind != GGUFValueType.ARRAY or depth == _DEEPEST:
            raise ConfigError(
                f"{self.where}: the metadata holds a value of type {kind}, which is not known; "
                "the file is damaged, or newer than this program"
            )
        inner, count = self.number("<u4"), self.number("<u8")
        if inner in _SCALARS:
            items = self.take(count * np.dtype(_SCALARS[inner]).itemsize)
            numbers = np.frombuffer(items, _SCALARS[inner])
            return inner, numbers if count > _LONG else numbers.tolist()
        read: Callable[[], Any] = (
            self.text if inner == GGUFValueType.STRING else lambda: self.value(inner, depth + 1)[1]
        )
        found: list[Any] = []
        for _ in range(count):  # ends at the latest with the file: every item takes 8 bytes or more
            found.append(read())
        return inner, found
