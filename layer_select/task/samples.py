"""Samples of a task: which event of which user is the target, in which part.

Leave-one-out: the last event of a user is the test target, the last but one validation, and
calibration targets are events before those. Sets that bring their own split keep it.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from layer_select.task.config import Task
from rayrun.config import ConfigError
from rayrun.data.sequences import PARTS, Rated, Sequences, user_hash
from rayrun.data.world import hashed

Part = Literal["calibration", "validation", "test"]
Ints = np.ndarray[Any, np.dtype[np.int64]]

ORDER, LABEL, NEGATIVE = 70, 71, 72
"""Streams of the hash."""


@dataclass(frozen=True)
class Sample:
    """One question: what comes after this history?"""

    user: int
    """Place in the sequences' users."""
    position: int
    """Events of the user before the target."""
    history: Ints
    """Items before the target, oldest first, at most `max_history`."""
    item: int
    """The target; for yes/no and ratings the item that is asked about."""
    label: int
    """1: it was taken (or liked); 0: it was not. Of a rating the stars, 1 to 5."""
    ratings: Ints | None = None
    """Stars that the items of the history were given; of ratings only."""


def draw(sequences: Sequences, task: Task) -> dict[Part, list[Sample]]:
    """The samples of every part, at most as many as the task asks for, chosen by a stable hash.

    A calibration sample with the very history and target of a validation or test sample (the same
    person under two ids, say) is left out.

    Raises:
        ConfigError: a part that is asked for has no sample, calibration overlaps another part, or
            ratings are asked for and there are none.
    """
    if task.type == "rating" and sequences.ratings is None:
        raise ConfigError(
            f"task.type rating needs ratings, and {sequences.name} has none; name the column, "
            "data.source.columns.rating, or take data.source movielens_100k or "
            "{type: simulate, ratings: true}"
        )
    found: dict[Part, list[Sample]] = {
        "validation": _take(_candidates(sequences, task, "validation"), task.validation),
        "test": _take(_candidates(sequences, task, "test"), task.test),
    }
    held_out = {_content(s) for part in found.values() for s in part}
    candidates = _candidates(sequences, task, task.calibration_from)
    if task.calibration_from == "train":
        candidates = (s for s in candidates if _content(s) not in held_out)
    found["calibration"] = _take(candidates, task.calibration)
    asked: dict[Part, int] = {
        "calibration": task.calibration,
        "validation": task.validation,
        "test": task.test,
    }
    for part, wanted in asked.items():
        if wanted and not found[part]:
            other = f"set task.{part}: 0" if part != "calibration" else "take more users"
            raise ConfigError(
                f"task.{part} asks for {wanted} samples, but {sequences.name} has none for that "
                f"part; {other}"
            )
    check_disjoint(found, sequences.users, task.calibration_from)
    return found


def check_disjoint(
    samples: dict[Part, list[Sample]], users: Sequence[str], drawn_from: str
) -> None:
    """Calibration shares no target with validation or test, and sees none of their targets.

    Raises:
        ConfigError: it does, naming a user.
    """
    for part in ("test", "validation"):
        targets: dict[int, list[int]] = {}
        for sample in samples[part]:
            targets.setdefault(sample.user, []).append(sample.position)
        for sample in samples["calibration"]:
            for position in targets.get(sample.user, ()):
                # The history of a sample begins at most `max_history` events before its target.
                if sample.position - len(sample.history) <= position <= sample.position:
                    how = "asks for" if position == sample.position else "shows in a history"
                    raise ConfigError(
                        f"calibration overlaps {part}: it {how} event {position + 1} of user "
                        f"{users[sample.user]!r}, which is a target of {part}; "
                        f"task.calibration_from is {drawn_from!r}: draw it from train, or set "
                        f"task.{part}: 0"
                    )


def _content(sample: Sample) -> tuple[bytes, int, int]:
    return sample.history.tobytes(), sample.item, sample.label


def _take(samples: Iterable[Sample], count: int) -> list[Sample]:
    return [sample for sample, _ in zip(samples, range(count), strict=False)]


def _candidates(sequences: Sequences, task: Task, part: str) -> Iterator[Sample]:
    """All samples of a part, in the order of their hash."""
    if sequences.rated is not None:
        yield from _rated(sequences, sequences.rated, task, part)
        return
    lengths = np.array([len(items) for items in sequences.histories])
    if part == "train":
        targets = np.maximum(lengths - 3, 0)  # positions 1 … length − 3
        user = np.repeat(np.arange(len(lengths)), targets)
        position = np.arange(len(user)) - (np.cumsum(targets) - targets)[user] + 1
    else:
        user = np.arange(len(lengths))
        position = lengths - (1 if part == "test" else 2)
    keys = _keys(sequences, task)
    for place in np.argsort(hashed(task.seed, ORDER, keys[user], position), kind="stable"):
        who, at = int(user[place]), int(position[place])
        items = sequences.histories[who]
        item, label = int(items[at]), 1
        if task.type == "yes_no":
            item, label = _asked(sequences, task, int(keys[who]), who, at)
        seen = slice(max(at - task.max_history, 0), at)
        ratings = None
        if task.type == "rating":
            assert sequences.ratings is not None
            label, ratings = int(sequences.ratings[who][at]), sequences.ratings[who][seen]
        yield Sample(who, at, items[seen], item, label, ratings)


def _rated(sequences: Sequences, rated: Rated, task: Task, part: str) -> Iterator[Sample]:
    chosen = np.flatnonzero(
        (rated.part == PARTS.index(part))
        & ((rated.label == 1) | (task.type == "yes_no"))
        & (np.array([len(h) for h in rated.history]) > 0)
    )
    keys = _keys(sequences, task)[rated.user[chosen]]
    for row in chosen[np.argsort(hashed(task.seed, ORDER, keys, rated.position[chosen]))]:
        yield Sample(
            int(rated.user[row]),
            int(rated.position[row]),
            rated.history[row][-task.max_history :],
            int(rated.item[row]),
            int(rated.label[row]),
        )


def _keys(sequences: Sequences, task: Task) -> Ints:
    return np.array([user_hash(user, task.seed) for user in sequences.users], np.int64)


def _asked(sequences: Sequences, task: Task, key: int, user: int, position: int) -> tuple[int, int]:
    """The next item, or for half of the samples one that the user never took."""
    items = sequences.histories[user]
    if int(hashed(task.seed, LABEL, key, position)) & 1:
        return int(items[position]), 1
    own = set(items.tolist())
    if len(own) == len(sequences.titles):
        raise ConfigError(
            f"a yes/no question needs an item that user {sequences.users[user]!r} never took, but "
            f"the catalogue of {sequences.name} has only {len(own)} items"
        )
    turn = 0
    while True:
        item = int(
            hashed(task.seed, NEGATIVE, key, position, turn) % np.uint64(len(sequences.titles))
        )
        if item not in own:
            return item, 0
        turn += 1
