"""From requests to recommendations: what a served bundle does, without HTTP and without Ray.

    recommender = Recommender(Bundle.read(uri), options)
    answers = recommender.answer([recommender.encode(body) for body in bodies])

One pass of the model over each prompt gives h; the score of item i is h · v_i. Items that the
catalogue does not have have the vector of their title, the mean of its embedded tokens · P, like
all others. What an answer says does not depend on what is answered with it (scores to 1e-5).

Shapes: B users, I items, D width.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from layer_select.export.bundle import Bundle
from layer_select.serve.config import RecommenderServe
from layer_select.serve.engines import engine_of
from layer_select.serve.index import Floats, Ints, index_of
from layer_select.serve.prefix_cache import Prompt
from layer_select.serve.request import NEW, Item, Request, RequestReader
from layer_select.sources import open_model
from layer_select.task.head import ITEM_HEAD, mean_embeddings, read_projection
from layer_select.task.prompts import Prompts
from rayrun.config import ConfigError, Json
from rayrun.ray.body import RequestError
from rayrun.ray.http import as_json


@dataclass(frozen=True)
class Question:
    """A request as tokens."""

    request: Request
    prompt: Prompt
    new: Sequence[list[int]]
    """Tokens of the titles of new candidates, in their order."""

    def __len__(self) -> int:
        """Tokens of the prompt."""
        return len(self.prompt.ids)


class Recommender:
    """A bundle that answers requests. `encode` may run in threads, `answer` in one at a time."""

    def __init__(self, bundle: Bundle, options: RecommenderServe) -> None:
        """Load the model, tokenise the catalogue, build the index if it needs one.

        Raises:
            ConfigError: the model is damaged, the engine cannot run here, or the tokenizer does not
                match the model.
        """
        self.bundle = bundle
        checkpoint = open_model(None, bundle.model)
        self.engine = engine_of(checkpoint, options)
        self._reader = RequestReader(bundle.items, bundle.titles, options)
        self._task = bundle.prompt.task()
        self._prompts = Prompts(
            checkpoint.tokenizer(), int(checkpoint.config.vocab_size), self._task, bundle.titles
        )
        self._tokenizing = threading.Lock()  # a tokenizer serves one thread
        content = checkpoint.file(ITEM_HEAD)
        width = bundle.vectors.shape[1]
        self._projection = None if content is None else read_projection(content, width)
        self._vectors: Floats = bundle.vectors.numpy()
        threads = max(1, int(options.cpus_per_replica))
        self.index = index_of(options.index, self._vectors, threads=threads, file=bundle.index)

    def encode(self, body: bytes) -> Question:
        """A request body, checked, its titles as tokens.

        Raises:
            RequestError: 422 with the path of the first field that is wrong, 413 for a history that
                is too long.
        """
        request = self._reader.read(body)
        first = max(len(request.history) - self._task.max_history, 0)
        pieces = [
            self._piece(item, f"history[{at}]")
            for at, item in enumerate(request.history[first:], start=first)
        ]
        kept = self._prompts.latest(reversed(pieces))
        ids = [*self._prompts.before]
        ends: list[int] = []
        for piece in kept:
            ids += piece
            ends.append(len(ids))
        new = [
            self._tokens(self._prompts.alone, item.title, f"candidates[{at}]")
            for at, item in enumerate(request.candidates or ())
            if item.number == NEW
        ]
        return Question(request, Prompt([*ids, *self._prompts.after], ends), new)

    def answer(self, questions: Sequence[Question]) -> list[list[Json]]:
        """`[{"item", "title", "score"}]` for each question, the best first; `item` is null if new.

        Equal scores are in the order of the catalogue, or of the candidates.
        """
        return self._ranked(questions, reuse=True)

    def check_sample(self) -> None:
        """Answer the bundle's own sample, from scratch.

        Raises:
            ConfigError: the answer is not the one that was stored.
        """
        try:
            question = self.encode(as_json(self.bundle.sample["request"]))
        except (RequestError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{self.bundle.uri}: sample.json holds no request that this catalogue can answer "
                f"({error}); export the bundle again"
            ) from None
        (found,) = self._ranked([question], reuse=False)
        self.bundle.check_sample(found)

    # ---------------------------------------------------------------------------------------------

    def _ranked(self, questions: Sequence[Question], *, reuse: bool) -> list[list[Json]]:
        hidden = self.engine.last_hidden([q.prompt for q in questions], reuse=reuse).numpy()
        open_ = [n for n, q in enumerate(questions) if q.request.candidates is None]
        answers: list[list[Json]] = [[] for _ in questions]
        for number, row in zip(
            open_, self._catalogue(hidden[open_], questions, open_), strict=True
        ):
            answers[number] = row
        for number, question in enumerate(questions):
            if question.request.candidates is not None:
                answers[number] = self._candidates(hidden[number], question)
        return answers

    def _catalogue(
        self, hidden: Floats, questions: Sequence[Question], numbers: Sequence[int]
    ) -> list[list[Json]]:
        if not numbers:
            return []
        requests = [questions[number].request for number in numbers]
        found: list[Ints | None] = [None] * len(requests)
        if self.index is not None:
            most = max(r.k + len(r.excluded) for r in requests)
            for at, near in enumerate(self.index.search(hidden, most)):
                excluded = np.fromiter(requests[at].excluded, np.int64)
                left = near[~np.isin(near, excluded)]
                if len(left) >= requests[at].k:
                    found[at] = left
        whole = [at for at, near in enumerate(found) if near is None]
        scores = dict(zip(whole, hidden[whole] @ self._vectors.T, strict=True)) if whole else {}
        answers: list[list[Json]] = []
        for at, request in enumerate(requests):
            near = found[at]
            if near is None:
                own = scores[at]
                own[list(request.excluded)] = -np.inf
                best = _best(own, request.k)
                answers.append(self._said(best, own[best]))
            else:
                own = self._vectors[near] @ hidden[at]
                best = _best(own, request.k)
                answers.append(self._said(near[best], own[best]))
        return answers

    def _candidates(self, hidden: Floats, question: Question) -> list[Json]:
        candidates = question.request.candidates
        assert candidates is not None
        numbers = np.array([item.number for item in candidates])
        vectors = self._vectors[numbers]  # of new ones (−1) replaced below
        if question.new:
            vectors[numbers == NEW] = self._new_vectors(question.new)
        scores = vectors @ hidden
        answer: list[Json] = []
        for at in _best(scores, question.request.k).tolist():
            item = candidates[at]
            name = None if item.number == NEW else self.bundle.items[item.number]
            answer.append({"item": name, "title": item.title, "score": float(scores[at])})
        return answer

    @torch.no_grad()
    def _new_vectors(self, titles: Sequence[list[int]]) -> Floats:
        vectors = mean_embeddings(self.engine.embedding(), titles)
        if self._projection is not None:
            vectors = vectors @ self._projection.to(vectors)
        return vectors.float().cpu().numpy()

    def _said(self, numbers: Ints, scores: Floats) -> list[Json]:
        return [
            {"item": self.bundle.items[n], "title": self.bundle.titles[n], "score": score}
            for n, score in zip(numbers.tolist(), scores.tolist(), strict=True)
        ]

    def _piece(self, item: Item, path: str) -> list[int]:
        if item.number != NEW:
            return self._prompts.items[item.number]
        piece = self._tokens(self._prompts.in_history, item.title, path)
        if not self._prompts.latest([piece]):
            raise RequestError(
                422,
                f"{path}.title",
                f"is too long: it has {len(piece)} tokens, a prompt holds {self._task.max_tokens}; "
                "send its beginning",
            )
        return piece

    def _tokens(self, encode: Any, title: str, path: str) -> list[int]:
        try:
            with self._tokenizing:
                return encode([title])[0]
        except ConfigError:
            raise RequestError(
                422, f"{path}.title", "has nothing that the model's tokenizer knows"
            ) from None


def _best(scores: Floats, k: int) -> Ints:
    """Places of the k highest, the highest first, of equal ones the first."""
    if k < len(scores):
        last = np.partition(scores, -k)[-k]
        above = np.flatnonzero(scores > last)
        some = np.concatenate([above, np.flatnonzero(scores == last)[: k - len(above)]])
    else:
        some = np.arange(len(scores))
    return some[np.lexsort((some, -scores[some]))]
