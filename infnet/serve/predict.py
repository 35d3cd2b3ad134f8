"""From requests to predictions: what a served application does, without HTTP and without Ray.

    predictor = Predictor(Bundle.open(uri), options)
    answers = predictor.score([predictor.encode(body) for body in bodies])

Encoding is of one request alone; scoring takes the requests that wait together. The
prediction of a candidate does not depend on what else is scored with it (to 1e-6: a matrix product
rounds differently in another shape).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from infnet.features.arrays import Arrays, together
from infnet.features.compiled import RequestEncoder
from infnet.serve.bundle import Bundle
from infnet.serve.request import Request, RequestReader
from rayrun.ray.body import RequestError

if TYPE_CHECKING:  # the configuration imports torch, which a server does without
    from infnet.config import ScorerServe

Predictions = list[dict[str, float]]
"""One entry per candidate, in their order: predictions by task."""

COPIES_WORTH_A_CALL = 1500
"""Events copied to further rows that cost as much as a call of the graph: bench/serving.py found
0.8 ms for a call and 0.55 µs for an event of a row."""


@dataclass(frozen=True)
class Encoded:
    """A request whose first rows, at most `batch_rows`, are encoded; the others wait their turn.

    Many candidates with a long history would else stand in memory at once.
    """

    request: Request
    rows: Arrays

    def __len__(self) -> int:
        """Number of candidates."""
        return len(self.request)


class Predictor:
    """A bundle that answers requests. Holds nothing of a request; methods may run in threads."""

    def __init__(self, bundle: Bundle, options: "ScorerServe") -> None:
        """The limits are those of `options`: `max_candidates` and `batch_rows`.

        Raises:
            ConfigError: a column of the log has no form in JSON.
        """
        self.bundle = bundle
        self._batch_rows = options.batch_rows
        self._reader = RequestReader(bundle.encoder, max_candidates=options.max_candidates)
        self._encoder = RequestEncoder(bundle.encoder)

    def encode(self, body: bytes) -> Encoded:
        """A request body, checked and encoded as the rows of the log were.

        Raises:
            RequestError: 422, with the path of the first field that is wrong.
        """
        request = self._reader.read(body)
        return Encoded(request, self._encode(request, 0))

    def score(self, encoded: Sequence[Encoded]) -> list[Predictions]:
        """Predictions for several requests, in their order; at most `batch_rows` rows at a time.

        Raises:
            RequestError: 422, the model has no finite answer to one of the candidates.
        """
        found: list[list[np.ndarray]] = [[] for _ in encoded]
        waiting: list[tuple[int, Arrays]] = []
        rows = 0
        for owner, part in self._parts(encoded):
            if waiting and rows + len(part) > self._batch_rows:
                self._flush(waiting, found)
                waiting, rows = [], 0
            waiting.append((owner, part))
            rows += len(part)
        if waiting:
            self._flush(waiting, found)
        return [self._answer(np.concatenate(parts)) for parts in found]

    def _encode(self, request: Request, start: int) -> Arrays:
        candidates = request.candidates.between(start, start + self._batch_rows)
        return self._encoder.encode(request.shared, candidates, request.histories)

    def _parts(self, encoded: Sequence[Encoded]) -> Iterator[tuple[int, Arrays]]:
        for owner, one in enumerate(encoded):
            yield owner, one.rows
            for start in range(self._batch_rows, len(one.request), self._batch_rows):
                yield owner, self._encode(one.request, start)

    def _flush(self, waiting: list[tuple[int, Arrays]], found: list[list[np.ndarray]]) -> None:
        alone = [part for part in waiting if self._is_scored_alone(part[1])]
        others = [part for part in waiting if not self._is_scored_alone(part[1])]
        for group in [*([part] for part in alone), others]:
            if group:
                predicted = self.bundle.score(together([part for _, part in group]))
                values = np.stack([predicted[task] for task in self.bundle.schema.tasks], axis=1)
                start = 0
                for owner, part in group:
                    found[owner].append(values[start : start + len(part)])
                    start += len(part)

    def _is_scored_alone(self, part: Arrays) -> bool:
        """Its rows share a history, which they would not in company, and that outweighs a call."""
        if not (self.bundle.shares_histories and part.one_history):
            return False
        events = sum(sequence.ids.shape[1] for sequence in part.sequences.values())
        return (len(part) - 1) * events >= COPIES_WORTH_A_CALL

    def _answer(self, values: np.ndarray) -> Predictions:
        tasks = list(self.bundle.schema.tasks)
        if not np.isfinite(values).all():
            at, task = (int(i[0]) for i in np.nonzero(~np.isfinite(values)))
            raise RequestError(
                422,
                f"candidates[{at}]",
                f"has numbers so far from those of the training log that the model's {tasks[task]} "
                "is not finite; check their units",
            )
        return [dict(zip(tasks, row, strict=True)) for row in values.tolist()]
