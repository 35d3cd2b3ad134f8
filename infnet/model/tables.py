"""Embedding tables: ids to vectors, the only part of a recommender that grows with the catalogue.

Tables stand apart from the network: their gradients are sparse (only rows of the batch), so they
are updated row by row and never enter DDP or ZeRO.

Shapes: B rows, n events, V ids of a table, d_f width of field f, c copies.
"""

import torch
from torch import Tensor, nn

from infnet.batch import Batch
from infnet.model.inputs import Inputs
from infnet.schema import FIRST_KNOWN, PADDING, UNKNOWN, Schema

INIT_STD = 0.02


class EmbeddingTables(nn.Module):
    """One `nn.Embedding(sparse=True)` per table of the schema; fields and events may share one.

    Row 0 is padding: zero, and its gradient is always zero. All other rows start as N(0, 0.02²).
    With `copies` = c every id has c embeddings side by side (width c·d), for models that keep one
    per task; with 0 there are no tables, for models that read numbers only.
    """

    def __init__(self, schema: Schema, copies: int = 1) -> None:
        super().__init__()
        self.schema = schema
        self.specs = schema.tables if copies else {}
        # A list: a ModuleDict refuses names that a feature may have (`items`, `a.b`).
        self.embeddings = nn.ModuleList(
            _table(spec.rows, spec.dim * copies) for spec in self.specs.values()
        )
        self.names = tuple(self.specs)
        means = [slot.mean for slot in schema.dense for _ in range(slot.width)]
        deviations = [slot.deviation for slot in schema.dense for _ in range(slot.width)]
        self.register_buffer("means", torch.tensor(means), persistent=False)
        self.register_buffer("deviations", torch.tensor(deviations), persistent=False)

    def table(self, name: str) -> nn.Embedding:
        """The embedding of a table of the schema."""
        embedding = self.embeddings[self.names.index(name)]
        assert isinstance(embedding, nn.Embedding)
        return embedding

    def forward(self, batch: Batch) -> Inputs:
        """Embed every field and event; standardise the statistics; other numbers are so already."""
        dense = (batch.dense - self.get_buffer("means")) / self.get_buffer("deviations")
        if not self.specs:
            return Inputs(fields={}, dense=dense, sequences={}, valid={}, ages={})
        fields = {
            slot.name: self.table(slot.table)(batch.ids[:, column])
            for column, slot in enumerate(self.schema.fields)
        }
        sequences: dict[str, Tensor] = {}
        for slot in self.schema.sequences:
            ids = batch.sequences[slot.name].ids
            parts = [self.table(t)(ids[..., column]) for column, t in enumerate(slot.tables)]
            sequences[slot.name] = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
        names = [slot.name for slot in self.schema.sequences]
        return Inputs(
            fields=fields,
            dense=dense,
            sequences=sequences,
            valid={name: batch.sequences[name].valid for name in names},
            ages={name: batch.sequences[name].ages for name in names},
        )

    @torch.no_grad()
    def fill_cold_start(self) -> None:
        """Give unseen ids the mean of the known rows, where the table asks for `cold_start: mean`.

        Call once after training, before predicting. A table without known rows keeps its row.
        """
        for name, spec in self.specs.items():
            weight = self.table(name).weight
            if spec.cold_start == "mean" and len(weight) > FIRST_KNOWN:
                weight[UNKNOWN] = weight[FIRST_KNOWN:].mean(dim=0)


def _table(rows: int, width: int) -> nn.Embedding:
    embedding = nn.Embedding(rows, width, padding_idx=PADDING, sparse=True)
    with torch.no_grad():
        embedding.weight.normal_(std=INIT_STD)
        embedding.weight[PADDING].zero_()
    return embedding
