"""The scorer over HTTP: `POST /score`, `GET /healthz`, `GET /openapi.json`, `GET /docs`.

A request takes a place or waits for one (503 when too many wait), then its body is read (413 when
too large), checked and encoded in a thread, and scored together with those that wait beside it.
The event loop does nothing of this that takes longer than to ask a thread for it, so health checks
are answered under any load. Plain ASGI: `infnet.serve.request` checks what there is to check.
"""

import asyncio
import importlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from infnet.config import ScorerServe
from infnet.serve.bundle import Bundle
from infnet.serve.openapi import openapi
from infnet.serve.predict import Predictor
from rayrun.ray.batching import Batcher
from rayrun.ray.endpoint import Answer, Endpoint
from rayrun.ray.http import as_json, read_body
from rayrun.ray.serve import application

NAME = "scorer"
"""Name of the application in Ray Serve."""

ENCODING_THREADS = 4
"""A request of 100,000 candidates does not keep the small ones waiting."""
WRITTEN_AT_ONCE = 128
"""Predictions that are written as JSON in the time it takes to ask a thread to do it."""


def build(options: ScorerServe, bundle_uri: str) -> Any:
    """The `ray.serve.Application` that serves the bundle at `bundle_uri`; nothing is opened yet."""
    return application(Scorer, options, bundle_uri, options)


class Scorer(Endpoint):
    """One replica: an open bundle behind HTTP."""

    def __init__(self, bundle_uri: str, options: ScorerServe) -> None:
        """Open the bundle, and answer its sample before anything else.

        Raises:
            ConfigError: the bundle is missing, damaged, newer or does not reproduce its sample; the
                variable of `token_env` is not set.
        """
        self.bundle = Bundle.open(
            bundle_uri,
            threads=max(1, int(options.cpus_per_replica)),
            map_from=options.mapped_table_bytes,
            resident=options.mapped_resident_bytes,
        )
        self.bundle.check_sample()
        super().__init__(
            "infnet",
            self.bundle.digest,
            openapi(self.bundle, options),
            options,
            {"/score": ("POST", self.score)},
        )
        self.batch_rows = options.batch_rows
        self.predictor = Predictor(self.bundle, options)
        self.threads = ThreadPoolExecutor(ENCODING_THREADS, "encode")
        self.scoring = ThreadPoolExecutor(1, "score")
        self.batcher = Batcher(
            self.predictor.score,
            executor=self.scoring,
            items=options.batch_requests,
            rows=options.batch_rows,
            wait_s=options.batch_wait_ms / 1000,
        )
        metrics: Any = importlib.import_module("ray.serve.metrics")
        self.candidates = metrics.Counter("infnet_candidates", "Candidates scored.")

    async def check_health(self) -> None:
        """Raise if the bundle no longer reproduces its sample; Serve replaces the replica then."""
        await asyncio.to_thread(self.bundle.check_sample)

    async def score(self, scope: Any, receive: Any) -> Answer:
        """`{"model": digest, "predictions": [{task: value}]}` in the candidates' order."""
        loop = asyncio.get_running_loop()
        async with self.admitted(scope):
            body = await read_body(scope, receive, self.options.max_body_bytes)
            with self.batcher.preparing():
                encoded = await loop.run_in_executor(self.threads, self.predictor.encode, body)
            rows = len(encoded)
            if rows > self.batch_rows:  # beside the others, which it would hold up
                (predictions,) = await loop.run_in_executor(
                    self.threads, self.predictor.score, [encoded]
                )
            else:
                predictions = await self.batcher(encoded, rows)
            self.candidates.inc(rows)
            answer = {"model": self.bundle.digest, "predictions": predictions}
            if rows <= WRITTEN_AT_ONCE:
                return as_json(answer), "application/json"
            return await loop.run_in_executor(self.threads, as_json, answer), "application/json"
