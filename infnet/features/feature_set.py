"""FeatureSet: features, tasks and roles of a config over a log's columns, before fitting.

How `prepare` uses it, block by block of the log:

    set = FeatureSet(config.features, config.tasks, log.columns, log.schema)
    set.check(rows)                    reasons of bad rows
    set.with_roles(rows)               adds __time and __label.<task>
    set.count(rows), set.summarise     of training rows; merged over blocks
    set.demands()                      which histories and statistics the sorted passes must derive
    set.fit(summary, counts, …)        the Encoder
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property

import numpy as np
import pyarrow as pa

from infnet.features import Feature, StatisticFeature, vocabulary
from infnet.features.base import Demands, Problem
from infnet.features.categorical import CategoricalFeature
from infnet.features.columns import LARGEST, check_number, column, missing, numbers, pc, plain
from infnet.features.labels import label, label_columns, label_problems
from infnet.features.scaled import ScaledNumber
from infnet.tasks import Task
from rayrun.config import ConfigError, Json
from rayrun.data.columns import Columns, missing_column, to_milliseconds
from rayrun.data.columns import plain as plain_type

_NAME = re.compile(r"[^\W\d][\w-]*")


class FeatureSet:
    """Checked against the log: every column is there, all references resolve, no label is read."""

    def __init__(
        self,
        features: Mapping[str, Feature],
        tasks: Mapping[str, Task],
        columns: Columns,
        schema: pa.Schema,
    ) -> None:
        """`schema` is the log's; only the columns needed are kept.

        Raises:
            ConfigError: a missing column, an unknown reference, a label used as a feature.
        """
        self.features, self.tasks, self.roles = dict(features), dict(tasks), columns
        for name in [*features, *tasks]:
            if not _NAME.fullmatch(name):
                raise ConfigError(
                    f"the name {name!r} of a feature or task must be letters, digits, _ and -, "
                    "and start with a letter"
                )
        self._check_references()
        for name in self.columns(labels=True):
            if name not in schema.names:
                wanted = ", ".join(self.wanted_by(name))
                raise missing_column(name, schema.names, where="the log", wanted_by=wanted)
        self.schema = pa.schema(
            [(n, plain_type(schema.field(n).type)) for n in self.columns(labels=True)]
        )
        for name, feature in self.features.items():
            feature.check_columns(name, self.schema)
        for name, task in self.tasks.items():
            for read in label_columns(task):
                check_number(self.schema, read, f"tasks.{name}.label")
        if columns.weight:
            check_number(self.schema, columns.weight, "data.source.columns.weight")
        self._check_leaks()

    def columns(self, *, labels: bool) -> tuple[str, ...]:
        """Raw columns needed by `encode`; with `labels` also by labels, weights and fitting."""
        return self._columns[labels]

    @cached_property
    def _columns(self) -> dict[bool, tuple[str, ...]]:
        return {labels: self._find_columns(labels) for labels in (False, True)}

    def _find_columns(self, labels: bool) -> tuple[str, ...]:
        needed: dict[str, None] = {}
        roles = self.roles
        named = [roles.user, roles.time.column if roles.time else None]
        if labels:
            named.append(roles.weight)
        needed.update((n, None) for n in named if n)
        for name, feature in self.features.items():
            needed.update((c, None) for c in sorted(feature.columns(name)))
        if labels:
            demands = self.demands()
            for task in self.tasks.values():
                needed.update((c, None) for c in label_columns(task))
            for history in demands.histories.values():
                needed.update((c, None) for c in history.columns)
                if history.where:
                    needed[history.where.column] = None
            for statistic in demands.statistics.values():
                if statistic.value and not statistic.value.startswith("task:"):
                    needed[statistic.value] = None
        return tuple(needed)

    def demands(self) -> Demands:
        """What must be computed over the training rows, of all features."""
        return self._demands

    @cached_property
    def _demands(self) -> Demands:
        merged: dict[str, dict] = {"vocabularies": {}, "histories": {}, "statistics": {}}
        for name, feature in self.features.items():
            demanded = feature.demands(name, self.features)
            for kind, into in merged.items():
                into.update(getattr(demanded, kind))
        return Demands(**merged)

    # -- rows ---------------------------------------------------------------------------------

    def with_roles(self, rows: pa.Table, *, labels: bool = True) -> pa.Table:
        """The rows with the needed columns in the log's types, `__time` and (`labels`) the labels.

        Other columns stay as they are; doing it twice changes nothing.

        Raises:
            ConfigError: a column is missing or has values of another type.
        """
        made: dict[str, pa.Array | pa.ChunkedArray] = {n: rows[n] for n in rows.column_names}
        for name in self.columns(labels=labels):
            made[name] = self._conform(name, column(rows, name))
        if self.roles.time is None:
            made["__time"] = pa.array(np.zeros(rows.num_rows, dtype=np.int64))
        else:
            times = to_milliseconds(plain(made[self.roles.time.column]), self.roles.time.unit)
            made["__time"] = pc.fill_null(times, 0)
        if labels:
            for name, task in self.tasks.items():
                values = label(rows, task)
                made[f"__label.{name}"] = pa.array(values, mask=np.isnan(values))
        return pa.table(made)

    def _conform(self, name: str, values: pa.Array) -> pa.Array:
        expected = self.schema.field(name).type
        if values.type == expected:
            return values
        try:
            return values.cast(expected)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise ConfigError(
                f"the column {name!r} must be of type {expected}, as in the log the features were "
                f"fitted on; found {values.type} ({error})"
            ) from None

    def check(self, rows: pa.Table, *, labels: bool = True) -> pa.Array:
        """Why each row cannot be used, null where it can. A reason in `__bad` stands.

        `labels=False` (prediction): label and weight columns are not looked at.
        """
        found = [*label_problems(rows, self.tasks)] if labels else []
        roles = self.roles
        if roles.user:
            absent = missing(column(rows, roles.user))
            found.append(Problem(absent, f"the user ({roles.user}) is missing"))
        if roles.time:
            times = to_milliseconds(column(rows, roles.time.column), roles.time.unit)
            reason = f"the time ({roles.time.column}) is missing or cannot be read"
            found.append(Problem(missing(times), reason))
        if labels and roles.weight:
            weight, _ = numbers(column(rows, roles.weight))
            reason = f"the weight ({roles.weight}) is missing, negative or not finite"
            found.append(Problem(~((weight >= 0) & (weight <= LARGEST)), reason))
        for name, feature in self.features.items():
            found += feature.problems(name, rows)
        reasons = np.full(rows.num_rows, None, dtype=object)
        for problem in reversed(found):  # the first problem of a row is the one reported
            reasons[problem.rows] = problem.reason
        checked = pa.array(reasons, pa.string())
        return (
            pc.coalesce(column(rows, "__bad"), checked) if "__bad" in rows.column_names else checked
        )

    # -- fitting ------------------------------------------------------------------------------

    def count(self, rows: pa.Table) -> dict[str, pa.Table]:
        """Value counts of every vocabulary demanded; join blocks with `merge_counts`."""
        return {
            name: vocabulary.merge(vocabulary.count(column(rows, c)) for c in demand.columns)
            for name, demand in self.demands().vocabularies.items()
        }

    def merge_counts(self, parts: Iterable[Mapping[str, pa.Table]]) -> dict[str, pa.Table]:
        """Counts of several blocks as one."""
        together = list(parts)
        return {
            name: vocabulary.merge(part[name] for part in together)
            for name in self.demands().vocabularies
        }

    def summarise(self, rows: pa.Table) -> Json:
        """Summaries of all features over some training rows (with roles)."""
        return {name: feature.summarise(name, rows) for name, feature in self.features.items()}

    def merge(self, summaries: Sequence[Json]) -> Json:
        """Summaries of several blocks as one; needs at least one."""
        return {
            name: feature.merge([summary[name] for summary in summaries])
            for name, feature in self.features.items()
        }

    # -- checks of the config -----------------------------------------------------------------

    def _check_references(self) -> None:
        shared: dict[str, tuple[str, CategoricalFeature]] = {}
        for name, feature in self.features.items():
            for other in feature.references():
                self._check_reference(name, other)
            if isinstance(feature, CategoricalFeature):
                self._check_sharing(name, feature, shared)
            if isinstance(feature, StatisticFeature) and feature.task not in {"", *self.tasks}:
                raise ConfigError(
                    f"features.{name}.value: there is no task {feature.task!r}; "
                    f"the tasks are {', '.join(self.tasks)}"
                )
        demands = self.demands()
        causal = [*demands.histories] + [
            n for n, s in demands.statistics.items() if s.fold == "earlier"
        ]
        if causal and self.roles.time is None:
            raise ConfigError(
                f"features.{causal[0]} looks at earlier rows, so the source must name its time "
                "(data.source.columns.time); a statistic may use fold: leave_one_out instead"
            )
        if demands.histories and self.roles.user is None:
            raise ConfigError(
                f"features.{next(iter(demands.histories))} collects the history of a user, so the "
                "source must name it (data.source.columns.user)"
            )

    def _check_reference(self, name: str, other: str) -> None:
        feature = self.features.get(other)
        gives_ids = isinstance(feature, CategoricalFeature) or (
            isinstance(feature, ScaledNumber) and feature.buckets is not None
        )
        if not gives_ids:
            able = [
                n
                for n, f in self.features.items()
                if isinstance(f, CategoricalFeature)
                or (isinstance(f, ScaledNumber) and f.buckets is not None)
            ]
            what = "is not a feature" if feature is None else "gives numbers, not ids"
            raise ConfigError(
                f"features.{name}.fields: {other!r} {what}; "
                f"name some of {', '.join(able) or '(none)'}"
            )

    def _check_sharing(
        self,
        name: str,
        feature: CategoricalFeature,
        shared: dict[str, tuple[str, CategoricalFeature]],
    ) -> None:
        table = feature.table_name(name)
        owner = self.features.get(table, feature)
        if not isinstance(owner, CategoricalFeature):
            raise ConfigError(
                f"features.{name}.table: {table!r} is the name of a feature that is not "
                "categorical; choose another name for the shared table"
            )
        first, other = shared.setdefault(table, (name, feature))
        for key in ("dim", "encoding", "cold_start"):
            if getattr(feature, key) != getattr(other, key):
                raise ConfigError(
                    f"features.{name}.{key} must equal features.{first}.{key}: they share the "
                    f"table {table!r}; found {getattr(feature, key)!r} and {getattr(other, key)!r}"
                )

    def _check_leaks(self) -> None:
        labels = {
            c: f"tasks.{name}" for name, task in self.tasks.items() for c in label_columns(task)
        }
        for name, feature in self.features.items():
            for read in sorted(feature.columns(name)):
                if read in labels:
                    raise ConfigError(
                        f"features.{name} reads {read}, which is the label of {labels[read]}: the "
                        "model would see the answer. Past labels enter by a statistic "
                        "(value: task:…) or a behaviour"
                    )

    def wanted_by(self, wanted: str) -> list[str]:
        """Keys of the configuration that read a raw column."""
        found = [
            f"features.{name}"
            for name, feature in self.features.items()
            if wanted in feature.columns(name)
            or any(
                wanted in h.columns or (h.where and h.where.column == wanted)
                for h in feature.demands(name, self.features).histories.values()
            )
            or any(
                wanted == s.value for s in feature.demands(name, self.features).statistics.values()
            )
        ]
        found += [f"tasks.{n}" for n, task in self.tasks.items() if wanted in label_columns(task)]
        found += [f"columns.{r}" for r, c in self.roles.names().items() if c == wanted]
        return found
