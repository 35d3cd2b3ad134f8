# pyarrow comes without types:
# pyright: reportAttributeAccessIssue=false
"""What can be seen in a log without being told: facts of each column, and guesses of its role."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayrun.data.columns import TimeColumn, TimeUnit, to_milliseconds
from rayrun.data.log import RawLog

SAMPLE_ROWS = 200_000
TIME_ROWS = 20_000_000
"""The most times held at once; of a longer log every second, fourth, … row is taken."""
FEW = 50
"""Whole numbers with at most this many values are taken for names of things."""

USER = (
    "user_id userid uid user customer_id customer member_id visitor_id reviewer_id viewer_id "
    "account_id buyer_id"
)
ITEM = (
    "item_id itemid iid item video_id movie_id product_id asin parent_asin sku article_id news_id "
    "goods_id ad_id song_id track_id book_id business_id content_id post_id"
)
REQUEST = "request_id search_id session_id impression_id query_id"
TIME = re.compile(r"(^|_)(time|timestamp|ts|datetime|date|at|when)(_?(ms|s|us))?$", re.I)
LABEL = re.compile(
    r"(^|_)(label|target|y|clicks?|clicked|likes?|liked|hates?|conver\w*|purchased?|buy|bought|"
    r"orders?|ordered|paid|follow(ed)?|comment(ed)?|forward(ed)?|shared?|long_view|visit(ed)?|"
    r"install(ed)?|subscribed?|favou?rite|cart|respon\w+|churn(ed)?|profile_enter|finished|"
    r"completed?)$",
    re.I,
)
AMOUNT = re.compile(
    r"(^|_)(spend|spent|revenue|amount|gmv|sales|(play|watch|dwell|stay|view)_?time)(_(ms|s))?$",
    re.I,
)
RATING = re.compile(r"(^|_)(rating|stars|score)$", re.I)
TRUTH = re.compile(r"^(p|e|pred|prob|score)_", re.I)

Kind = Literal["label", "amount", "rating", "name", "number", "list", "text", "constant"]


@dataclass(frozen=True)
class Facts:
    """What the first rows say of one column."""

    name: str
    type: pa.DataType
    kind: Kind
    distinct: int
    missing: float
    """Share of rows without a value."""
    low: float | None
    high: float | None
    zeros: float
    """Share of zeros among the numbers."""


@dataclass(frozen=True)
class Survey:
    """Facts and guesses of a log."""

    rows: int
    """Rows looked at."""
    whole: bool
    """Those were all rows."""
    columns: dict[str, Facts]
    bad: int
    user: str | None
    item: str | None
    request_id: str | None
    time: TimeColumn | None
    cuts: tuple[int, int] | None
    """Times in ms before which 80 % and 90 % of the rows lie."""
    sample: pa.Table


def survey(log: RawLog) -> Survey:
    """Look at the first 200,000 rows, and at the times of all rows (thinned above 20 million)."""
    sample, whole = _sample(log)
    facts = {n: _facts(n, sample.column(n).combine_chunks()) for n in log.schema.names}
    time = _time(facts, sample)
    return Survey(
        rows=sample.num_rows,
        whole=whole,
        columns=facts,
        bad=sample.num_rows - sample.column("__bad").null_count,
        user=_named(facts, USER),
        item=_named(facts, ITEM),
        request_id=_named(facts, REQUEST),
        time=time,
        cuts=_cuts(log, time) if time else None,
        sample=sample,
    )


def _sample(log: RawLog) -> tuple[pa.Table, bool]:
    parts: list[pa.Table] = []
    rows = 0
    for fragment in log.fragments():
        for table in log.read(fragment):
            parts.append(table)
            rows += table.num_rows
            if rows >= SAMPLE_ROWS:
                return pa.concat_tables(parts), False
    return pa.concat_tables(parts), True


def _facts(name: str, values: pa.Array) -> Facts:
    known = values.drop_null()
    count = len(known)
    nested = pa.types.is_nested(values.type)
    distinct = 0 if nested or not count else pc.count_distinct(known).as_py()
    number = pa.types.is_integer(values.type) or pa.types.is_floating(values.type)
    number = number or pa.types.is_boolean(values.type)
    low = high = None
    zeros = 0.0
    whole = pa.types.is_integer(values.type)
    if number and count:
        numbers = known.cast(pa.float64())
        found = pc.min_max(numbers).as_py()
        low, high = found["min"], found["max"]
        zeros = pc.mean(pc.equal(numbers, 0.0).cast(pa.float64())).as_py()
        whole = whole or bool(pc.all(pc.equal(numbers, pc.floor(numbers))).as_py())
    binary = number and distinct == 2 and low == 0 and high == 1
    kind: Kind
    if nested:
        kind = "list"
    elif distinct <= 1:
        kind = "constant"
    elif binary and LABEL.search(name) and not TRUTH.search(name):
        kind = "label"
    elif number and RATING.search(name) and distinct <= 20 and whole:
        kind = "rating"
    elif number and AMOUNT.search(name) and low is not None and low >= 0 and distinct > 2:
        kind = "amount"
    elif number:
        kind = "name" if whole and (distinct <= FEW or _is_id(name)) else "number"
    else:
        free = distinct > 100 and distinct > 0.5 * count
        kind = "text" if free and not _is_id(name) else "name"
    missing = 1.0 - count / max(len(values), 1)
    return Facts(name, values.type, kind, distinct, missing, low, high, zeros)


def _is_id(name: str) -> bool:
    known = {*USER.split(), *ITEM.split(), *REQUEST.split()}
    return name.lower() in known or bool(re.search(r"(^|_)(id|asin|sku)$", name, re.I))


def _named(facts: dict[str, Facts], names: str) -> str | None:
    by_lower = {name.lower(): name for name, fact in facts.items() if fact.kind == "name"}
    return next((by_lower[n] for n in names.split() if n in by_lower), None)


def _time(facts: dict[str, Facts], sample: pa.Table) -> TimeColumn | None:
    """The column of times: by name and by plausible values (2000 to 2040); the finest one."""
    best: tuple[int, TimeColumn] | None = None
    for name, fact in facts.items():
        own = pa.types.is_timestamp(fact.type) or pa.types.is_date(fact.type)
        if not own and not TIME.search(name):
            continue
        column = sample.column(name).combine_chunks()
        units: Sequence[TimeUnit] = (
            ("iso",) if own or pa.types.is_string(fact.type) else ("s", "ms", "us")
        )
        if not own and not pa.types.is_string(fact.type) and fact.low is None:
            continue
        for unit in units:
            moments = to_milliseconds(column, unit)
            sane = pc.and_(
                pc.greater(moments, 946_684_800_000), pc.less(moments, 2_208_988_800_000)
            )
            share = pc.sum(pc.fill_null(sane, False)).as_py() or 0
            if share < 0.99 * len(column):
                continue
            distinct = pc.count_distinct(moments).as_py()
            if distinct > 2 and (best is None or distinct > best[0]):
                best = (distinct, TimeColumn(column=name, unit=unit))
    return best[1] if best else None


def _cuts(log: RawLog, time: TimeColumn) -> tuple[int, int] | None:
    kept: list[np.ndarray] = []
    step, rows = 1, 0
    for fragment in log.fragments():
        for table in log.read(fragment, [time.column]):
            moments = to_milliseconds(table.column(time.column), time.unit).drop_null()
            kept.append(moments.to_numpy()[::step])
            rows += len(kept[-1])
            if rows > TIME_ROWS:  # a log is often sorted by time: keep every second row of all
                kept, step = [np.concatenate(kept)[::2]], 2 * step
                rows = len(kept[0])
    times = np.concatenate(kept)
    found = [int(cut) for cut in np.quantile(times, [0.8, 0.9], method="higher")]
    first, last = int(times.min()), int(times.max())
    day = 86_400_000
    if last - first >= 10 * day:  # whole days read better, and no day is cut in two
        found = [max(cut // day, 1) * day for cut in found]
    valid, test = found
    if valid == test:
        test = valid + day
    return (valid, test) if first < valid < test <= last else None
