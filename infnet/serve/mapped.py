"""Large embedding tables beside the graph: rows are looked up in a memory map, and given to it.

A table is an initializer of the graph, which ONNX Runtime maps from `tables.safetensors`: no copy,
but every page that was ever read stays in the process. Of a large table the initializer becomes an
input instead: the distinct rows that a call needs, and its ids become places among them. The graph
is the same otherwise, and so are its predictions. Pages are given back above a limit; rows that
nobody has asked for lately are read from the disk again.

Shapes: V rows of a table, D its width, R distinct ids of a call.
"""

import importlib
import mmap
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Int64

from infnet.schema import Schema
from rayrun.config import ConfigError

PREFIX = "tables.embeddings."
ROWS_AT_ONCE = 4096
"""Rows that are read before the limit is looked at."""
STATM = Path("/proc/self/statm")


class MappedTables:
    """The tables of one graph that are at least so large. Threads may share it."""

    def __init__(self, graph: Path, schema: Schema, *, at_least: int, resident: int) -> None:
        """Take the tables of `at_least` bytes out of a graph; nothing of them is read.

        Of all maps at most about `resident` bytes stay in the process.

        Raises:
            ConfigError: the graph cannot be read.
        """
        onnx: Any = importlib.import_module("onnx")  # most bundles are served without it
        try:
            model = onnx.load(graph, load_external_data=False)
        except Exception as error:  # of protobuf, whose classes differ from version to version
            raise ConfigError(
                f"{graph} cannot be loaded ({str(error).splitlines()[0]}); export again with this "
                "version"
            ) from error
        self._maps: dict[str, _Map] = {}
        self._uses: dict[str, list[_Use]] = {}
        self._resident, self._before = resident, _mapped_bytes()
        uses = _uses(schema)
        kept: list[Any] = []
        for tensor in model.graph.initializer:
            stored = {entry.key: entry.value for entry in tensor.external_data}
            if not tensor.name.startswith(PREFIX) or int(stored.get("length", 0)) < at_least:
                kept.append(tensor)
                continue
            rows, width = tensor.dims
            path, offset = graph.parent / stored["location"], int(stored["offset"])
            self._maps[tensor.name] = _Map(path, offset, rows, width)
            self._uses[tensor.name] = uses[int(tensor.name.removeprefix(PREFIX).split(".")[0])]
            shape = [f"{tensor.name}.rows", width]
            made = onnx.helper.make_tensor_value_info(tensor.name, onnx.TensorProto.FLOAT, shape)
            model.graph.input.append(made)
        del model.graph.initializer[:]
        model.graph.initializer.extend(kept)
        self.graph: bytes = model.SerializeToString()
        """What is left: tables that are not mapped here are found beside where it came from."""

    def __len__(self) -> int:
        return len(self._maps)

    def feed(self, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What the graph wants, from what the graph with all its tables wanted."""
        found = dict(values)
        for name in {use.input for uses in self._uses.values() for use in uses}:
            found[name] = found[name].copy()
        for table, uses in self._uses.items():
            columns = [values[use.input][..., use.column] for use in uses]
            distinct, places = np.unique(
                np.concatenate([ids.ravel() for ids in columns]), return_inverse=True
            )
            found[table] = self._take(self._maps[table], distinct)
            start = 0
            for use, ids in zip(uses, columns, strict=True):
                part = places[start : start + ids.size].reshape(ids.shape)
                found[use.input][..., use.column] = part
                start += ids.size
        return found

    def _take(self, table: "_Map", ids: Int64[np.ndarray, " R"]) -> Float32[np.ndarray, "R D"]:
        taken = np.empty((len(ids), table.rows.shape[1]), np.float32)
        for start in range(0, len(ids), ROWS_AT_ONCE):
            some = slice(start, start + ROWS_AT_ONCE)
            np.take(table.rows, ids[some], axis=0, out=taken[some])
            if _mapped_bytes() - self._before > self._resident:
                for each in self._maps.values():
                    each.map.madvise(mmap.MADV_DONTNEED)  # they stay in the cache of the disk
        return taken


class _Use(NamedTuple):
    """A column of ids of one table."""

    input: str
    column: int


class _Map:
    """One table of a file."""

    def __init__(self, path: Path, offset: int, rows: int, width: int) -> None:
        with path.open("rb") as file:
            self.map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.map.madvise(mmap.MADV_RANDOM)  # neighbours of a row are no more likely than others
        flat = np.frombuffer(self.map, np.float32, rows * width, offset)
        self.rows = flat.reshape(rows, width)


def _uses(schema: Schema) -> list[list[_Use]]:
    """Of each table in the order of the schema, the columns of ids that are looked up in it."""
    found: dict[str, list[_Use]] = {name: [] for name in schema.tables}
    for column, slot in enumerate(schema.fields):
        found[slot.table].append(_Use("ids", column))
    for slot in schema.sequences:
        for column, table in enumerate(slot.tables):
            found[table].append(_Use(f"{slot.name}.ids", column))
    return list(found.values())


def _mapped_bytes() -> int:
    """Bytes of files that are mapped into this process and resident."""
    try:
        return int(STATM.read_text().split()[2]) * os.sysconf("SC_PAGE_SIZE")
    except FileNotFoundError:  # not Linux: the system takes pages back by itself when it needs them
        return 0
