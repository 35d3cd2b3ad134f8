"""Embedding tables: ids to vectors, the only part of a recommender that grows with the catalogue.

Tables stand apart from the network: their gradients are sparse (only rows of the batch), so they
are updated row by row and never enter DDP or ZeRO. A table is held whole, or is split by rows over
the processes that train it; then the rows that a batch needs are brought before it is embedded
(`infnet.train.shards`), and nothing else changes.

Shapes: B rows, n events, V ids of a table, d_f width of field f, c copies, R distinct ids of a
batch, D width of a table.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from infnet.batch import Batch
from infnet.model.inputs import Inputs
from infnet.schema import FIRST_KNOWN, PADDING, UNKNOWN, Schema

INIT_STD = 0.02
DRAWN_AT_ONCE = 1 << 16
"""Rows of a split table that are drawn, or summed, at a time."""


class Share(NamedTuple):
    """What a process holds of split tables: the rows r with r mod `of` = `rank`, as row r // `of`.

    The ids of a vocabulary go by frequency, so dealing them out one by one gives every process as
    many hot rows as any other; in blocks the first process would hold them all.
    """

    rank: int = 0
    of: int = 1
    tables: frozenset[str] = frozenset()
    """Names of the tables that are split; all others are held whole."""

    def rows(self, total: int) -> int:
        """How many of the `total` rows of a split table are held here."""
        return len(range(self.rank, total, self.of))


class Brought(NamedTuple):
    """The rows of a split table that a batch needs, brought from the processes that hold them."""

    ids: Int64[Tensor, " R"]
    """Ascending; the first is padding."""
    rows: Float[Tensor, "R D"]
    """A leaf: the gradient that it collects goes back to where the rows came from."""

    def look_up(self, ids: Int64[Tensor, "..."]) -> Float[Tensor, "... D"]:
        """What an `nn.Embedding` of the whole table gives, and the same gradient."""
        places = torch.searchsorted(self.ids, ids.contiguous())
        return F.embedding(places, self.rows, padding_idx=PADDING, sparse=True)


class EmbeddingTables(nn.Module):
    """One `nn.Embedding(sparse=True)` per table of the schema; fields and events may share one.

    Row 0 is padding: zero, and its gradient is always zero. All other rows start as N(0, 0.02²),
    the same whether a table is split or not. With `copies` = c every id has c embeddings side by
    side (width c·d), for models that keep one per task; with 0 there are no tables, for models that
    read numbers only. `empty` tables have shapes and no values, for who loads them.
    """

    def __init__(
        self,
        schema: Schema,
        copies: int = 1,
        *,
        share: Share = Share(),  # noqa: B008 (a tuple of constants)
        empty: bool = False,
    ) -> None:
        super().__init__()
        self.schema, self.share = schema, share
        self.specs = schema.tables if copies else {}
        # A list: a ModuleDict refuses names that a feature may have (`items`, `a.b`).
        self.embeddings = nn.ModuleList(
            _part(spec.rows, spec.dim * copies, share)
            if name in share.tables
            else _table(spec.rows, spec.dim * copies, empty=empty)
            for name, spec in self.specs.items()
        )
        self.names = tuple(self.specs)
        self.split = tuple(name for name in self.names if name in share.tables)
        means = [slot.mean for slot in schema.dense for _ in range(slot.width)]
        deviations = [slot.deviation for slot in schema.dense for _ in range(slot.width)]
        self.register_buffer("means", torch.tensor(means), persistent=False)
        self.register_buffer("deviations", torch.tensor(deviations), persistent=False)

    def table(self, name: str) -> nn.Embedding:
        """The embedding of a table of the schema; of a split one, the rows held here."""
        embedding = self.embeddings[self.names.index(name)]
        assert isinstance(embedding, nn.Embedding)
        return embedding

    def forward(self, batch: Batch, brought: Mapping[str, Brought] | None = None) -> Inputs:
        """Embed every field and event; standardise the statistics; other numbers are so already.

        `brought` holds the rows of the split tables, by name.
        """
        dense = (batch.dense - self.get_buffer("means")) / self.get_buffer("deviations")
        if not self.specs:
            return Inputs(fields={}, dense=dense, sequences={}, valid={}, ages={})

        def look_up(table: str, ids: Tensor) -> Tensor:
            if table in self.share.tables:
                assert brought is not None, f"no rows of the split table {table} were brought"
                return brought[table].look_up(ids)
            return self.table(table)(ids)

        fields = {
            slot.name: look_up(slot.table, batch.ids[:, column])
            for column, slot in enumerate(self.schema.fields)
        }
        sequences: dict[str, Tensor] = {}
        for slot in self.schema.sequences:
            ids = batch.sequences[slot.name].ids
            parts = [look_up(table, ids[..., column]) for column, table in enumerate(slot.tables)]
            sequences[slot.name] = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
        names = [slot.name for slot in self.schema.sequences]
        return Inputs(
            fields=fields,
            dense=dense,
            sequences=sequences,
            valid={name: batch.sequences[name].valid for name in names},
            ages={name: batch.sequences[name].ages for name in names},
        )

    def needed(self, batch: Batch) -> dict[str, Int64[Tensor, " _"]]:
        """The distinct ids of a batch in each split table, ascending, without padding."""
        found: dict[str, list[Tensor]] = {name: [] for name in self.split}
        for column, slot in enumerate(self.schema.fields):
            if slot.table in found:
                found[slot.table].append(batch.ids[:, column])
        for slot in self.schema.sequences:
            for column, table in enumerate(slot.tables):
                if table in found:
                    found[table].append(batch.sequences[slot.name].ids[..., column].flatten())
        distinct = {
            name: torch.unique(torch.cat(ids)) if ids else batch.ids.new_empty(0)
            for name, ids in found.items()
        }
        return {name: ids[ids != PADDING] for name, ids in distinct.items()}

    @torch.no_grad()
    def fill_cold_start(self, total: Callable[[Tensor], Tensor] = lambda part: part) -> None:
        """Give unseen ids the mean of the known rows, where the table asks for `cold_start: mean`.

        Call once after training, before predicting. A table without known rows keeps its row.
        `total` adds up what the processes of a split table have; it is a collective then.
        """
        for name, spec in self.specs.items():
            if spec.cold_start != "mean" or spec.rows <= FIRST_KNOWN:
                continue
            weight, first = self.table(name).weight, FIRST_KNOWN
            if name in self.share.tables:
                first = len(range(self.share.rank, FIRST_KNOWN, self.share.of))
            # In float64, so that the order of the sum does not show in the last digit.
            known = torch.zeros(weight.shape[1], dtype=torch.float64, device=weight.device)
            for rows in weight[first:].split(DRAWN_AT_ONCE):
                known += rows.sum(dim=0, dtype=torch.float64)
            if name in self.share.tables:
                known = total(known)
            mean = known / (spec.rows - FIRST_KNOWN)
            self.unknown(name).copy_(mean)

    def unknown(self, name: str) -> Float[Tensor, "_ D"]:
        """The row of an unseen id, in place: one row, or none where another process holds it."""
        weight = self.table(name).weight
        if name not in self.share.tables:
            return weight[UNKNOWN : UNKNOWN + 1]
        place, holder = divmod(UNKNOWN, self.share.of)
        return weight[place : place + 1] if holder == self.share.rank else weight[:0]


def _table(rows: int, width: int, *, empty: bool) -> nn.Embedding:
    if empty:
        shape = torch.empty(rows, width, device="meta")
        return nn.Embedding.from_pretrained(shape, freeze=False, padding_idx=PADDING, sparse=True)
    embedding = nn.Embedding(rows, width, padding_idx=PADDING, sparse=True)
    with torch.no_grad():
        embedding.weight.normal_(std=INIT_STD)
        embedding.weight[PADDING].zero_()
    return embedding


def _part(rows: int, width: int, share: Share) -> nn.Embedding:
    """This process's rows of `_table`, which never stands whole in memory."""
    # All numbers are drawn, those that others keep too, so that no row depends on who holds it.
    for _ in _drawn(rows, width):
        pass  # as an `nn.Embedding` does by itself, before the values that count are drawn
    held = torch.empty(share.rows(rows), width)
    for start, block in _drawn(rows, width):
        first = -(start - share.rank) % share.of
        mine = block[first :: share.of]
        at = (start + first) // share.of
        held[at : at + len(mine)] = mine
    if share.rank == PADDING % share.of:
        held[PADDING // share.of] = 0
    return nn.Embedding.from_pretrained(held, freeze=False, sparse=True)


def _drawn(rows: int, width: int) -> Iterator[tuple[int, Tensor]]:
    """(first row, values) of blocks that hold together what one `normal_` would fill a table with.

    It draws 16 numbers at a time and, of a table that is no multiple, the last 16 again: all blocks
    but the last are multiples, and the last has at least 16 numbers.
    """
    start = 0
    while start < rows:
        stop = start + DRAWN_AT_ONCE
        if rows - stop < 16:
            stop = rows
        yield start, torch.empty(stop - start, width).normal_(std=INIT_STD)
        start = stop
