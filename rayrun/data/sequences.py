"""Histories with titles: who took what in which order, and what each item is called.

    data = open_sequences(SequenceData(source=…, users=2000))
    data.titles[data.histories[0][-1]]           # the last title of the first user

Items are numbers of the catalogue 0 … I−1, which holds every titled item of the source, users or
not. Only events of the users that are taken are ever held in memory.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rayrun.config import ConfigError, digest_of
from rayrun.data.sequence_source import SequenceData

Ints = np.ndarray[Any, np.dtype[np.int64]]

FEWEST_EVENTS = 3
"""One to train on, one to validate, one to test."""

PARTS = ("train", "validation", "test")


@dataclass(frozen=True)
class Rated:
    """Events that come with their own split, history and label (MovieLens-CoLLM); R of them."""

    user: Ints
    """Place in `Sequences.users`."""
    position: Ints
    """How many events of the same user came before."""
    item: Ints
    label: Ints
    """1 liked, 0 not."""
    part: Ints
    """Place in `PARTS`."""
    history: Sequence[Ints]
    """Items liked before, oldest first."""


@dataclass(frozen=True)
class Sequences:
    """What a source holds of the users that were taken."""

    name: str
    """For messages."""
    titles: Sequence[str]
    """Of every item; no two are equal, none is empty."""
    items: Sequence[str]
    """Of every item, the id that the source has for it, as text."""
    users: Sequence[str]
    histories: Sequence[Ints]
    """Items of each user in order of time: all events, or with `rated` the likes of its train
    part."""
    rated: Rated | None
    counts: dict[str, int]
    """What was taken, left out or changed: users_taken, users_short, items, titles_duplicate, …"""
    digest: str
    """`sha256:…` of titles, users, events and ratings; where they lie and what the source calls its
    items does not enter."""
    ratings: Sequence[Ints] | None = None
    """Stars, 1 to 5, that each user gave the items of the history; None: the source has none."""

    def training(self) -> list[Ints]:
        """Items of each user that training may see: all but the last two (leave-one-out)."""
        if self.rated is not None:
            return list(self.histories)
        return [items[:-2] for items in self.histories]

    def training_ratings(self) -> list[Ints]:
        """Stars of the events of `training`; there must be `ratings`."""
        assert self.ratings is not None
        return [stars[:-2] for stars in self.ratings]


def open_sequences(data: SequenceData) -> Sequences:
    """Read the catalogue and the histories of the users that `data` takes.

    Raises:
        ConfigError: no data there (for a named source the message lists how to get them), a missing
            column, more untitled items than `max_empty_share`, or no user with three events.
    """
    from rayrun.data import sequence_readers  # pyarrow is not needed to describe a source

    return sequence_readers.read(data)


def user_order(users: Iterable[str], seed: int) -> list[str]:
    """Users by a stable hash: the first n are a sample that another machine draws alike."""
    return sorted(users, key=lambda user: (user_hash(user, seed), user))


def user_hash(user: str, seed: int) -> int:
    """63 bits of BLAKE2b of a user's id, keyed by the seed."""
    digest = hashlib.blake2b(user.encode(), digest_size=8, key=str(seed).encode()).digest()
    return int.from_bytes(digest, "big") >> 1


class Catalogue:
    """Items of a source, numbered; titles cleaned and told apart."""

    def __init__(self, entries: Iterable[tuple[Any, str | None]], data: SequenceData, name: str):
        """Number the titled items in the order given; a second title of one item is not looked at.

        Raises:
            ConfigError: the share of items without a title is above `max_empty_share`.
        """
        self.number: dict[Any, int] = {}
        """Item → number; items without a title have none."""
        cleaned: list[str] = []
        empty = 0
        seen: set[Any] = set()
        for key, title in entries:
            if key in seen:
                continue
            seen.add(key)
            text = clean_title(title or "")
            if not text:
                empty += 1
                continue
            self.number[key] = len(cleaned)
            cleaned.append(text)
        if empty > data.max_empty_share * len(seen) or not cleaned:
            raise ConfigError(
                f"{name}: {empty:,} of {len(seen):,} items have no title, more than "
                f"data.max_empty_share ({data.max_empty_share}); name the right column of titles, "
                "or raise the share"
            )
        self.titles, duplicates = told_apart(cleaned)
        self.counts = {
            "items": len(cleaned),
            "titles_empty": empty,
            "titles_duplicate": duplicates,
        }


def clean_title(title: str) -> str:
    """A title as a catalogue holds it: one line, one space between words, empty if it has none.

    A line end would end the title in a prompt.
    """
    return " ".join(title.split())


def told_apart(titles: Sequence[str]) -> tuple[list[str], int]:
    """Titles with ` (2)`, ` (3)` … after the second, third … of equal ones, and how many changed.

    A suffixed title never equals one that stands there already.
    """
    taken = set(titles)
    first: set[str] = set()
    last: Counter[str] = Counter()
    found: list[str] = []
    for title in titles:
        if title not in first:
            first.add(title)
            found.append(title)
            continue
        number = max(last[title], 1) + 1
        while f"{title} ({number})" in taken:
            number += 1
        last[title] = number
        taken.add(f"{title} ({number})")
        found.append(f"{title} ({number})")
    return found, len(titles) - len(first)


def assembled(
    name: str,
    catalogue: Catalogue,
    users: Sequence[str],
    histories: Sequence[Ints],
    counts: dict[str, int],
    rated: Rated | None = None,
    ratings: Sequence[Ints] | None = None,
) -> Sequences:
    """The sequences, with their digest.

    Raises:
        ConfigError: no user is left.
    """
    if not users:
        raise ConfigError(
            f"{name} has no user with {FEWEST_EVENTS} events of titled items "
            f"({counts.get('users_short', 0):,} users have fewer); check data.source.columns"
        )
    content = hashlib.sha256(digest_of([list(catalogue.titles), list(users)]).encode())
    arrays: list[Ints] = [*histories, *(ratings or ())]
    if rated is not None:
        arrays += [rated.user, rated.position, rated.item, rated.label, rated.part, *rated.history]
    for array in arrays:
        content.update(len(array).to_bytes(8, "big"))
        content.update(np.ascontiguousarray(array, dtype=">i8").tobytes())
    taken = {"users_taken": len(users), "events": int(sum(len(h) for h in histories))}
    return Sequences(
        name=name,
        titles=catalogue.titles,
        items=[str(item) for item in catalogue.number],
        users=users,
        histories=histories,
        rated=rated,
        counts={**catalogue.counts, **counts, **taken},
        digest="sha256:" + content.hexdigest(),
        ratings=ratings,
    )
