"""A recommender as an ONNX graph: the network inside, every embedding table beside it.

A table becomes one Gather whose data ONNX finds by offset in `tables.safetensors`, as training
wrote it. So `model.onnx` stays small, tables may be larger than the 2 GB a protobuf can hold, and
whoever loads the graph maps them into memory without a copy.

Shapes: B rows, M categorical fields, K dense columns, H histories, n events of a sequence, f ids
per event. H is an axis of its own where the model shares histories among rows: B, or 1.
"""

import json
import logging
import struct
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import onnx_ir as ir
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from torch import Tensor, nn
from torch.export import Dim

from infnet.batch import Batch, SequenceBatch
from infnet.model.base import BaseModel
from infnet.model.tables import EmbeddingTables
from infnet.schema import Schema, TableSpec
from infnet.tasks import BaseTask

TRACED_ROWS, TRACED_HISTORIES = 6, 3
TRACED_EVENTS = 5
"""Of the first sequence; each following one has a few more, so that no two are taken as equal."""
TABLE_ROWS = 3
"""The graph does not depend on how many ids a table has, so it is traced with small tables."""


class Stored(NamedTuple):
    """One tensor in a safetensors file."""

    shape: tuple[int, ...]
    offset: int
    """First byte in the file."""
    length: int
    """Bytes."""


def write_graph(
    network: nn.Module, config: BaseModel, schema: Schema, tables: Path, path: Path
) -> dict[str, Stored]:
    """Write the predictions of a recommender as an ONNX graph.

    Inputs are `ids`, `dense`, and for each sequence `<name>.ids`, `<name>.ages`, `<name>.lengths`
    (shapes as in `Batch`, with at least one row and one event, padding included; of a model that
    `shares_histories`, also with one history for all rows); outputs are one float32 [B] per task,
    in the order of the schema and under its name.

    Args:
        network: in `eval()`, built from `config` for `schema`.
        config: one of the models.
        schema: what the network reads and predicts.
        tables: safetensors file with the state of the tables, in the directory of `path`.
        path: the graph to write.

    Returns:
        Where each table lies in `tables`.
    """
    stored = stored_tensors(tables)
    model = _Flat(_small_tables(config, schema), network, schema).eval()
    inputs, names, shapes = _example(schema, shared=config.shares_histories())
    with _quiet():
        # That H divides B becomes an assertion of the program, which ONNX leaves out, and not a
        # guard, for which the tracer would give up.
        traced = torch.export.export(
            model, inputs, dynamic_shapes=shapes, prefer_deferred_runtime_asserts_over_guards=True
        )
        program = torch.onnx.export(
            traced,
            input_names=names,
            output_names=list(schema.tasks),
            dynamic_shapes=shapes,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    graph = program.model.graph
    assert all(isinstance(v.shape[0], ir.SymbolicDim) for v in graph.inputs if v.shape), (
        "the exporter took the number of rows as fixed"
    )
    _rename(graph, names, list(schema.tasks))
    for name, value in graph.initializers.items():
        key = name.removeprefix("tables.")
        if key.startswith("embeddings."):
            _point(value, stored[key], tables)
    ClearMetadataAndDocStringPass()(program.model)  # paths of the source files among it
    ir.save(program.model, path)
    return stored


def stored_tensors(path: Path) -> dict[str, Stored]:
    """Where each float32 tensor of a safetensors file lies."""
    with path.open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header: dict[str, Any] = json.loads(file.read(size))
    header.pop("__metadata__", None)
    assert all(entry["dtype"] == "F32" for entry in header.values()), header
    return {
        name: Stored(
            shape=tuple(entry["shape"]),
            offset=8 + size + entry["data_offsets"][0],
            length=entry["data_offsets"][1] - entry["data_offsets"][0],
        )
        for name, entry in header.items()
    }


class _Flat(nn.Module):
    """Tensors in, predictions out, as ONNX wants them."""

    def __init__(self, tables: EmbeddingTables, network: nn.Module, schema: Schema) -> None:
        super().__init__()
        self.tables, self.network = tables, network
        self.sequences = [slot.name for slot in schema.sequences]
        self.tasks: Mapping[str, BaseTask] = schema.tasks

    def forward(
        self, ids: Tensor, dense: Tensor, sequences: list[tuple[Tensor, Tensor, Tensor]]
    ) -> list[Tensor]:
        rows = dense.shape[0]
        nothing = dense.new_zeros((rows, len(self.tasks)))
        numbers = ids.new_zeros(rows)
        batch = Batch(
            ids=ids,
            dense=dense,
            sequences={
                name: SequenceBatch(*parts)
                for name, parts in zip(self.sequences, sequences, strict=True)
            },
            labels=nothing,
            observed=nothing != 0,
            weight=dense.new_zeros(rows),
            user=numbers,
            row_id=numbers,
        )
        logits = self.network(self.tables(batch))
        return [task.predict(logits[name].float()) for name, task in self.tasks.items()]


def _small_tables(config: BaseModel, schema: Schema) -> EmbeddingTables:
    small: dict[str, TableSpec] = {
        name: spec.model_copy(update={"rows": TABLE_ROWS}) for name, spec in schema.tables.items()
    }
    described = schema.model_copy(update={"tables": small})
    return EmbeddingTables(described, copies=config.table_copies(schema))


def _example(schema: Schema, *, shared: bool) -> tuple[tuple[Any, ...], list[str], tuple[Any, ...]]:
    """(example inputs, their names, which of their axes vary)."""
    # The tracer takes no size for 1, which would be another graph to it; to ONNX it is the same.
    rows = Dim("rows", min=4)
    of_history = Dim("histories", min=2) if shared else rows
    histories = TRACED_HISTORIES if shared else TRACED_ROWS
    names = ["ids", "dense"]
    sequences: list[tuple[Tensor, Tensor, Tensor]] = []
    shapes: list[tuple[dict[int, Any], ...]] = []
    for at, slot in enumerate(schema.sequences):
        events = TRACED_EVENTS + 2 * at
        length = Dim(f"events_{at}", min=1)
        sequences.append(
            (
                torch.ones((histories, events, len(slot.tables)), dtype=torch.int64),
                torch.ones((histories, events)),
                torch.full((histories,), events - 1),
            )
        )
        shapes.append(({0: of_history, 1: length}, {0: of_history, 1: length}, {0: of_history}))
        names += [f"{slot.name}.ids", f"{slot.name}.ages", f"{slot.name}.lengths"]
    ids = torch.ones((TRACED_ROWS, len(schema.fields)), dtype=torch.int64)
    dense = torch.ones((TRACED_ROWS, schema.dense_width))
    return (ids, dense, sequences), names, ({0: rows}, {0: rows}, shapes)


def _rename(graph: ir.Graph, inputs: list[str], outputs: list[str]) -> None:
    """No value inside the graph may have the name of a task, nor an output that of an input."""
    for at, node in enumerate(graph):
        for number, value in enumerate(node.outputs):
            value.name = f"{at}.{number}"
    for name, value in list(graph.initializers.items()):
        if "." not in name:  # constants of the exporter; weights are named by their module
            value.name = f"constant.{name}"
    for value, name in zip(graph.outputs, outputs, strict=True):
        value.name = f"predict.{name}" if name in inputs else name


def _point(value: ir.Value, stored: Stored, tables: Path) -> None:
    value.shape = ir.Shape(stored.shape)
    value.const_value = ir.ExternalTensor(
        tables.name,
        stored.offset,
        stored.length,
        ir.DataType.FLOAT,
        shape=ir.Shape(stored.shape),
        name=value.name or "",
        base_dir=tables.parent,
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter tells of packages it does without and of its own deprecations."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
