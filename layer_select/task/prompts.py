"""Prompts: from titles to tokens. The catalogue is tokenised once, title by title.

A title is text and nothing else: what looks like a special token inside it becomes the tokens of
its letters, while the special tokens of the template stay what they are.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from layer_select.task.config import HIGHEST, LOWEST, RATING, Task
from layer_select.task.title_text import PLACE, TitleText
from rayrun.config import ConfigError
from rayrun.data.sequences import Ints


class Prompts:
    """Token ids of histories, questions and titles by one tokenizer."""

    def __init__(self, tokenizer: Any, vocab_size: int, task: Task, titles: Sequence[str]) -> None:
        """Tokenise the catalogue.

        Raises:
            ConfigError: the tokenizer gives ids that the embedding has no row for, or no token for
                a title; or the longest title does not fit into `max_tokens`.
        """
        self._tokenizer, self._vocab_size, self._task = tokenizer, vocab_size, task
        prompt = task.prompt
        bos = tokenizer.bos_token_id if prompt.bos else None
        with _reading():
            self._text = TitleText(tokenizer)
            before = self._text.template(prompt.before)
            self.after = self._text.template(prompt.after)
            """Tokens that stand behind a history."""
        self.before = [*([] if bos is None else [bos]), *before]
        """Tokens that a prompt begins with."""
        self._check([self.before], [prompt.before])
        self.titles = self.alone(titles)
        """Tokens of every title alone: what item vectors are made of."""
        self.items = self.in_history(titles)
        """Tokens of every title as it stands in a history, its end included; where the history
        shows ratings, with one star."""
        self.rated: list[list[list[int]]] = []
        """Where the history shows ratings: for 1 to 5 stars what `items` are for one."""
        if task.prompt.shows_ratings:
            more = [self.in_history(titles, stars) for stars in range(LOWEST + 1, HIGHEST + 1)]
            self.rated = [self.items, *more]
        self.questions: list[list[int]] = []
        self.answers: list[int] = []
        longest = max(len(piece) for pieces in self.rated or [self.items] for piece in pieces)
        if task.type == "yes_no":
            self.questions = self._pieces(task.question, self._read(titles))
            self.answers = [ids[0] for ids in self._pieces(PLACE, task.answers)]
            if self.answers[0] == self.answers[1]:
                raise ConfigError(
                    f"task.answers must begin with different tokens, {list(task.answers)} both "
                    f"begin with token {self.answers[0]}; choose other words"
                )
        if task.type == "rating":
            self.questions = self._pieces(task.question, self._read(titles))
        longest += max(map(len, self.questions), default=0)
        needed = len(self.before) + len(self.after) + longest
        if needed > task.max_tokens:
            raise ConfigError(
                f"task.max_tokens is {task.max_tokens}, but a prompt with the longest title of the "
                f"catalogue needs {needed}; raise it to at least that, or read fewer characters of "
                "each title (task.prompt.title_characters)"
            )

    def of(self, history: Ints, asked: int | None = None, ratings: Ints | None = None) -> list[int]:
        """The prompt of a history: its most recent titles, as many whole ones as fit.

        `asked` is the item of a question; `ratings`, the stars of the history, are shown where the
        template shows them.
        """
        end = [*self.after, *([] if asked is None else self.questions[asked])]
        events = (self.items[item] for item in reversed(history.tolist()))
        if self.rated:
            assert ratings is not None
            pairs = zip(reversed(history.tolist()), reversed(ratings.tolist()), strict=True)
            events = (self.rated[stars - LOWEST][item] for item, stars in pairs)
        pieces = self.latest(events, len(end))
        return [*self.before, *(token for piece in pieces for token in piece), *end]

    def latest(self, pieces: Iterable[list[int]], end: int | None = None) -> list[list[int]]:
        """Of titles in a history, given the latest first, as many as fit; the oldest first.

        `end` is the number of tokens behind them; None: those of the prompt.
        """
        room = self._task.max_tokens - len(self.before) - (len(self.after) if end is None else end)
        kept: list[list[int]] = []
        for piece in pieces:
            if len(piece) > room:
                break
            room -= len(piece)
            kept.append(piece)
        return kept[::-1]

    def alone(self, titles: Sequence[str]) -> list[list[int]]:
        """Tokens of titles by themselves.

        Raises:
            ConfigError: the tokenizer has no token for one, or the embedding no row for a token.
        """
        return self._pieces(PLACE, self._read(titles))

    def in_history(self, titles: Sequence[str], stars: int = LOWEST) -> list[list[int]]:
        """Tokens of titles as they stand in a history, their end included.

        `stars` are shown where the template shows ratings.

        Raises:
            ConfigError: as `alone`.
        """
        template = self._task.prompt.item.replace(RATING, str(stars))
        return self._pieces(template, self._read(titles))

    def text(self, ids: Sequence[int]) -> str:
        """The text of token ids, for people."""
        return str(self._tokenizer.decode(list(ids)))

    def _read(self, titles: Sequence[str]) -> Sequence[str]:
        """Of each title as much as is read."""
        most = self._task.prompt.title_characters
        return [title[:most].rstrip() for title in titles] if most else titles

    def _pieces(self, template: str, titles: Sequence[str]) -> list[list[int]]:
        texts = [template.replace(PLACE, title) for title in titles]
        with _reading():
            pieces = self._text.inside(template, titles)
        self._check(pieces, texts)
        for piece, text in zip(pieces, texts, strict=True):
            if not piece:
                raise ConfigError(
                    f"the tokenizer has no token for {text!r}; it does not match these titles, "
                    "take the tokenizer of the model"
                )
        return pieces

    def _check(self, pieces: list[list[int]], texts: Sequence[str]) -> None:
        for piece, text in zip(pieces, texts, strict=True):
            if piece and max(piece) >= self._vocab_size:
                raise ConfigError(
                    f"the tokenizer does not match the model: it gives {text!r} the token "
                    f"{max(piece)}, the embedding has {self._vocab_size} rows; take the tokenizer "
                    "that lies beside the model"
                )


@contextmanager
def _reading() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # the tokenizers library raises nothing more precise
        raise ConfigError(
            f"the tokenizer cannot read these titles ({error}); it does not match them, take "
            "the tokenizer of the model"
        ) from error
