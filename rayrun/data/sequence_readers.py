# pyarrow comes without types:
# pyright: basic, reportAttributeAccessIssue=false
"""Readers of histories with titles: logs of single events, lists by user, rated samples."""

import heapq
import itertools
import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rayrun import storage
from rayrun.config import ConfigError
from rayrun.data import listing, world
from rayrun.data.columns import TimeColumn, missing_column, plain, to_milliseconds
from rayrun.data.description import SideTable
from rayrun.data.files import FileLog
from rayrun.data.log import BAD, Fragment, RawLog
from rayrun.data.sequence_source import (
    SETS,
    NamedSequences,
    SequenceData,
    SimulatedSequences,
    TitledColumns,
    TitledPathSource,
)
from rayrun.data.sequences import (
    FEWEST_EVENTS,
    PARTS,
    Catalogue,
    Ints,
    Rated,
    Sequences,
    assembled,
    user_hash,
    user_order,
)
from rayrun.data.simulate import SimulatedLog, catalogue

PUBLISHERS = {
    "amazon_games2018_seq": "made from github.com/RUCAIBox/LLMRank",
    "amazon_beauty2014_seq": "made from github.com/agiresearch/IDGenRec",
    "amazon_toys2014_seq": "made from github.com/agiresearch/IDGenRec",
    "movielens_1m_collm": "made from github.com/zyang1580/CoLLM",
    "movielens_100k": "made from MovieLens-100K of grouplens.org",
}
PART_OF = {"train": 0, "valid": 1, "validation": 1, "test": 2}
STARS = (1, 2, 3, 4, 5)
PARQUET_REMEDY = "write or fetch it again"


def read(data: SequenceData) -> Sequences:
    """See `rayrun.data.sequences.open_sequences`."""
    source = data.source
    if isinstance(source, SimulatedSequences):
        return _simulated(source, data)
    if isinstance(source, TitledPathSource):
        return _from_log(FileLog(source, name=source.path), source, data)
    place = _place(source)
    if source.name == "movielens_1m_collm":
        return _rated(place, data, source.name)
    if source.name == "movielens_100k":
        described = _movielens_100k(place)
        return _from_log(FileLog(described, name=source.name), described, data)
    return _lists(place, data, source.name)


def _place(source: NamedSequences) -> str:
    root, name = os.environ.get("INFNET_DATA", ""), source.name
    how = f"· {SETS[name]}: {PUBLISHERS[name]}, put it into DIR/{name}/, then INFNET_DATA=DIR"
    if not root:
        raise ConfigError(
            f"data.source {name!r} is read from $INFNET_DATA/{name}/, but INFNET_DATA is not set. "
            f"Ways to get data:\n  {how}\n"
            "  · files you already have: data.source: {path: FILE, columns: {user, item, time, "
            "title}}\n"
            "  · no files at all: data.source: {type: simulate}"
        )
    place = storage.join(root, name)
    if not storage.exists(place):
        raise ConfigError(f"INFNET_DATA is {root}, but there is no {name} in it.\n  {how}")
    return place


def _movielens_100k(place: str) -> TitledPathSource:
    return TitledPathSource(
        path=storage.join(place, "ratings.parquet"),
        columns=TitledColumns(
            user="user_id",
            item="item_id",
            time=TimeColumn(column="timestamp", unit="s"),
            title="title",
            rating="rating",
        ),
        tables=(
            SideTable(path=storage.join(place, "items.parquet"), key="item_id", columns=("title",)),
        ),
    )


# ---------------------------------------------------------------------------------------------
# Logs of single events


def _from_log(log: FileLog, source: TitledPathSource, data: SequenceData) -> Sequences:
    roles = source.columns
    item = roles.item or roles.title
    users: Counter[Any] = Counter()
    bad = 0

    def entries() -> Iterator[tuple[Any, str | None]]:
        nonlocal bad
        for table in _tables(log, [roles.user, item, roles.title]):
            good = table.filter(pc.is_null(table.column(BAD).combine_chunks()))
            bad += table.num_rows - good.num_rows
            _count(users, good.column(roles.user))
            keys = good.column(item).combine_chunks()
            titles = good.column(roles.title)
            codes = keys.dictionary_encode().indices.to_numpy(zero_copy_only=False)
            _, first = np.unique(codes, return_index=True)
            for row in np.sort(first):
                title = titles[int(row)].as_py()
                yield keys[int(row)].as_py(), None if title is None else str(title)

    known = Catalogue(entries(), data, log.name)
    stars = None if roles.rating is None else _Given(roles.rating, log.name)
    events = _Events(log, roles.user, item, roles.time.column, roles.time.unit, stars=stars)
    return _of_users(events, known, users, data, {"rows_bad": bad})


def _simulated(source: SimulatedSequences, data: SequenceData) -> Sequences:
    log = _FirstDays(source)
    table = catalogue(source)
    english, chinese = (table.column(n).to_pylist() for n in ("title", "title_zh"))
    titles = {
        "en": english,
        "zh": chinese,
        "both": [f"{e} {z}" for e, z in zip(english, chinese, strict=True)],
    }[source.language]
    known = Catalogue(enumerate(titles), data, log.name)
    users: Counter[Any] = Counter()
    for part in _tables(log, ["user_id", "is_click"]):
        _count(users, part.filter(pc.equal(part.column("is_click"), 1)).column("user_id"))
    stars = _Simulated(source.seed) if source.ratings else None
    events = _Events(log, "user_id", "video_id", "time_ms", "ms", only="is_click", stars=stars)
    return _of_users(events, known, users, data, {})


class _FirstDays(SimulatedLog):
    """The rows of the simulator before the end of `source.days`."""

    def __init__(self, source: SimulatedSequences) -> None:
        super().__init__(source)
        self.end_ms = world.START_MS + int(source.days * world.DAY_MS)

    def read(self, fragment: Fragment, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        wanted = None if columns is None else [*columns, "time_ms"]
        for table in super().read(fragment, wanted):
            yield table.filter(pc.less(table.column("time_ms"), self.end_ms))


def _tables(log: RawLog, columns: list[str]) -> Iterator[pa.Table]:
    for fragment in log.fragments():
        yield from log.read(fragment, columns)


def _count(users: Counter[Any], column: pa.ChunkedArray) -> None:
    for entry in pc.value_counts(column.combine_chunks()):
        users[entry["values"].as_py()] += entry["counts"].as_py()


class _Given:
    """The stars in a column."""

    def __init__(self, column: str, name: str) -> None:
        self.columns, self.name = (column,), name

    def of(self, events: pa.Table) -> Ints:
        column = self.columns[0]
        for value in pc.unique(events.column(column)).to_pylist():
            if _as_number(value) not in STARS:
                raise ConfigError(
                    f"{self.name}: {column!r} is data.source.columns.rating, so every row must "
                    f"hold a whole number from 1 to 5, found {value!r}; leave such rows out, or "
                    "bring another scale to these five"
                )
        return np.array([int(float(v)) for v in events.column(column).to_pylist()], np.int64)


def _as_number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


class _Simulated:
    """The stars of the simulated world."""

    def __init__(self, seed: int) -> None:
        self.columns, self.seed = ("user_id", "video_id", "p_click", "p_like"), seed

    def of(self, events: pa.Table) -> Ints:
        user, item, p_click, p_like = (events.column(c).to_numpy() for c in self.columns)
        return world.stars(self.seed, user, item, p_click, p_like)


class _Events:
    """The events of chosen users in a log."""

    def __init__(
        self,
        log: RawLog,
        user: str,
        item: str,
        time: str,
        unit: Any,
        *,
        only: str = "",
        stars: _Given | _Simulated | None = None,
    ) -> None:
        self.log, self.user, self.item, self.time, self.unit = log, user, item, time, unit
        self.only = only
        """A column that must be 1."""
        self.stars = stars

    def of(self, numbers: dict[Any, int], items: dict[Any, int]) -> tuple[Ints, Ints, Ints, Ints]:
        """User number, item number, time in ms and stars (0: the log has none) of each event, in
        order of the log.
        """
        columns = [self.user, self.item, self.time, *([self.only] if self.only else [])]
        if self.stars is not None:
            columns += self.stars.columns
        wanted = pa.array(list(numbers), self.log.schema.field(self.user).type)
        parts: list[tuple[Ints, Ints, Ints, Ints]] = []
        for table in _tables(self.log, list(dict.fromkeys(columns))):
            keep = pc.and_(pc.is_in(table.column(self.user), wanted), pc.is_null(table.column(BAD)))
            if self.only:
                keep = pc.and_(keep, pc.equal(table.column(self.only), 1))
            kept = table.filter(keep)
            user = np.array([numbers[u] for u in kept.column(self.user).to_pylist()], np.int64)
            item = [items.get(i, -1) for i in kept.column(self.item).to_pylist()]
            time = to_milliseconds(kept.column(self.time), self.unit).to_numpy()
            stars = np.zeros(len(user), np.int64) if self.stars is None else self.stars.of(kept)
            parts.append((user, np.array(item, np.int64), time.astype(np.int64), stars))
        user, item, time, stars = (np.concatenate(column) for column in zip(*parts, strict=True))
        titled = item >= 0
        return user[titled], item[titled], time[titled], stars[titled]


def _of_users(
    events: _Events,
    known: Catalogue,
    users: Counter[Any],
    data: SequenceData,
    counts: dict[str, int],
) -> Sequences:
    enough = {str(user): user for user, count in users.items() if count >= FEWEST_EVENTS}
    chosen = user_order(enough, data.seed)[: data.users or None]
    numbers = {enough[user]: number for number, user in enumerate(chosen)}
    user, item, time, stars = events.of(numbers, known.number)
    order = np.lexsort((np.arange(len(user)), time, user))
    bounds = np.searchsorted(user[order], np.arange(len(chosen) + 1))
    found, given = (
        [column[order][a:b] for a, b in itertools.pairwise(bounds)] for column in (item, stars)
    )
    kept = [n for n, items in enumerate(found) if len(items) >= FEWEST_EVENTS]
    short = len(users) - len(enough) + len(chosen) - len(kept)
    return assembled(
        events.log.name,
        known,
        [chosen[n] for n in kept],
        [found[n] for n in kept],
        {**counts, "users_short": short},
        ratings=None if events.stars is None else [given[n] for n in kept],
    )


# ---------------------------------------------------------------------------------------------
# Registered sets


def _batches(uri: str, columns: list[str]) -> Iterator[pa.RecordBatch]:
    try:
        with listing.open_random(uri) as file, pq.ParquetFile(file) as parquet:
            for name in columns:
                if name not in parquet.schema_arrow.names:
                    raise missing_column(
                        name, parquet.schema_arrow.names, where=uri, wanted_by="data.source"
                    )
            for batch in parquet.iter_batches(columns=columns):
                types = [(f.name, plain(f.type)) for f in batch.schema]
                yield from pa.Table.from_batches([batch]).cast(pa.schema(types)).to_batches()
    except listing.UNREADABLE as error:
        raise listing.unreadable(uri, error, PARQUET_REMEDY) from None


def _titles_of(place: str, data: SequenceData, name: str) -> Catalogue:
    column = "text_id" if name in ("amazon_beauty2014_seq", "amazon_toys2014_seq") else "title"
    entries = (
        (item, title)
        for batch in _batches(storage.join(place, "items.parquet"), ["item_id", column])
        for item, title in zip(*(c.to_pylist() for c in batch.columns), strict=True)
    )
    return Catalogue(entries, data, name)


def _lists(place: str, data: SequenceData, name: str) -> Sequences:
    known = _titles_of(place, data, name)
    taken: list[tuple[int, str, list[int]]] = []  # a heap: the largest hash first
    short = 0
    for batch in _batches(storage.join(place, "sequences.parquet"), ["user_id", "items"]):
        for user, listed in zip(*(c.to_pylist() for c in batch.columns), strict=True):
            items = [known.number[i] for i in listed if i in known.number]
            if len(items) < FEWEST_EVENTS:
                short += 1
                continue
            entry = (-user_hash(str(user), data.seed), str(user), items)
            if not data.users or len(taken) < data.users:
                heapq.heappush(taken, entry)
            else:
                heapq.heappushpop(taken, entry)
    taken.sort(key=lambda entry: (-entry[0], entry[1]))
    return assembled(
        name,
        known,
        [user for _, user, _ in taken],
        [np.array(items, np.int64) for _, _, items in taken],
        {"users_short": short},
    )


def _rated(place: str, data: SequenceData, name: str) -> Sequences:
    known = _titles_of(place, data, name)
    uri = storage.join(place, "samples.parquet")
    columns = ["user_id", "item_id", "label", "timestamp", "history", "split"]
    users: Counter[Any] = Counter()
    for batch in _batches(uri, ["user_id"]):
        _count(users, pa.chunked_array([batch.column(0)]))
    enough = [str(user) for user, count in users.items() if count >= FEWEST_EVENTS]
    chosen = user_order(enough, data.seed)[: data.users or None]
    numbers = {user: number for number, user in enumerate(chosen)}
    rows: list[tuple[int, int, int, int, int, list[int]]] = []
    for batch in _batches(uri, columns):
        for user, item, label, time, history, part in zip(
            *(batch.column(c).to_pylist() for c in columns), strict=True
        ):
            if part not in PART_OF:
                raise ConfigError(
                    f"{uri}: split must be one of {', '.join(PART_OF)}, found {part!r}; "
                    f"{PARQUET_REMEDY}"
                )
            if str(user) in numbers and item in known.number:
                before = [known.number[i] for i in history if i in known.number]
                rows.append(
                    (numbers[str(user)], time, known.number[item], label, PART_OF[part], before)
                )
    rows.sort(key=lambda row: row[:2])
    user, _, item, label, part = (np.array([r[k] for r in rows], np.int64) for k in range(5))
    starts = np.searchsorted(user, np.arange(len(chosen) + 1))
    liked = (label == 1) & (part == PARTS.index("train"))
    return assembled(
        name,
        known,
        chosen,
        [item[a:b][liked[a:b]] for a, b in itertools.pairwise(starts)],
        {"users_short": len(users) - len(enough), "rows": len(rows)},
        Rated(
            user=user,
            position=np.arange(len(user)) - starts[user],
            item=item,
            label=label,
            part=part,
            history=[np.array(r[5], np.int64) for r in rows],
        ),
    )
