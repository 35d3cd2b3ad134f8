"""Encoder: everything training taught the features; from raw rows to the columns of a shard.

    row_id int64 · user int64 · time int64 (ms) · weight float32
    c.<field> int32 · d.<slot> float32 or fixed_size_list<float32>
    s.<sequence>.ids.<field> list<int32> · s.<sequence>.ages list<float32> (days)
    y.<task> float32, null where not observed

`encode` sees one row at a time: what it gives for a row does not depend on the other rows of the
table.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa

from infnet.features.base import Demands, Fitted
from infnet.features.columns import as_numpy, column, numbers, plain
from infnet.features.digests import table_digest
from infnet.features.feature_set import FeatureSet
from infnet.features.hashing import row_keys
from infnet.features.lookups import Lookup, histories_of, statistics_of
from infnet.features.vocabulary import Vocabulary
from infnet.schema import DenseSlot, FieldSlot, Schema, SequenceSlot, TableSpec
from rayrun.config import ConfigError, Json, digest_of

FORMAT_VERSION = 1


@dataclass(frozen=True, repr=False)
class Encoder:
    """Fitted features. Immutable; goes to worker processes by pickle.

    `without_lookups` makes it light for those that only `encode`.
    """

    features: FeatureSet
    states: Mapping[str, Json]
    vocabularies: Mapping[str, Vocabulary]
    vectors: Mapping[str, pa.Table] = field(default_factory=dict)
    statistics: Mapping[str, Lookup] = field(default_factory=dict)
    """By feature: count and sum of every key at the end of training. Needed by `derive` only."""
    histories: Mapping[str, Lookup] = field(default_factory=dict)
    """By feature: the most recent events of every user then. Needed by `derive` only."""
    digest: str = ""
    """`sha256:…` of the content: config of the features and tasks, states, tables."""

    @classmethod
    def fit(
        cls,
        features: FeatureSet,
        summary: Json,
        counts: Mapping[str, pa.Table],
        *,
        statistics: Mapping[str, pa.Table] | None = None,
        histories: Mapping[str, pa.Table] | None = None,
    ) -> "Encoder":
        """From the merged summaries and value counts of all training rows.

        `statistics[feature]` has the columns `key` (int64, `hashing.row_keys` of the key columns),
        `count`, `sum`; `histories[feature]` has `key` (of the user column) and `events`
        (list<struct<…, __time>>, oldest first).

        Raises:
            ConfigError: values that a feature cannot be fitted on.
        """
        demands = features.demands()
        states = {n: f.fit(n, summary[n]) for n, f in features.features.items()}
        vocabularies = {
            name: Vocabulary.fit(counts[name], min_count=demand.min_count, max_size=demand.max_size)
            for name, demand in demands.vocabularies.items()
        }
        vectors = {
            name: table
            for name, feature in features.features.items()
            if (table := feature.read_vectors(name)) is not None
        }
        return cls.of(
            features,
            states,
            vocabularies,
            vectors,
            statistics=statistics or {},
            histories=histories or {},
        )

    @classmethod
    def of(
        cls,
        features: FeatureSet,
        states: Mapping[str, Json],
        vocabularies: Mapping[str, Vocabulary],
        vectors: Mapping[str, pa.Table],
        *,
        statistics: Mapping[str, pa.Table],
        histories: Mapping[str, pa.Table],
        digest: str = "",
    ) -> "Encoder":
        """From its parts; without `digest`, that of the content is computed."""
        encoder = cls(
            features,
            states,
            vocabularies,
            vectors,
            {n: Lookup.of(t, f"features.{n}") for n, t in statistics.items()},
            {n: Lookup.of(t, f"features.{n}") for n, t in histories.items()},
            digest,
        )
        return encoder if digest else replace(encoder, digest=encoder.content_digest())

    def write(self, directory: Path) -> None:
        """Write the directory `encoder/` (see `encoder_files`)."""
        from infnet.features.encoder_files import write_encoder

        write_encoder(self, directory)

    @staticmethod
    def read(directory: Path, *, lookups: bool = True) -> "Encoder":
        """Read what `write` wrote; `lookups=False` where only `encode` is needed.

        Raises:
            ConfigError: missing, damaged, changed since it was written, or of a newer format.
        """
        from infnet.features.encoder_files import read_encoder

        return read_encoder(directory, lookups=lookups)

    def tables(self) -> dict[str, pa.Table]:
        """All tables, by the path they are written at."""
        found = {f"vocabularies/{n}": v.table() for n, v in self.vocabularies.items()}
        found |= {f"vectors/{n}": t for n, t in self.vectors.items()}
        found |= {f"statistics/{n}": lookup.values for n, lookup in self.statistics.items()}
        found |= {f"histories/{n}": lookup.values for n, lookup in self.histories.items()}
        return found

    def describe(self) -> Json:
        """The content in short: configs and states as they are, tables by their digests."""
        features = self.features
        return {
            "format_version": FORMAT_VERSION,
            "features": {n: f.to_dict() for n, f in features.features.items()},
            "tasks": {n: t.to_dict() for n, t in features.tasks.items()},
            "columns": features.roles.to_dict(),
            "types": {f.name: str(f.type) for f in features.schema},
            "states": dict(self.states),
            "tables": {name: table_digest(table) for name, table in sorted(self.tables().items())},
        }

    def content_digest(self) -> str:
        """The digest of `describe`, with the features' configs stripped of places."""
        features = {n: f.digest() for n, f in self.features.features.items()}
        return digest_of(self.describe() | {"features": features})

    def without_lookups(self) -> "Encoder":
        """The same without the frozen tables; it encodes, but does not derive."""
        return replace(self, statistics={}, histories={})

    def demands(self) -> Demands:
        """What must be derived for a row before `encode`."""
        return self.features.demands()

    @cached_property
    def fitted(self) -> dict[str, Fitted]:
        """Per feature, what training taught it and those it refers to."""
        own = {
            name: Fitted(
                state=self.states[name],
                vocabularies=self.vocabularies,
                vectors=self.vectors.get(name),
            )
            for name in self.features.features
        }
        return {
            name: replace(
                own[name],
                references={r: (self.features.features[r], own[r]) for r in feature.references()},
            )
            for name, feature in self.features.features.items()
        }

    def schema(self) -> Schema:
        """What a model must know."""
        tables: dict[str, TableSpec] = {}
        fields: list[FieldSlot] = []
        dense: list[DenseSlot] = []
        sequences: list[SequenceSlot] = []
        for name, feature in self.features.features.items():
            slots = feature.slots(name, self.fitted[name])
            tables.update(slots.tables)
            fields += slots.fields
            dense += slots.dense
            sequences += slots.sequences
        return Schema(
            tables=tables,
            fields=tuple(fields),
            dense=tuple(dense),
            sequences=tuple(sequences),
            tasks=self.features.tasks,
            encoder_digest=self.digest,
        )

    def encode(
        self,
        rows: pa.Table,
        *,
        labels: bool = True,
        encoded: Mapping[str, Mapping[str, pa.Array]] | None = None,
    ) -> pa.Table:
        """Raw rows with derived columns → the columns of a shard.

        `labels=False` (prediction): label and weight columns are not read; labels are null,
        weights are 1. `encoded` holds what some features would give, by name: histories that many
        rows share are encoded once by whoever knows it.

        Raises:
            ConfigError: a column is missing or of another type than in the log.
        """
        rows = self.features.with_roles(rows, labels=labels)
        roles = self.features.roles
        count = rows.num_rows
        row_id = (
            plain(rows["__row_id"])
            if "__row_id" in rows.column_names
            else pa.array(np.arange(count))
        )
        columns: dict[str, pa.Array] = {
            "row_id": row_id.cast(pa.int64()),
            "user": pa.array(row_keys(rows, [roles.user])) if roles.user else row_id,
            "time": plain(rows["__time"]),
            "weight": pa.array(np.ones(count, dtype=np.float32)),
        }
        if labels and roles.weight:
            weight, _ = numbers(column(rows, roles.weight))
            columns["weight"] = pa.array(weight.astype(np.float32))
        known = encoded or {}
        for name, feature in self.features.features.items():
            columns |= known.get(name) or feature.encode(name, rows, self.fitted[name])
        for task in self.features.tasks:
            columns[f"y.{task}"] = (
                column(rows, f"__label.{task}").cast(pa.float32(), safe=False)
                if labels
                else pa.nulls(count, pa.float32())
            )
        return pa.table(columns)

    def derive(self, rows: pa.Table, *, histories: bool = True) -> pa.Table:
        """Add histories and statistics as they stood at the end of training, for later rows.

        `histories=False`: statistics only.

        Events that are not strictly earlier than a row stay out of its history. A statistic has no
        times any more, so a row of the training period would see itself in it: encode those with
        `infnet prepare`.

        Raises:
            ConfigError: the encoder was read without its look-ups.
        """
        rows = self.features.with_roles(rows, labels=False)
        demands = self.demands()
        for name in demands.histories:
            if not histories or f"__history.{name}" in rows.column_names:
                continue
            user = self.features.roles.user
            assert user is not None
            past = histories_of(
                self.lookup(self.histories, name),
                row_keys(rows, [user]),
                as_numpy(column(rows, "__time")),
            )
            rows = rows.append_column(f"__history.{name}", past)
        for name, demand in demands.statistics.items():
            if f"__statistic.{name}.count" in rows.column_names:
                continue
            lookup = self.lookup(self.statistics, name)
            count, total = statistics_of(lookup, row_keys(rows, demand.key))
            rows = rows.append_column(f"__statistic.{name}.count", pa.array(count))
            rows = rows.append_column(f"__statistic.{name}.sum", pa.array(total))
        return rows

    @staticmethod
    def lookup(lookups: Mapping[str, Lookup], name: str) -> Lookup:
        """That of a feature, of `statistics` or `histories`.

        Raises:
            ConfigError: the encoder was read without its look-ups.
        """
        if name not in lookups:
            raise ConfigError(
                f"features.{name} needs its look-up table to derive columns; "
                "read the encoder with its look-ups"
            )
        return lookups[name]
