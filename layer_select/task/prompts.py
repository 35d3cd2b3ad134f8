"""Prompts: from titles to tokens. The catalogue is tokenised once, title by title."""

from collections.abc import Sequence
from typing import Any

from layer_select.task.config import Task
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
        self._before = [*([] if bos is None else [bos]), *self._encode([prompt.before])[0]]
        self._check([self._before], [prompt.before])
        self._after = self._encode([prompt.after])[0]
        self.titles = self._pieces("{title}", titles)
        """Tokens of every title alone: what item vectors are made of."""
        self.items = self._pieces(prompt.item, titles)
        """Tokens of every title as it stands in a history, its end included."""
        self.questions: list[list[int]] = []
        self.answers: list[int] = []
        longest = max(map(len, self.items))
        if task.type == "yes_no":
            self.questions = self._pieces(task.question, titles)
            self.answers = [ids[0] for ids in self._pieces("{title}", task.answers)]
            if self.answers[0] == self.answers[1]:
                raise ConfigError(
                    f"task.answers must begin with different tokens, {list(task.answers)} both "
                    f"begin with token {self.answers[0]}; choose other words"
                )
            longest += max(map(len, self.questions))
        needed = len(self._before) + len(self._after) + longest
        if needed > task.max_tokens:
            raise ConfigError(
                f"task.max_tokens is {task.max_tokens}, but a prompt with the longest title of the "
                f"catalogue needs {needed}; raise it to at least that"
            )

    def of(self, history: Ints, asked: int | None = None) -> list[int]:
        """The prompt of a history: its most recent titles, as many whole ones as fit.

        `asked` is the item of a yes/no question.
        """
        end = [*self._after, *([] if asked is None else self.questions[asked])]
        room = self._task.max_tokens - len(self._before) - len(end)
        kept: list[list[int]] = []
        for item in reversed(history.tolist()):
            if len(self.items[item]) > room:
                break
            room -= len(self.items[item])
            kept.append(self.items[item])
        return [*self._before, *(token for piece in reversed(kept) for token in piece), *end]

    def text(self, ids: Sequence[int]) -> str:
        """The text of token ids, for people."""
        return str(self._tokenizer.decode(list(ids)))

    def _pieces(self, template: str, titles: Sequence[str]) -> list[list[int]]:
        texts = [template.replace("{title}", title) for title in titles]
        pieces = self._encode(texts)
        self._check(pieces, texts)
        for piece, text in zip(pieces, texts, strict=True):
            if not piece:
                raise ConfigError(
                    f"the tokenizer has no token for {text!r}; it does not match these titles, "
                    "take the tokenizer of the model"
                )
        return pieces

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        try:
            return self._tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        except Exception as error:  # the tokenizers library raises nothing more precise
            raise ConfigError(
                f"the tokenizer cannot read these titles ({error}); it does not match them, take "
                "the tokenizer of the model"
            ) from error

    def _check(self, pieces: list[list[int]], texts: Sequence[str]) -> None:
        for piece, text in zip(pieces, texts, strict=True):
            if piece and max(piece) >= self._vocab_size:
                raise ConfigError(
                    f"the tokenizer does not match the model: it gives {text!r} the token "
                    f"{max(piece)}, the embedding has {self._vocab_size} rows; take the tokenizer "
                    "that lies beside the model"
                )
