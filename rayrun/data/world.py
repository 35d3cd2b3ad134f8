# pyarrow comes without types:
# pyright: basic, reportAttributeAccessIssue=false
"""The simulated world: who watches what, and the true probability of every signal.

All that lasts (a user's taste, a video's topic) is a hash of the seed and its id, so no worker
keeps state; all that happens once (who, when, the coin flips) comes from a counter-based generator
keyed by the seed and counted by the chunk (Philox, Salmon et al. 2011). A chunk is therefore the
same whoever makes it.

True logits of one impression of video i (topic k, style s, duration d) to user u at time t in tab
c, the last two given a click; the weight of each term stands in `_logits`:

    click     = a_u + b_i + A[age, k] + ⟨taste_u, topic_k⟩ + J(z_u(t)=k) + H[hour, k] + C[c, s]
    long_view  = a'_u + b'_i + B[active, bucket(d)] − d̃ + ⟨taste_u, topic_k⟩ + S[age, s]
    like       = a″_u + b″_i + R[region, s] + ⟨taste_u, topic_k⟩ + J(z_u(t) = k)

z_u(t) is the topic that the user is after now. It changes every `drift_days` (at a moment of the
user's own) to the topic's usual successor or, less often, to any: past videos tell it, user and
video means do not.

Written probabilities: p_click, p_long_view = P(click)·P(long_view | click), p_like likewise.
"""

from functools import cached_property
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from rayrun.config import Config
from rayrun.data.columns import Columns, TimeColumn

Floats = np.ndarray[Any, np.dtype[np.float64]]
Ints = np.ndarray[Any, np.dtype[np.int64]]

CHUNK_ROWS = 16_384
START_MS = 1_649_376_000_000  # 2022-04-08 00:00 UTC
DAY_MS = 86_400_000
DAYS = 14
VERSION = 1
"""Raised whenever the same configuration would give other rows."""

TOPICS = 12
STYLES = 6
AGES, REGIONS, ACTIVES, TABS, HOURS, LENGTHS = 5, 6, 3, 4, 4, 5
TASTE_DIM = 4
ACTIVE_NAMES = ("low_active", "middle_active", "high_active")
TASKS = {"click": "is_click", "long_view": "long_view", "like": "is_like"}
"""Task → label column; the true probability of a task stands in column `p_<task>`."""
TRUTH = (*(f"p_{task}" for task in TASKS), "e_play_time_ms")
"""Columns that hold the answer; no feature may read them."""


class SimulateSource(Config):
    """A generated log shaped like KuaiRand, with known true probabilities; needs no files."""

    type: Literal["simulate"] = "simulate"
    rows: int = Field(default=60_000, ge=1, le=1 << 39)
    users: int = Field(default=1_500, ge=1)
    items: int = Field(default=2_000, ge=TOPICS)
    seed: int = Field(default=0, ge=0, lt=1 << 63)
    skew: float = Field(default=0.0, ge=0.0, le=1.0)
    """Share of all rows that belongs to one user, on top of the usual heavy tail."""
    random_share: float = Field(default=0.05, ge=0.0, le=1.0)
    """Share of the rows whose video is drawn uniformly from the catalogue (`is_random` = 1)."""
    drift_days: float = Field(default=7.0, gt=0.5)
    """Days between two changes of what a user is after."""
    columns: Columns = Columns(
        user="user_id",
        item="video_id",
        time=TimeColumn(column="time_ms", unit="ms"),
        request_id="request_id",
    )


SCHEMA = pa.schema(
    [
        ("user_id", pa.int64()),
        ("video_id", pa.int64()),
        ("time_ms", pa.int64()),
        ("request_id", pa.int64()),
        ("hour", pa.int32()),
        ("tab", pa.int32()),
        ("age_group", pa.int32()),
        ("region", pa.int32()),
        ("user_active_degree", pa.string()),
        ("author_id", pa.int64()),
        ("topic", pa.int32()),
        ("style", pa.int32()),
        ("duration_ms", pa.int64()),
        ("is_random", pa.uint8()),
        ("is_click", pa.uint8()),
        ("long_view", pa.uint8()),
        ("is_like", pa.uint8()),
        ("play_time_ms", pa.int64()),
        *((name, pa.float64()) for name in TRUTH),
    ]
)


def hashed(seed: int, stream: int, *keys: Ints | int) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """64 bits for each combination of keys: rounds of splitmix64 (Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        state = _mix(np.uint64(seed) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(stream))
        for key in keys:
            low = np.asarray(key).astype(np.int64).view(np.uint64)
            state = _mix((state ^ low) + np.uint64(0x9E3779B97F4A7C15))
    return np.asarray(state)


def _mix(value: Any) -> Any:
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def uniform(seed: int, stream: int, *keys: Ints | int) -> Floats:
    """Uniform in [0, 1), one for each combination of keys."""
    return (hashed(seed, stream, *keys) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def normal(seed: int, stream: int, *keys: Ints | int) -> Floats:
    """Standard normal, one for each combination of keys (Box and Muller 1958)."""
    radius = np.sqrt(-2.0 * np.log1p(-uniform(seed, 2 * stream + 1_000, *keys)))
    return radius * np.cos(2.0 * np.pi * uniform(seed, 2 * stream + 1_001, *keys))


def sigmoid(logit: Floats) -> Floats:
    """1 / (1 + e^−x)."""
    return 1.0 / (1.0 + np.exp(-logit))


STAR_BOUNDS = (-3.6, -2.4, -0.9, 0.9)
"""Liking below the first is one star, from the last on it is five."""
STAR_NOISE = 0.7


def stars(seed: int, user: Ints, item: Ints, p_click: Floats, p_like: Floats) -> Ints:
    """Stars, 1 to 5, that users give what they clicked.

    The liking is the logit of like given click in that moment (p_like = P(click)·P(like | click))
    and noise of the user and the item, N(0, .7²); its bounds make three and four stars common and
    one star rare, as ratings of films are.
    """
    chance = np.clip(p_like / p_click, 1e-12, 1.0 - 1e-12)
    liking = np.log(chance / (1.0 - chance)) + STAR_NOISE * normal(seed, 70, user, item)
    return 1 + np.searchsorted(np.array(STAR_BOUNDS), liking, side="right").astype(np.int64)


class World:
    """Everything that lasts, for one configuration: the catalogue and the planted effects."""

    def __init__(self, source: SimulateSource) -> None:
        self.source = source
        self.seed = source.seed
        items = np.arange(source.items)
        self.topic = np.where(  # every topic has a video
            items < TOPICS, items, (uniform(self.seed, 1, items) * TOPICS).astype(np.int64)
        )
        self.style = (uniform(self.seed, 2, items) * STYLES).astype(np.int64)
        self.author = (uniform(self.seed, 3, items) ** 1.5 * max(source.items // 8, 1)).astype(
            np.int64
        )
        log_seconds = np.clip(
            np.log(45.0) + 0.7 * normal(self.seed, 4, items), np.log(20), np.log(300)
        )
        self.length = (log_seconds - np.log(45.0)) / 0.7
        self.duration_ms = np.round(1000.0 * np.exp(log_seconds)).astype(np.int64)
        self.popularity = popularity = (1.0 + (uniform(self.seed, 5, items) * source.items)) ** -0.8
        self.by_topic = np.argsort(self.topic, kind="stable")
        self.topic_start = np.searchsorted(self.topic[self.by_topic], np.arange(TOPICS + 1))
        self.within_topic = np.cumsum(popularity[self.by_topic])
        self.overall = np.cumsum(popularity)

    def _table(self, stream: int, rows: int, columns: int) -> Floats:
        """A planted effect table of zero row and column means and unit spread."""
        cells = normal(
            self.seed,
            stream,
            np.repeat(np.arange(rows), columns),
            np.tile(np.arange(columns), rows),
        )
        table = cells.reshape(rows, columns)
        table = table - table.mean(0) - table.mean(1, keepdims=True) + table.mean()
        return table / table.std()

    @cached_property
    def effects(self) -> dict[str, Floats]:
        """The planted interaction tables, each of unit spread."""
        return {
            "age×topic": self._table(20, AGES, TOPICS),
            "hour×topic": self._table(21, HOURS, TOPICS),
            "tab×style": self._table(22, TABS, STYLES),
            "active×length": self._table(23, ACTIVES, LENGTHS),
            "age×style": self._table(24, AGES, STYLES),
            "region×style": self._table(25, REGIONS, STYLES),
            "taste×topic": self._table(26, TASTE_DIM, TOPICS) / np.sqrt(TASTE_DIM),
        }

    @cached_property
    def successor(self) -> Ints:
        """The topic that usually follows a topic: one cycle through all of them."""
        order = np.argsort(uniform(self.seed, 30, np.arange(TOPICS)))
        following = np.empty(TOPICS, dtype=np.int64)
        following[order] = np.roll(order, -1)
        return following

    def interest(self, user: Ints, time_ms: Ints) -> Ints:
        """z_u(t): the topic that each user is after at each time."""
        period = self.source.drift_days * DAY_MS
        phase = uniform(self.seed, 31, user)
        epoch = np.floor((time_ms - START_MS) / period + phase).astype(np.int64)
        topic = (uniform(self.seed, 32, user) * TOPICS).astype(np.int64)
        for step in range(1, int(DAYS * DAY_MS / period) + 2):
            usual = uniform(self.seed, 33, user, step) < 0.7
            any_topic = (uniform(self.seed, 34, user, step) * TOPICS).astype(np.int64)
            moved = np.where(usual, self.successor[topic], any_topic)
            topic = np.where(step <= epoch, moved, topic)
        return topic

    def chunk(self, index: int) -> pa.Table:
        """Rows index·16,384 … of the log, in order of time."""
        source = self.source
        first = index * CHUNK_ROWS
        rows = min(CHUNK_ROWS, source.rows - first)
        bits = np.random.Philox(
            key=hashed(self.seed, 40, np.array([0, 1])), counter=[0, 0, 0, index]
        )
        random = np.random.Generator(bits).random((10, CHUNK_ROWS))[:, :rows]

        # A request shows one video or a few; those share user, tab and millisecond.
        at = np.arange(rows)
        request = np.maximum.accumulate(np.where((random[0] < 0.88) | (at == 0), at, 0))
        user = self._users(random[1])[request]
        time_ms = self._times(first + at + random[2])[request]
        tab = (random[3] ** 2 * TABS).astype(np.int64)[request]
        hour = time_ms // 3_600_000 % 24
        wanted = self.interest(user, time_ms)
        is_random = random[4] < source.random_share
        item = self._items(random[5], random[6], wanted, is_random)

        logits, play_scale = self._logits(user, item, tab, hour, wanted)
        p_click, if_long, if_like = (sigmoid(logit) for logit in logits)
        click = random[7] < p_click
        long_view = click & (random[7] < p_click * if_long)
        like = click & (random[8] < if_like)
        spread = random[9]
        play_s = np.where(
            long_view,
            18.0 - play_scale * np.log1p(-spread),
            np.where(click, 7.0 + 11.0 * spread, 7.0 * spread),
        )
        expected_s = (
            (1.0 - p_click) * 3.5
            + p_click * (1.0 - if_long) * 12.5
            + p_click * if_long * (18.0 + play_scale)
        )
        active = self._active(user)
        columns: list[Any] = [
            user,
            item,
            time_ms,
            first + request,
            hour,
            tab,
            self._age(user),
            self._region(user),
            np.array(ACTIVE_NAMES)[active],
            self.author[item],
            self.topic[item],
            self.style[item],
            self.duration_ms[item],
            is_random,
            click,
            long_view,
            like,
            np.floor(1000.0 * play_s).astype(np.int64),
            p_click,
            p_click * if_long,
            p_click * if_like,
            1000.0 * expected_s,
        ]
        arrays = [
            pa.array(c.astype(np.uint8) if c.dtype == bool else c).cast(field.type)
            for c, field in zip(columns, SCHEMA, strict=True)
        ]
        return pa.table(arrays, schema=SCHEMA)

    def _users(self, draw: Floats) -> Ints:
        """Heavy-tailed activity: density ∝ x^−⅜ over the users, ids in no order of activity."""
        n = self.source.users
        skew = self.source.skew
        rest = np.clip((draw - skew) / max(1.0 - skew, 1e-12), 0.0, 1.0 - 1e-12)
        place = np.where(draw < skew, 0, np.minimum(n * rest**1.6, n - 1)).astype(np.int64)
        step = 0x9E3779B1 % n if n > 1 else 1
        while np.gcd(step, n) != 1:
            step += 1
        return (place * step + n // 3) % n

    def _times(self, position: Floats) -> Ints:
        """Times in order, most of them around noon, strictly inside the 14 days."""
        days = position / self.source.rows * DAYS
        day = np.floor(days)
        part = days - day
        warped = part + 0.6 / (2.0 * np.pi) * np.sin(2.0 * np.pi * part)
        time = START_MS + np.floor((day + warped) * DAY_MS).astype(np.int64)
        return np.clip(time, START_MS + 1, START_MS + DAYS * DAY_MS - 1)

    def _items(self, which: Floats, place: Floats, wanted: Ints, is_random: Any) -> Ints:
        """Nearly half of the impressions are of the wanted topic, the rest by popularity."""
        start, end = self.topic_start[wanted], self.topic_start[wanted + 1]
        below = np.where(start > 0, self.within_topic[start - 1], 0.0)
        target = below + place * (self.within_topic[end - 1] - below)
        spot = np.clip(np.searchsorted(self.within_topic, target, side="right"), start, end - 1)
        of_topic = self.by_topic[spot]
        popular = np.searchsorted(self.overall, place * self.overall[-1], side="right")
        popular = np.minimum(popular, self.source.items - 1)
        chosen = np.where(which < 0.45, of_topic, popular)
        return np.where(is_random, (place * self.source.items).astype(np.int64), chosen)

    def _age(self, user: Ints) -> Ints:
        return (uniform(self.seed, 10, user) * AGES).astype(np.int64)

    def _region(self, user: Ints) -> Ints:
        return (uniform(self.seed, 11, user) ** 1.5 * REGIONS).astype(np.int64)

    def _active(self, user: Ints) -> Ints:
        return (uniform(self.seed, 12, user) * ACTIVES).astype(np.int64)

    def _logits(
        self, user: Ints, item: Ints, tab: Ints, hour: Ints, wanted: Ints
    ) -> tuple[tuple[Floats, Floats, Floats], Floats]:
        """Logits of click, of long_view and like given a click; mean seconds beyond 18 if long."""
        effect = self.effects
        age, topic, style = self._age(user), self.topic[item], self.style[item]
        length = self.length[item]
        bucket = np.clip(((length + 1.25) / 0.625).astype(np.int64), 0, LENGTHS - 1)
        taste = sum(
            normal(self.seed, 50 + k, user) * effect["taste×topic"][k, topic]
            for k in range(TASTE_DIM)
        )
        match = (wanted == topic).astype(np.float64) - 0.4
        click = (
            -0.9
            + 0.55 * normal(self.seed, 60, user)
            + 0.55 * normal(self.seed, 61, item)
            + 0.75 * effect["age×topic"][age, topic]
            + 0.7 * taste
            + 1.1 * match
            + 0.4 * effect["hour×topic"][hour * HOURS // 24, topic]
            + 0.4 * effect["tab×style"][tab, style]
        )
        long_view = (
            0.3
            + 0.5 * normal(self.seed, 62, user)
            + 0.5 * normal(self.seed, 63, item)
            + 0.8 * effect["active×length"][self._active(user), bucket]
            - 0.4 * length
            + 0.5 * taste
            + 0.5 * effect["age×style"][age, style]
        )
        like = (
            -1.2
            + 0.6 * normal(self.seed, 64, user)
            + 0.6 * normal(self.seed, 65, item)
            + 0.9 * effect["region×style"][self._region(user), style]
            + 0.5 * taste
            + 0.9 * match
        )
        scale = np.exp(2.6 + 0.35 * length + 0.3 * taste + 0.2 * normal(self.seed, 66, user))
        return (click, long_view, like), scale
