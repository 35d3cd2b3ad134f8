"""What a feature type must offer. One file per type; the union in `__init__` is the registry.

A feature goes through three stages, each free of the others:

* **demand** says what must be known of the training rows: a vocabulary, a mergeable summary, or
  columns that depend on *earlier rows* (a history, a running statistic of a key);
* **fit** turns summaries into a state (plain JSON);
* **encode** is a pure function of raw columns, derived columns and state. It sees one row at a
  time, so the same code encodes a shard of the log, an evaluated file and a served request: no
  training-serving skew.

Derived columns are added to the raw table before `encode` by whoever drives it: prepare (from
sorted passes over the log), `infnet evaluate --data FILE` (from the frozen look-up tables), the
server (from the request).

    __time                       int64       milliseconds of the row; 0 in logs without time
    __label.<task>               float64     label of a task, null where not observed
    __history.<feature>          list<struct<event columns…, __time: int64>>  oldest first
    __statistic.<feature>.count  float64     training rows of the row's key whose value is observed
    __statistic.<feature>.sum    float64     sum of the value over them

`infnet.features.feature_set.FeatureSet.with_roles` adds the first two.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
from pydantic import model_validator

from infnet.features.columns import as_numpy, column, missing, numbers, pc, text
from infnet.features.vocabulary import Vocabulary
from infnet.schema import DenseSlot, FieldSlot, SequenceSlot, TableSpec
from rayrun.config import Config, Json

Shard = Literal["none", "rows"]


class VocabularyDemand(Config):
    """Distinct values of some columns over training rows, the most frequent first."""

    columns: tuple[str, ...]
    """One column; several where fields share an embedding table: their counts are added."""
    min_count: int
    max_size: int


class Where(Config):
    """A condition on one column. A missing value never satisfies it."""

    column: str
    op: Literal["==", "!=", ">", ">=", "<", "<="] = "=="
    value: float | bool | str

    @model_validator(mode="after")
    def _text_has_no_order(self) -> "Where":
        if isinstance(self.value, str) and self.op not in ("==", "!="):
            raise ValueError(f"op {self.op!r} needs a number as value, found {self.value!r}")
        return self

    def holds(self, rows: pa.Table) -> np.ndarray:
        """True for the rows that satisfy it."""
        compare = {"==": np.equal, "!=": np.not_equal, ">": np.greater, ">=": np.greater_equal}
        compare |= {"<": np.less, "<=": np.less_equal}
        found = column(rows, self.column)
        if isinstance(self.value, str):
            equal = as_numpy(pc.fill_null(pc.equal(text(found), self.value), False))
            return equal if self.op == "==" else ~equal & ~missing(found)
        values, _ = numbers(found)
        return compare[self.op](values, float(self.value)) & ~np.isnan(values)


class HistoryDemand(Config):
    """Events of the same user strictly earlier than the row, most recent kept."""

    where: Where | None
    """Which rows are events of this behaviour; None: all of them."""
    columns: tuple[str, ...]
    """Raw columns each event carries."""
    max_length: int


class StatisticDemand(Config):
    """Count and sum of a value over other training rows with the same key."""

    key: tuple[str, ...]
    value: str
    """Column, `task:<name>` for the label of a task, or empty: rows are only counted."""
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


@dataclass(frozen=True)
class Fitted:
    """What training taught one feature."""

    state: Json
    """Plain JSON, from `Feature.fit`."""
    vocabularies: Mapping[str, Vocabulary] = field(default_factory=dict)
    """By the name it has in `Demands.vocabularies`."""
    vectors: pa.Table | None = None
    """Pretrained vectors by key (`pretrained` only)."""
    references: "Mapping[str, tuple[Feature, Fitted]]" = field(default_factory=dict)
    """The features named by `Feature.references`, with what training taught them."""


class Problem(NamedTuple):
    """Why some rows cannot be used."""

    rows: np.ndarray
    """bool: the rows of the table that have the problem."""
    reason: str


class Feature(Config):
    """Base of the feature configs. `name` is the key under `features:` in the YAML."""

    def columns(self, name: str) -> frozenset[str]:
        """Raw columns of the row itself that `encode` or `derive` reads."""
        raise NotImplementedError

    def references(self) -> tuple[str, ...]:
        """Other features whose ids this one uses."""
        return ()

    def check_columns(self, name: str, schema: pa.Schema) -> None:
        """Refuse raw columns of a type that this feature cannot read.

        Raises:
            ConfigError: with the column, its type and what to do.
        """

    def demands(self, name: str, features: "Mapping[str, Feature]") -> Demands:
        """What must be computed over the training rows; `features` are all of the config."""
        return Demands()

    def problems(self, name: str, rows: pa.Table) -> list[Problem]:
        """Rows whose values break a promise of the feature; they are quarantined by prepare."""
        return []

    def summarise(self, name: str, rows: pa.Table) -> Json:
        """A bounded, mergeable summary of some training rows; they have `__row_id` and labels."""
        return {}

    def merge(self, parts: Sequence[Json]) -> Json:
        """Several summaries as one; the result does not depend on how rows were grouped."""
        return {}

    def fit(self, name: str, summary: Json) -> Json:
        """State from the merged summary of all training rows."""
        return {}

    def read_vectors(self, name: str) -> pa.Table | None:
        """Pretrained vectors by key, read once, when the encoder is fitted; else None."""
        return None

    def id_table(self, name: str, fitted: Fitted) -> TableSpec:
        """The embedding table of a feature that gives ids.

        Raises:
            NotImplementedError: the feature gives numbers, no ids.
        """
        raise NotImplementedError

    def ids(self, name: str, values: pa.Array, fitted: Fitted) -> np.ndarray:
        """int32 ids of raw values of the feature's column (rows, or the events of a history)."""
        raise NotImplementedError

    def split_tables(self, name: str) -> dict[str, bool]:
        """Its embedding tables, and whether training splits each by rows over its workers."""
        return {}

    def slots(self, name: str, fitted: Fitted) -> Slots:
        """What the model will see."""
        raise NotImplementedError

    def encode(self, name: str, rows: pa.Table, fitted: Fitted) -> dict[str, pa.Array]:
        """Encoded columns, named as shards name them (see `infnet.features.encoder`)."""
        raise NotImplementedError
