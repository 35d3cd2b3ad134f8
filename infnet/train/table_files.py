"""Files of embedding tables: safetensors, written block by block, read as maps of memory.

A training state holds what is whole in `tables.safetensors` and, of split tables, each worker's
rows in `tables.0-of-2.safetensors`, `tables.1-of-2.safetensors`, …; the same for the state of the
optimizer, `rows`. Any number of workers reads them again: row r of a table lies in file r mod 2, as
row r // 2. No worker ever holds more than its own rows and one block.
"""

import json
import math
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from infnet.model.tables import Share
from infnet.train.checkpoint import load_tensors
from rayrun.config import ConfigError

WHOLE = Share()
NAMES = {torch.float32: "F32", torch.int64: "I64"}
"""Types of tensors as safetensors calls them."""


class TableWriter:
    """Writes one safetensors file; the tensors are named first and then written in that order."""

    def __init__(
        self, path: Path, shapes: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]
    ) -> None:
        header, end = {}, 0
        for name, (dtype, shape) in shapes.items():
            start, end = end, end + dtype.itemsize * math.prod(shape)
            header[name] = {
                "dtype": NAMES[dtype],
                "shape": list(shape),
                "data_offsets": [start, end],
            }
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)  # the data start at a multiple of 8
        self._file = path.open("wb")
        self._file.write(struct.pack("<Q", len(text)) + text)

    def write(self, blocks: Iterable[Tensor]) -> None:
        """The next tensor, by blocks of rows."""
        for block in blocks:
            self._file.write(block.detach().cpu().contiguous().numpy().data)

    def close(self) -> None:
        """All tensors are written."""
        self._file.close()


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """A safetensors file of tensors at hand; no second copy of them is made."""
    writer = TableWriter(path, {n: (t.dtype, tuple(t.shape)) for n, t in tensors.items()})
    for tensor in tensors.values():
        writer.write([tensor])
    writer.close()


def save(
    directory: Path, stem: str, tensors: Mapping[str, Tensor], share: Share, split: set[str]
) -> None:
    """This worker's part of a state: worker 0 writes what is whole, every worker its `split`."""
    if share.rank == 0:
        whole = {name: tensor for name, tensor in tensors.items() if name not in split}
        write_tensors(directory / f"{stem}.safetensors", whole)
    if split:
        part = {name: tensors[name] for name in sorted(split)}
        write_tensors(_part(directory, stem, share.rank, share.of), part)


class SavedTables:
    """A state on disk, of whatever number of workers."""

    def __init__(self, directory: Path, stem: str) -> None:
        """Map the files into memory.

        Raises:
            ConfigError: one is missing, truncated or corrupt.
        """
        self.where = directory / f"{stem}.safetensors"
        self.whole = load_tensors(self.where)
        found = sorted(directory.glob(f"{stem}.*-of-*.safetensors"))
        of = int(found[0].name.split(".")[1].split("-of-")[1]) if found else 0
        self.parts = [load_tensors(_part(directory, stem, rank, of)) for rank in range(of)]

    def fill(self, name: str, into: Tensor, total: int, share: Share) -> None:
        """Copy a tensor of `total` rows, or the rows of it that `share` holds.

        Raises:
            ConfigError: the state has no such tensor, or one of another shape.
        """
        sources = [(WHOLE, self.whole[name])] if name in self.whole else []
        sources += [
            (Share(rank, len(self.parts)), part[name])
            for rank, part in enumerate(self.parts)
            if name in part
        ]
        shape = [sum(len(part) for _, part in sources), *sources[0][1].shape[1:]] if sources else []
        if shape != [total, *into.shape[1:]]:
            raise ConfigError(
                f"{name} in {self.where} must have shape {[total, *into.shape[1:]]}, found "
                f"{shape or 'nothing'}: the state belongs to another model; remove the "
                "run directory and start again"
            )
        for source, part in sources:
            _deal(part, source, into, share)


def _part(directory: Path, stem: str, rank: int, of: int) -> Path:
    return directory / f"{stem}.{rank}-of-{of}.safetensors"


def _deal(part: Tensor, source: Share, into: Tensor, target: Share) -> None:
    """Copy the rows that are both in `part` and to be in `into`.

    They are the r that leave `source.rank` modulo `source.of` and `target.rank` modulo `target.of`:
    every lcm-th row from the first on, if there is one.
    """
    every = math.lcm(source.of, target.of)
    first = next(
        (r for r in range(source.rank, every, source.of) if r % target.of == target.rank), None
    )
    if first is not None:
        rows = part[first // source.of :: every // source.of]
        into[first // target.of :: every // target.of] = rows
