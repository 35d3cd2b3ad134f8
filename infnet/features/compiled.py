"""The encoder of a server: raw columns of one request → arrays, without a table between.

`Encoder.encode` works feature by feature over a table, which is right for a million rows and costs
ten milliseconds for one. Here the work is by block: one hash and one conversion to numbers for all
columns of a type, values that all candidates share are encoded once, and so is a history. What a
value means is said by the features themselves (`ids_of`, `dense_of`, `outputs_of`, `encode`), as
everywhere; that both ways give the same, to the bit, is tested for every type of feature.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from infnet.features.arrays import Arrays, SequenceArrays, dense_block, left_aligned, sequence_of
from infnet.features.base import Feature, Fitted
from infnet.features.blocks import Block, Blocks
from infnet.features.categorical import CategoricalFeature
from infnet.features.columns import as_numpy, ranges
from infnet.features.encoder import Encoder
from infnet.features.hashing import FURTHER, as_keys, hash_values
from infnet.features.lookups import statistics_of
from infnet.features.numeric import NumericFeature
from infnet.features.scaled import ScaledNumber, Transform, scaled, transformed
from infnet.features.sequence import SequenceFeature, age
from infnet.features.statistic import StatisticFeature
from rayrun.data.columns import to_milliseconds


@dataclass(frozen=True)
class Events:
    """Past events of one behaviour, oldest first."""

    columns: Blocks
    times: np.ndarray
    """int64 milliseconds."""


@dataclass(frozen=True)
class _Number:
    """A numeric feature that is normalised: where it goes, and by what."""

    start: int
    shift: float
    scale: float
    indicator: bool


class RequestEncoder:
    """Made once from a fitted encoder (with its look-ups); holds nothing of a request."""

    def __init__(self, encoder: Encoder) -> None:
        """The work is divided here: by feature, and by what can be done for many at once."""
        self._encoder = encoder
        self._roles = encoder.features.roles
        schema = encoder.schema()
        self._num_fields, self._dense_width = len(schema.fields), schema.dense_width
        self._field = {slot.name: at for at, slot in enumerate(schema.fields)}
        self._start, self._dense = schema.dense_starts, {slot.name: slot for slot in schema.dense}
        self._sequence = {slot.name: slot for slot in schema.sequences}
        self._categorical: list[tuple[str, CategoricalFeature, Fitted]] = []
        self._numbers: dict[Transform, dict[str, list[_Number]]] = {}
        self._combined: list[tuple[str, ScaledNumber, Fitted]] = []
        self._statistics: list[tuple[str, StatisticFeature, Fitted]] = []
        self._histories: list[tuple[str, SequenceFeature, Fitted]] = []
        self._others: list[tuple[str, Feature, Fitted]] = []
        for name, feature in encoder.features.features.items():
            self._sort(name, feature, encoder.fitted[name])

    def _sort(self, name: str, feature: Feature, fitted: Fitted) -> None:
        if isinstance(feature, CategoricalFeature):
            self._categorical.append((name, feature, fitted))
        elif isinstance(feature, NumericFeature) and feature.buckets is None:
            number = _Number(
                self._start[name],
                fitted.state["shift"],
                fitted.state["scale"],
                feature.missing == "indicator",
            )
            of_transform = self._numbers.setdefault(feature.transform, {})
            of_transform.setdefault(feature.column, []).append(number)
        elif isinstance(feature, ScaledNumber):
            self._combined.append((name, feature, fitted))
        elif isinstance(feature, StatisticFeature):
            self._statistics.append((name, feature, fitted))
        elif isinstance(feature, SequenceFeature) and not feature.column:
            self._histories.append((name, feature, fitted))
        else:
            self._others.append((name, feature, fitted))

    def encode(self, shared: Blocks, candidates: Blocks, histories: Mapping[str, Events]) -> Arrays:
        """One row per candidate, in their order.

        Args:
            shared: one row, what every candidate has; a column of `candidates` wins over it.
            candidates: one row per candidate. Times are not null.
            histories: events of each behaviour.
        """
        made = _Made(
            np.empty((candidates.rows, self._num_fields), dtype=np.int64),
            np.empty((candidates.rows, self._dense_width), dtype=np.float32),
            {},
        )
        of = _Columns(shared, candidates)
        for name, feature, fitted in self._categorical:
            hashes = of.part(feature.column).hashes(feature.column)
            made.ids[:, self._field[name]] = feature.ids_of(name, hashes, fitted)
        for transform, numbers in self._numbers.items():
            for block in (*shared.blocks, *candidates.blocks):
                if not numbers.keys().isdisjoint(block.names):
                    _fill(made.dense, block, transform, numbers)
        for name, feature, fitted in self._combined:
            raw = feature.combine(*(of.part(c).numbers(c)[0] for c in feature.inputs()))
            if feature.buckets is None:
                self._put_dense(made, name, feature.dense_of(raw, fitted))
            else:
                made.ids[:, self._field[name]] = feature.ids_of(raw, fitted)
        for name, feature, fitted in self._statistics:
            first, *others = feature.key
            keys = as_keys(
                of.part(first).hashes(first),
                *(hash_values(of.part(c)[c], seed=FURTHER) for c in others),
            )
            lookup = self._encoder.lookup(self._encoder.statistics, name)
            outputs = feature.outputs_of(*statistics_of(lookup, keys), fitted)
            for output, values in outputs.items():
                made.dense[:, self._start[f"{name}.{output}"]] = values
        for name, feature, fitted in self._others:
            self._encode_other(made, name, feature, fitted, of)
        if self._histories:
            self._encode_histories(made, histories, self._moments(of))
        found = Arrays(made.ids, made.dense, {n: made.sequences[n] for n in self._sequence})
        return found if found.one_history else found.per_row()  # all once, or all per row

    def _put_dense(self, made: "_Made", name: str, values: np.ndarray) -> None:
        start = self._start[name]
        made.dense[:, start : start + values.shape[1]] = values

    def _encode_other(
        self, made: "_Made", name: str, feature: Feature, fitted: Fitted, of: "_Columns"
    ) -> None:
        """As a table would be encoded; of one row, if all its columns are shared."""
        columns = sorted(feature.columns(name))
        encoded = feature.encode(name, of.table(columns), fitted)
        for column, values in encoded.items():
            kind, _, slot = column.partition(".")
            if kind == "c":
                made.ids[:, self._field[slot]] = as_numpy(values)
            elif kind == "d":
                self._put_dense(made, slot, dense_block(values, self._dense[slot]))
        if name in self._sequence:
            made.sequences[name] = sequence_of(pa.table(encoded), self._sequence[name])

    def _moments(self, of: "_Columns") -> np.ndarray:
        """Times of the candidates: one, or one each."""
        role = self._roles.time
        assert role is not None  # a FeatureSet with histories has a time
        return as_numpy(to_milliseconds(of.part(role.column)[role.column], role.unit))

    def _encode_histories(
        self, made: "_Made", histories: Mapping[str, Events], times: np.ndarray
    ) -> None:
        # Candidates differ in their histories by their times alone, and most requests have one.
        moments, moment = np.unique(times, return_inverse=True) if len(times) > 1 else (times, None)
        for name, feature, fitted in self._histories:
            found = _history(feature, fitted, histories[name], moments)
            if moment is not None and len(moments) > 1:
                found = SequenceArrays(found.ids[moment], found.ages[moment], found.lengths[moment])
            made.sequences[name] = found


@dataclass
class _Made:
    ids: np.ndarray
    dense: np.ndarray
    sequences: dict[str, SequenceArrays]


class _Columns:
    """Columns of the candidates, and the shared ones where they have none."""

    def __init__(self, shared: Blocks, candidates: Blocks) -> None:
        self.shared, self.candidates = shared, candidates

    def part(self, name: str) -> Blocks:
        """Where the column stands."""
        return self.candidates if name in self.candidates else self.shared

    def table(self, names: list[str]) -> pa.Table:
        """Some columns; one row, if all are shared."""
        own = any(name in self.candidates for name in names)
        rows = self.candidates.rows if own else 1
        return pa.table({n: self._repeated(n, rows) for n in names})

    def _repeated(self, name: str, rows: int) -> pa.Array:
        if name in self.candidates:
            return self.candidates[name]
        return self.shared[name] if rows == 1 else pa.repeat(self.shared[name][0], rows)


def _fill(
    dense: np.ndarray, block: Block, transform: Transform, numbers: Mapping[str, list[_Number]]
) -> None:
    """Normalise all columns of a block that some features read under one transform."""
    pairs = [(at, one) for at, name in enumerate(block.names) for one in numbers.get(name, ())]
    values = transformed(block.numbers[0][[at for at, _ in pairs]], transform)
    start = np.array([one.start for _, one in pairs])
    shift, scale = np.array([[one.shift, one.scale] for _, one in pairs]).T[:, :, None]
    dense[:, start] = scaled(values, {"shift": shift, "scale": scale}).T
    marked = np.array([one.indicator for _, one in pairs])
    dense[:, start[marked] + 1] = np.isnan(values[marked]).T


def _history(
    feature: SequenceFeature, fitted: Fitted, events: Events, moments: np.ndarray
) -> SequenceArrays:
    """What can be seen of the events at each moment (ascending): the most recent, earlier ones."""
    end = np.searchsorted(events.times, moments, side="left")
    start = np.maximum(0, end - feature.max_length)
    lengths = end - start
    taken = slice(start[0], end[0]) if len(moments) == 1 else ranges(start, lengths)
    ids = []
    for name in feature.fields:
        field, its_fitted = fitted.references[name]
        (column,) = field.columns(name)
        if isinstance(field, CategoricalFeature):
            found = field.ids_of(name, events.columns.hashes(column), its_fitted)
        elif isinstance(field, NumericFeature):
            found = field.ids_of(events.columns.numbers(column)[0], its_fitted)
        else:
            found = field.ids(name, events.columns[column], its_fitted)
        ids.append(found[taken])
    return left_aligned(ids, age(np.repeat(moments, lengths), events.times[taken]), lengths)
