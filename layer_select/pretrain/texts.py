"""Training texts: histories as prompts, packed into rows of equal length that are learnt together.

Shapes: R rows, T tokens of a row.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from layer_select.task.config import LOWEST, Task
from layer_select.task.prompts import Prompts
from rayrun.config import ConfigError
from rayrun.data.sequences import Ints

NONE = -100
"""No target there."""


@runtime_checkable
class Cutting(Protocol):
    """How histories become rows: what the sections `pretrain:` and `heal:` both say."""

    row_tokens: int
    event_dropout: float
    yes_no_share: float
    seed: int


@dataclass(frozen=True)
class Text:
    """One text: a stretch of a history, and what is to be predicted at its tokens."""

    ids: list[int]
    items: list[int]
    """At the last token of a title the next item, else NONE."""
    answers: list[int]
    """At the last token of a question 0 or 1, of one for a rating 1 to 5 stars, else NONE."""


@dataclass(frozen=True)
class Rows:
    """Packed texts. `text` numbers the texts of a row from 1; 0 is padding."""

    ids: Int64[Tensor, "R T"]
    text: Int64[Tensor, "R T"]
    position: Int64[Tensor, "R T"]
    items: Int64[Tensor, "R T"]
    answers: Int64[Tensor, "R T"]

    def __getitem__(self, part: slice) -> "Rows":
        return Rows(**{name: value[part] for name, value in vars(self).items()})

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device) -> "Rows":
        """The same rows on a device."""
        return Rows(**{name: value.to(device) for name, value in vars(self).items()})

    @property
    def num_tokens(self) -> int:
        """Without padding."""
        return int((self.text > 0).sum())

    def attention(self) -> Bool[Tensor, "R 1 T T"]:
        """Causal, and within one text only. Padding sees itself: a row of nothing is NaN."""
        same = self.text[:, :, None] == self.text[:, None, :]
        return (same & torch.ones_like(same[0]).tril())[:, None]

    def tokens(self) -> Int64[Tensor, "R T"]:
        """The next token of the same text, else NONE."""
        following = torch.full_like(self.ids, NONE)
        together = (self.text[:, 1:] == self.text[:, :-1]) & (self.text[:, 1:] > 0)
        following[:, :-1] = torch.where(together, self.ids[:, 1:], NONE)
        return following


class TextMaker:
    """Texts of an epoch: other windows and other questions in each, the same on every worker."""

    def __init__(
        self,
        config: Cutting,
        task: Task,
        prompts: Prompts,
        histories: Sequence[Ints],
        *,
        section: str = "pretrain",
        ratings: Sequence[Ints] | None = None,
    ) -> None:
        """`prompts` must know yes/no questions where the texts ask any; `histories` are training
        events only; `section` holds `config`. With `ratings`, the stars of `histories`, texts show
        them as prompts do, and end with the question for the rating of an event.

        Raises:
            ConfigError: a text may be longer than a row, or prompts do not end with a title.
        """
        self._config, self._task, self._prompts = config, task, prompts
        self._histories, self._ratings = histories, ratings
        self._opening = prompts.of(np.array([], np.int64), ratings=np.array([], np.int64))
        longest = task.max_tokens + max(map(len, prompts.questions), default=-1) + 1
        if longest > config.row_tokens:
            raise ConfigError(
                f"{section}.row_tokens ({config.row_tokens}) must hold a prompt and a question, "
                f"{longest} tokens at most; raise it, or lower task.max_tokens ({task.max_tokens})"
            )
        if task.prompt.after:
            raise ConfigError(
                f"texts of {section} are learnt at the end of every title, so task.prompt.after "
                f"must be empty, found {task.prompt.after!r}; put it into task.prompt.item"
            )

    def rows(self, epoch: int) -> Rows:
        """All rows of an epoch, shuffled."""
        rng = np.random.default_rng([self._config.seed, epoch])
        texts = [
            text
            for number in rng.permutation(len(self._histories))
            for text in self._of_user(int(number), rng)
        ]
        return packed(texts, self._config.row_tokens, rng)

    def _of_user(self, number: int, rng: np.random.Generator) -> list[Text]:
        items: list[int] = self._histories[number].tolist()
        stars = [LOWEST] * len(items) if self._ratings is None else self._ratings[number].tolist()
        if self._config.event_dropout:
            kept = rng.random(len(items)) >= self._config.event_dropout
            items = [item for item, keep in zip(items, kept, strict=True) if keep]
            stars = [of for of, keep in zip(stars, kept, strict=True) if keep]
        pieces = [self._piece(item, of) for item, of in zip(items, stars, strict=True)]
        texts: list[Text] = []
        room = self._task.max_tokens - len(self._opening)
        first = int(rng.integers(room // 2, room + 1))  # another cut in every epoch
        start = 0
        while start < len(items):
            end, used = start, 0
            while end < len(items) and end - start < self._task.max_history:
                cost = len(pieces[end])
                if used + cost > first and end > start:
                    break
                used, end = used + cost, end + 1
            if self._ratings is not None:
                # The last event of all is asked about, not shown: there is none after it.
                asked = end if end < len(items) else end - 1
                last = asked if asked > start else end
                text = self._shown(pieces[start:last], items[start : last + 1])
                texts.append(
                    self._rated(text, items[asked], stars[asked]) if last == asked else text
                )
            else:
                text = self._shown(pieces[start:end], items[start : end + 1])
                texts.append(self._asked(text, items[end : end + 1], set(items), rng))
            start, first = end, room
        return texts

    def _piece(self, item: int, stars: int) -> list[int]:
        if self._ratings is not None and self._prompts.rated:
            return self._prompts.rated[stars - LOWEST][item]
        return self._prompts.items[item]

    def _shown(self, pieces: list[list[int]], items: list[int]) -> Text:
        """A history; `items` has one more than `pieces` where one follows."""
        ids, targets = list(self._opening), [NONE] * len(self._opening)
        for piece, target in zip(pieces, [*items[1:], NONE], strict=False):
            ids += piece
            targets += [NONE] * (len(piece) - 1) + [target]
        return Text(ids, targets, [NONE] * len(ids))

    def _rated(self, text: Text, item: int, stars: int) -> Text:
        question = self._prompts.questions[item]
        none = [NONE] * (len(question) - 1)
        return Text(
            [*text.ids, *question], [*text.items, NONE, *none], [*text.answers, *none, stars]
        )

    def _asked(
        self, text: Text, following: list[int], own: set[int], rng: np.random.Generator
    ) -> Text:
        ids, targets, answers = text.ids, text.items, text.answers
        if following and rng.random() < self._config.yes_no_share:
            answer = int(rng.integers(2))
            asked = following[0] if answer else int(rng.integers(len(self._prompts.items)))
            if answer or asked not in own:
                question = self._prompts.questions[asked]
                ids += [*question, self._prompts.answers[answer]]
                targets += [NONE] * (len(question) + 1)
                answers += [*[NONE] * (len(question) - 1), answer, NONE]
        return Text(ids, targets, answers)


def packed(texts: Sequence[Text], length: int, rng: np.random.Generator) -> Rows:
    """Texts packed into rows by best fit, longest first; the rows shuffled."""
    bins: list[list[Text]] = []
    free: list[list[int]] = [[] for _ in range(length + 1)]  # rows by the room they have left
    for text in sorted(texts, key=lambda t: -len(t.ids)):
        need = len(text.ids)
        left = next((room for room in range(need, length + 1) if free[room]), None)
        if left is None:
            number, left = len(bins), length
            bins.append([])
        else:
            number = free[left].pop()
        bins[number].append(text)
        free[left - need].append(number)
    names = ("ids", "text", "position", "items", "answers")
    empty = {"ids": 0, "text": 0, "position": 0, "items": NONE, "answers": NONE}
    columns = {name: np.full((len(bins), length), empty[name], np.int64) for name in names}
    for row, number in enumerate(rng.permutation(len(bins))):
        at = 0
        for place, text in enumerate(bins[number], start=1):
            part = slice(at, at + len(text.ids))
            columns["ids"][row, part] = text.ids
            columns["text"][row, part] = place
            columns["position"][row, part] = np.arange(len(text.ids))
            columns["items"][row, part] = text.items
            columns["answers"][row, part] = text.answers
            at = part.stop
    return Rows(**{name: torch.from_numpy(column) for name, column in columns.items()})
