"""Recommender: embedding tables and the network above them, from a batch to predictions."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from infnet.batch import Batch
from infnet.model.base import BaseModel
from infnet.model.tables import Brought, EmbeddingTables
from infnet.schema import Schema


class Recommender(nn.Module):
    """`tables` (sparse gradients) and `network` (dense gradients), apart for whoever trains them.

    `config` is one model of the union (`InfnetConfig.model`, or one of its `rivals`); `tables`
    those of the model, where they are not simply new and whole.
    """

    def __init__(
        self, config: BaseModel, schema: Schema, tables: EmbeddingTables | None = None
    ) -> None:
        super().__init__()
        self.schema = schema
        copies = config.table_copies(schema)
        self.tables = EmbeddingTables(schema, copies) if tables is None else tables
        self.network = config.build(schema)

    def forward(
        self, batch: Batch, brought: Mapping[str, Brought] | None = None
    ) -> dict[str, Float[Tensor, "B _"]]:
        """Logits of every task, in the order of the schema; `brought`: rows of split tables."""
        return self.network(self.tables(batch, brought))

    @torch.no_grad()
    def predict(self, batch: Batch) -> dict[str, Float[Tensor, " B"]]:
        """What a user sees: a probability, an amount, a level. Put the model in `eval()` first."""
        logits = self(batch)
        return {
            name: task.predict(logits[name].float()) for name, task in self.schema.tasks.items()
        }
