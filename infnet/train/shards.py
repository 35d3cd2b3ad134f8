"""Tables split by rows over the workers: the rows of a batch are brought, gradients go back.

A step asks once, for the batch of all its passes and all split tables together:

    there   how many ids of each table a worker asks of each other (W·T numbers)
            the distinct ids                                       (R numbers: 4 bytes each)
    back    their rows                                             (R·D numbers: 4 bytes each)

and once more, with ids and summed gradients, the other way. Who holds a row adds what came for it,
in rank order, and updates it (`infnet.train.rows`); its optimizer state never moves. The sums are
those of a table that every worker holds whole (`rows.exchange`), to the last bit.

Shapes: W workers, T split tables, R distinct ids of a worker's batch, A rows that all workers ask
of this one, D width of a table.
"""

from collections.abc import Iterator, Mapping

import torch
from jaxtyping import Int64
from torch import Tensor

from infnet.batch import Batch
from infnet.config import InfnetConfig
from infnet.model.tables import Brought, EmbeddingTables, Share
from infnet.schema import Schema
from infnet.train.touched import Touched, added, coalesced
from rayrun.config import ConfigError
from rayrun.ray.worker import Worker

SENT_AT_ONCE = 4 << 20
"""Bytes of a table that are brought together at a time where it is written."""


def share_of(config: InfnetConfig, schema: Schema, worker: Worker) -> Share:
    """What a worker holds of the tables that `config` splits.

    Raises:
        ConfigError: a table to split is not in the dataset, or has fewer rows than there are
            workers.
    """
    for table, key in config.split_tables.items():
        if table not in schema.tables:
            raise ConfigError(
                f"{key}: rows splits the table {table!r}, which the dataset does not have "
                f"(it has {', '.join(schema.tables) or 'none'}); prepare the data with these "
                "features, or leave shard out"
            )
        if (rows := schema.tables[table].rows) < worker.world_size:
            raise ConfigError(
                f"{key}: rows needs a row for each worker: the table {table!r} has {rows} rows, "
                f"compute.workers is {worker.world_size}; leave shard out, a table of this size "
                "is best held whole"
            )
    if worker.world_size == 1:
        return Share()
    return Share(worker.rank, worker.world_size, frozenset(config.split_tables))


class Shards:
    """The split tables of a model being trained. Methods are collectives, unless none is split."""

    def __init__(self, tables: EmbeddingTables, worker: Worker) -> None:
        """`tables` hold this worker's share."""
        self.tables, self.worker = tables, worker
        self.parameters = {
            name: f"embeddings.{tables.names.index(name)}.weight" for name in tables.split
        }
        """Of each split table."""

    def bring(self, batch: Batch | None) -> dict[str, Brought]:
        """The rows that a batch needs; None asks for nothing and answers the others."""
        if not self.tables.split:
            return {}
        weights = {name: self.tables.table(name).weight.detach() for name in self.tables.split}
        if batch is None:
            nothing = torch.empty(0, dtype=torch.int64, device=self.worker.device)
            needed = dict.fromkeys(weights, nothing)
        else:
            needed = self.tables.needed(batch)
        route = _Route(needed, self.worker)
        held = {name: weights[name].index_select(0, rows) for name, rows in route.asked.items()}
        found: dict[str, Brought] = {}
        for name, rows in route.to_askers(held).items():
            padding = rows.new_zeros(1, rows.shape[1])
            ids = torch.cat([needed[name].new_zeros(1), needed[name]])
            found[name] = Brought(ids, torch.cat([padding, rows]).requires_grad_())
        return found

    def take_back(self, brought: Mapping[str, Brought]) -> dict[str, Touched]:
        """Gradients that all workers have for rows held here, by the name of the parameter.

        `rows` of the result are places in this worker's share.
        """
        if not self.tables.split:
            return {}
        mine: dict[str, Touched] = {}
        for name, one in brought.items():
            places, gradients = coalesced(name, one.rows)
            mine[name] = Touched(one.ids[places], gradients)
        route = _Route({name: touched.rows for name, touched in mine.items()}, self.worker)
        gradients = route.to_holders({name: touched.gradients for name, touched in mine.items()})
        return {
            self.parameters[name]: added(rows, gradients[name])
            for name, rows in route.asked.items()
        }

    def blocks(self, name: str) -> Iterator[Tensor]:
        """The whole of a split table by blocks of rows, in order: worker 0 gets them, all call it.

        On the CPU; to the other workers the blocks are empty.
        """
        worker, weight = self.worker, self.tables.table(name).weight.detach()
        workers, total = worker.world_size, self.tables.specs[name].rows
        # Rows of each worker in a block
        part = max(1, SENT_AT_ONCE // (4 * weight.shape[1] * workers))
        for start in range(0, -(-total // workers), part):
            mine = weight[start : start + part]
            sent = [len(mine) if rank == 0 else 0 for rank in range(workers)]
            counts = [
                len(range(rank, total, workers)[start : start + part]) for rank in range(workers)
            ]
            received = counts if worker.rank == 0 else [0] * workers
            found = worker.exchange(mine, sent, received).cpu()
            block = found.new_empty(len(found), weight.shape[1])
            if worker.rank == 0:
                for rank, rows in enumerate(found.split(counts)):
                    block[rank::workers] = rows
            yield block


class _Route:
    """Which rows go between which workers, in one direction and back. Building it is a collective.

    `ids` are ascending and distinct. Messages are ordered by the worker at the other end, then by
    table.
    """

    def __init__(self, ids: Mapping[str, Int64[Tensor, " _"]], worker: Worker) -> None:
        self._worker, self._tables = worker, list(ids)
        workers = worker.world_size
        holders = {name: wanted % workers for name, wanted in ids.items()}
        # Stable: by holder, and ascending below each
        self._order = {name: torch.argsort(h, stable=True) for name, h in holders.items()}
        sent = torch.stack([torch.bincount(h, minlength=workers) for h in holders.values()], dim=1)
        tables = [len(self._tables)] * workers
        received = worker.exchange(sent.flatten(), tables, tables)
        self._sent = sent.tolist()
        self._received = received.view(workers, -1).tolist()
        places = {name: (wanted // workers).int() for name, wanted in ids.items()}
        self.asked: dict[str, Int64[Tensor, " A"]] = {
            name: found.long() for name, found in self.to_holders(places).items()
        }
        """Places, in this worker's share, of the rows that workers ask of it; in rank order."""

    def to_holders(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A value for each id goes to who holds its row, there in the order of `asked`."""
        ordered = {name: values[name][self._order[name]] for name in self._tables}
        return self._send(ordered, self._sent, self._received)

    def to_askers(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A value for each of `asked` goes to who asked, there in the order of its ids."""
        found = self._send(values, self._received, self._sent)
        for name, order in self._order.items():
            inverse = torch.empty_like(order)
            inverse[order] = torch.arange(len(order), device=order.device)
            found[name] = found[name][inverse]
        return found

    def _send(
        self, values: Mapping[str, Tensor], sent: list[list[int]], received: list[list[int]]
    ) -> dict[str, Tensor]:
        """One message for all tables. `sent[w][t]` rows of table t go to worker w."""
        shapes = [values[name].shape[1:] for name in self._tables]
        widths = [shape.numel() for shape in shapes]
        columns = range(len(self._tables))
        pieces = [
            values[name].split([counts[t] for counts in sent])
            for t, name in enumerate(self._tables)
        ]
        message = torch.cat([pieces[t][w].flatten() for w in range(len(sent)) for t in columns])
        found = self._worker.exchange(
            message, [_size(c, widths) for c in sent], [_size(c, widths) for c in received]
        )
        parts = found.split(
            [c * w for counts in received for c, w in zip(counts, widths, strict=True)]
        )
        return {
            name: torch.cat([part.view(-1, *shapes[t]) for part in parts[t :: len(columns)]])
            for t, name in enumerate(self._tables)
        }


def _size(counts: list[int], widths: list[int]) -> int:
    return sum(count * width for count, width in zip(counts, widths, strict=True))
