"""Behaviour sequence: past events of one kind, most recent kept, each a few ids and an age."""

from collections.abc import Mapping
from typing import Annotated, Literal

import numpy as np
import pyarrow as pa
from pydantic import model_validator

from infnet.features.base import Demands, Feature, Fitted, HistoryDemand, Shard, Slots, Where
from infnet.features.columns import as_lists, as_numpy, check_number, column, lists
from infnet.schema import SequenceSlot
from rayrun.config import ConfigError, Place

MAX_LENGTH = 512
MS_PER_DAY = 86_400_000.0


def age(now: np.ndarray, then: np.ndarray) -> np.ndarray:
    """float32 days from an event to the row, of times in milliseconds."""
    return ((now - then) / MS_PER_DAY).astype(np.float32)


class SequenceFeature(Feature):
    """One behaviour type: s_a in INFNet.

    Events come from the log itself (rows of the same user, strictly earlier, that satisfy
    `behaviour`), or from `column`, a list that the log already carries (ids, oldest first, ages
    unknown and given as 0).
    """

    type: Literal["sequence"] = "sequence"
    fields: tuple[str, ...]
    """Features that describe an event (categorical, or numbers in buckets): columns and ids."""
    behaviour: Where | None = None
    """Which rows are events, for instance {column: is_click, value: 1}. Absent: all rows."""
    column: str = ""
    """A list column that holds the history; `fields` then names the one feature it lists."""
    max_length: int = 50
    """Most recent events kept, 1 to 512."""
    positions: bool = False
    """Add a learned embedding of the position counted from the most recent event."""
    decay: float = 0.0
    """λ per day of the time decay exp(−λ Δt) of each event's token; 0: off."""
    pooling: Literal["sum", "mean", "attention"] = "sum"
    """How it becomes one vector where a model wants one."""
    share_tables: bool = True
    """Events use the tables of their fields; false: tables of this behaviour alone (E_a^seq)."""
    shard: Annotated[Shard, Place] = "none"
    """`rows`: the workers of a training split the tables of this behaviour alone, row by row."""

    @model_validator(mode="after")
    def _settings_fit(self) -> "SequenceFeature":
        if not 1 <= self.max_length <= MAX_LENGTH:
            raise ValueError(f"max_length must be 1 to {MAX_LENGTH}, found {self.max_length}")
        if self.decay < 0:
            raise ValueError(f"decay must be at least 0 (per day), found {self.decay}")
        if self.shard == "rows" and self.share_tables:
            raise ValueError(
                "shard: rows needs tables of this behaviour alone (share_tables: false); of a "
                "shared table the feature that has it says so: set shard there"
            )
        if not self.fields or len(set(self.fields)) < len(self.fields):
            raise ValueError(
                f"fields must name at least one feature, each once, found {self.fields}"
            )
        if self.column and (len(self.fields) != 1 or self.behaviour or self.decay):
            raise ValueError(
                "with column (a list of ids) exactly one of fields is needed, and neither "
                "behaviour nor decay, for its events have no columns and no times"
            )
        return self

    def split_tables(self, name: str) -> dict[str, bool]:
        """Those of this behaviour alone."""
        if self.share_tables:
            return {}
        return {f"{name}.{field}": self.shard == "rows" for field in self.fields}

    def columns(self, name: str) -> frozenset[str]:
        """The list column, if there is one."""
        return frozenset([self.column] if self.column else [])

    def references(self) -> tuple[str, ...]:
        """The fields of an event."""
        return self.fields

    def check_columns(self, name: str, schema: pa.Schema) -> None:
        """`column` must hold lists."""
        if self.behaviour and not isinstance(self.behaviour.value, str):
            check_number(schema, self.behaviour.column, f"features.{name}.behaviour")
        if not self.column:
            return
        kind = schema.field(self.column).type
        if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
            raise ConfigError(
                f"features.{name}.column: {self.column} must hold lists of ids, found the type "
                f"{kind}; leave `column` out to collect the history from earlier rows"
            )

    def demands(self, name: str, features: Mapping[str, Feature]) -> Demands:
        """The history, unless the log carries it."""
        if self.column:
            return Demands()
        columns = tuple(dict.fromkeys(c for f in self.fields for c in features[f].columns(f)))
        history = HistoryDemand(where=self.behaviour, columns=columns, max_length=self.max_length)
        return Demands(histories={name: history})

    def slots(self, name: str, fitted: Fitted) -> Slots:
        """One sequence, with tables of its own where it does not share."""
        tables, used = {}, []
        for field in self.fields:
            feature, its_fitted = fitted.references[field]
            if self.share_tables:
                used.append(feature.slots(field, its_fitted).fields[0].table)
            else:
                used.append(f"{name}.{field}")
                tables[used[-1]] = feature.id_table(field, its_fitted)
        slot = SequenceSlot(
            name=name,
            max_length=self.max_length,
            tables=tuple(used),
            fields=self.fields,
            positions=self.positions,
            decay=self.decay,
            pooling=self.pooling,
        )
        return Slots(tables=tables, sequences=(slot,))

    def encode(self, name: str, rows: pa.Table, fitted: Fitted) -> dict[str, pa.Array]:
        """`s.<name>.ids.<field>` and `s.<name>.ages` (days)."""
        source = self.column or f"__history.{name}"
        events, lengths = lists(column(rows, source), self.max_length)
        encoded = {}
        for field in self.fields:
            feature, its_fitted = fitted.references[field]
            values = events if self.column else events.field(*feature.columns(field))
            ids = feature.ids(field, values, its_fitted)
            encoded[f"s.{name}.ids.{field}"] = as_lists(ids, lengths)
        ages = np.zeros(len(events), dtype=np.float32)
        if not self.column:
            now = np.repeat(as_numpy(column(rows, "__time")), lengths)
            ages = age(now, as_numpy(events.field("__time")))
        encoded[f"s.{name}.ages"] = as_lists(ages, lengths)
        return encoded
