"""What a feature type must offer. One file per type; the union in `__init__` is the registry.

A feature goes through three stages, each free of the others:

* **demand** says what must be known of the training rows: a vocabulary, a mergeable summary, or columns
  that depend on *earlier rows* (a history, a running statistic of a key);
* **fit** turns summaries into a state (plain JSON);
* **encode** is a pure function of raw columns, derived columns and state. It sees one row at a time, so the
  same code encodes a shard of the log, an evaluated file and a served request: no training-serving skew.

Derived columns are added to the raw table before `encode` by whoever drives it: prepare (from sorted passes
over the log), `infnet evaluate --data FILE` (from the frozen look-up tables), the server (from the request).

    __history.<feature>          list<struct<event columns…, __time: int64>>  oldest first, at most max_length
    __statistic.<feature>.count  float64     earlier training rows of the row's key
    __statistic.<feature>.sum    float64     sum of the value over them
"""

from collections.abc import Sequence
from typing import Any, Literal

import pyarrow as pa

from infnet.schema import DenseSlot, FieldSlot, SequenceSlot, TableSpec
from rayrun.config import Config, Json


class VocabularyDemand(Config):
    """Distinct values of a column over training rows, the most frequent first."""

    column: str
    min_count: int
    max_size: int


class HistoryDemand(Config):
    """Events of the same user strictly earlier than the row, most recent kept."""

    where: tuple[str, str, float | str | bool] | None
    """(column, operator, value): which rows are events of this behaviour; None: all of them."""
    columns: tuple[str, ...]
    """Raw columns each event carries."""
    max_length: int
    column: str = ""
    """A raw list column that already holds the history (ids, oldest first); no pass is needed then."""


class StatisticDemand(Config):
    """Count and sum of a value over other training rows with the same key."""

    key: tuple[str, ...]
    value: str
    """Column, or `task:<name>` for the label of a task."""
    fold: Literal["earlier", "leave_one_out"]
    """Which training rows a training row sees: strictly earlier ones, or all but itself."""


class Demands(Config):
    """Everything a feature must have computed over the log before it can encode."""

    vocabularies: dict[str, VocabularyDemand] = {}
    histories: dict[str, HistoryDemand] = {}
    statistics: dict[str, StatisticDemand] = {}


class Slots(Config):
    """What a fitted feature contributes to the schema."""

    tables: dict[str, TableSpec] = {}
    fields: tuple[FieldSlot, ...] = ()
    dense: tuple[DenseSlot, ...] = ()
    sequences: tuple[SequenceSlot, ...] = ()


class Fitted:
    """State of one feature plus the vocabularies it may use (its own, or those it refers to)."""

    def __init__(self, state: Json, vocabularies: dict[str, "Any"]) -> None:
        self.state = state
        self.vocabularies = vocabularies


class Feature(Config):
    """Base of the feature configs. `name` is the key under `features:` in the YAML."""

    def columns(self, name: str) -> frozenset[str]:
        """Raw columns read."""
        raise NotImplementedError

    def demands(self, name: str, features: "dict[str, Feature]") -> Demands:
        """What must be computed over the training rows; `features` lets one refer to another's vocabulary."""
        return Demands()

    def summarise(self, name: str, rows: pa.Table) -> Json:
        """A bounded, mergeable summary of some training rows (columns named by `columns`)."""
        return {}

    def merge(self, summaries: Sequence[Json]) -> Json:
        """Several summaries as one; the result must not depend on how rows were grouped."""
        return {}

    def fit(self, name: str, summary: Json) -> Json:
        """State from the merged summary of all training rows."""
        return {}

    def slots(self, name: str, fitted: Fitted, features: "dict[str, Feature]") -> Slots:
        """What the model will see."""
        raise NotImplementedError

    def encode(self, name: str, rows: pa.Table, fitted: Fitted) -> dict[str, pa.Array]:
        """Encoded columns, named as shards name them (see `infnet.features.encoder`)."""
        raise NotImplementedError
