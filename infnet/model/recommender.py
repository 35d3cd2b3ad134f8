"""Recommender: embedding tables and the network above them, from a batch to predictions."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from infnet.batch import Batch
from infnet.model.base import BaseModel
from infnet.model.tables import EmbeddingTables
from infnet.schema import Schema


class Recommender(nn.Module):
    """`tables` (sparse gradients) and `network` (dense gradients), apart for whoever trains them.

    `config` is one model of the union (`InfnetConfig.model`, or one of its `rivals`).
    """

    def __init__(self, config: BaseModel, schema: Schema) -> None:
        super().__init__()
        self.schema = schema
        self.tables = EmbeddingTables(schema, copies=config.table_copies(schema))
        self.network = config.build(schema)

    def forward(self, batch: Batch) -> dict[str, Float[Tensor, "B _"]]:
        """Logits of every task, in the order of the schema."""
        return self.network(self.tables(batch))

    @torch.no_grad()
    def predict(self, batch: Batch) -> dict[str, Float[Tensor, " B"]]:
        """What a user sees: a probability, an amount, a level. Put the model in `eval()` first."""
        logits = self(batch)
        return {
            name: task.predict(logits[name].float()) for name, task in self.schema.tasks.items()
        }
