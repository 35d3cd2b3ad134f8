"""Categorical feature: one value per row, one embedding per value, by vocabulary or by hash."""

from collections.abc import Mapping
from typing import Annotated, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from infnet.features.base import Demands, Feature, Fitted, Shard, Slots, VocabularyDemand
from infnet.features.columns import as_numpy, check_value, column, plain
from infnet.features.hashing import hash_values
from infnet.features.scaled import check_dim
from infnet.schema import FIRST_KNOWN, FieldSlot, TableSpec
from rayrun.config import Config, Place


class VocabularyIds(Config):
    """A value seen often enough in training has a row of its own; all others share `unknown`."""

    type: Literal["vocabulary"] = "vocabulary"
    min_count: int = 1
    """Training rows a value must have; 2 or more lets `unknown` be trained on the rare ones."""
    max_size: int = 10_000_000
    """The most frequent values are kept."""

    @model_validator(mode="after")
    def _counts_are_possible(self) -> "VocabularyIds":
        if self.min_count < 1 or self.max_size < 1:
            raise ValueError(
                "min_count and max_size must be at least 1, "
                f"found {self.min_count} and {self.max_size}"
            )
        return self


class HashIds(Config):
    """A value's row is its hash modulo `buckets`: no pass over the log, no unknown values.

    Two values share a row with probability 1 / buckets; among n values n² / 2·buckets pairs do.
    """

    type: Literal["hash"] = "hash"
    buckets: int

    @model_validator(mode="after")
    def _buckets_are_possible(self) -> "HashIds":
        if not 1 <= self.buckets <= 2**31 - 3:
            raise ValueError(f"buckets must be 1 to 2147483645, found {self.buckets}")
        return self


class CategoricalFeature(Feature):
    """A column whose values are names. A missing value is a value like any other."""

    type: Literal["categorical"] = "categorical"
    column: str
    encoding: Annotated[VocabularyIds | HashIds, Field(discriminator="type")] = VocabularyIds()
    dim: int = 16
    """Width of an embedding, 8 to 128."""
    table: str = ""
    """Fields that name the same table share embeddings and vocabulary. Empty: its own table."""
    cold_start: Literal["unknown", "mean"] = "unknown"
    """An unseen value gets the row `unknown`, trained on rare ones, or the mean of known rows."""
    shard: Annotated[Shard, Place] = "none"
    """`rows`: the workers of a training split the table, row by row, instead of each holding all of
    it. What is learnt is the same; fields that share the table must agree."""

    @model_validator(mode="after")
    def _settings_fit(self) -> "CategoricalFeature":
        check_dim(self.dim)
        if self.cold_start == "mean" and isinstance(self.encoding, HashIds):
            raise ValueError(
                "cold_start: mean needs encoding: vocabulary; a hash knows no unseen values"
            )
        return self

    def table_name(self, name: str) -> str:
        """The embedding table, and the vocabulary of the same name."""
        return self.table or name

    def split_tables(self, name: str) -> dict[str, bool]:
        """Its own, or the one it shares."""
        return {self.table_name(name): self.shard == "rows"}

    def columns(self, name: str) -> frozenset[str]:
        """The column."""
        return frozenset([self.column])

    def check_columns(self, name: str, schema: pa.Schema) -> None:
        """Lists are refused."""
        check_value(schema, self.column, f"features.{name}.column")

    def demands(self, name: str, features: Mapping[str, Feature]) -> Demands:
        """A vocabulary over the columns of all fields that share the table."""
        if isinstance(self.encoding, HashIds):
            return Demands()
        table = self.table_name(name)
        columns = {
            f.column
            for n, f in features.items()
            if isinstance(f, CategoricalFeature) and f.table_name(n) == table
        }
        demand = VocabularyDemand(
            columns=tuple(sorted(columns)),
            min_count=self.encoding.min_count,
            max_size=self.encoding.max_size,
        )
        return Demands(vocabularies={table: demand})

    def id_table(self, name: str, fitted: Fitted) -> TableSpec:
        """One row per known value or bucket, after padding and unknown."""
        if isinstance(self.encoding, HashIds):
            rows = self.encoding.buckets + FIRST_KNOWN
        else:
            rows = fitted.vocabularies[self.table_name(name)].rows
        return TableSpec(rows=rows, dim=self.dim, cold_start=self.cold_start)

    def ids(self, name: str, values: pa.Array, fitted: Fitted) -> np.ndarray:
        """int32 ids of raw values, each distinct value looked up once."""
        distinct = plain(values).dictionary_encode("encode")
        known = self.ids_of(name, hash_values(distinct.dictionary), fitted)
        return known[as_numpy(distinct.indices)]

    def ids_of(self, name: str, hashes: np.ndarray, fitted: Fitted) -> np.ndarray:
        """`ids` of values whose hashes are known."""
        if isinstance(self.encoding, HashIds):
            bucket = hashes % np.uint64(self.encoding.buckets)
            return bucket.astype(np.int32) + np.int32(FIRST_KNOWN)
        return fitted.vocabularies[self.table_name(name)].find(hashes)

    def slots(self, name: str, fitted: Fitted) -> Slots:
        """One field."""
        table = self.table_name(name)
        return Slots(
            tables={table: self.id_table(name, fitted)}, fields=(FieldSlot(name=name, table=table),)
        )

    def encode(self, name: str, rows: pa.Table, fitted: Fitted) -> dict[str, pa.Array]:
        """`c.<name>`."""
        return {f"c.{name}": pa.array(self.ids(name, column(rows, self.column), fitted))}
