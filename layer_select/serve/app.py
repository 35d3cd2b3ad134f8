"""The recommender over HTTP: `POST /recommend`, `GET /healthz`, `/openapi.json` and `/docs`.

A request takes a place or waits for one (503 when too many wait), then its body is read (413 when
too large), checked and tokenised in a thread, and answered together with those that wait beside it.
"""

import asyncio
import importlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from layer_select.export.bundle import Bundle
from layer_select.serve.config import RecommenderServe
from layer_select.serve.openapi import openapi
from layer_select.serve.scorer import Recommender
from rayrun.ray.batching import Batcher
from rayrun.ray.endpoint import Answer, Endpoint
from rayrun.ray.http import as_json, read_body
from rayrun.ray.serve import application

NAME = "recommender"
"""Name of the application in Ray Serve."""

ENCODING_THREADS = 4
"""A request of 100,000 candidates does not keep the small ones waiting."""


def build(options: RecommenderServe, bundle_uri: str) -> Any:
    """The `ray.serve.Application` that serves the bundle at `bundle_uri`; nothing is opened yet."""
    return application(RecommenderApp, options, bundle_uri, options, gpus=options.gpus_per_replica)


class RecommenderApp(Endpoint):
    """One replica: an open bundle behind HTTP."""

    def __init__(self, bundle_uri: str, options: RecommenderServe) -> None:
        """Open the bundle, and answer its sample before anything else.

        Raises:
            ConfigError: the bundle is missing, damaged, newer or does not reproduce its sample; the
                engine cannot run here; the variable of `token_env` is not set.
        """
        self.recommender = Recommender(Bundle.read(bundle_uri), options)
        self.recommender.check_sample()
        bundle = self.recommender.bundle
        super().__init__(
            "layer_select",
            bundle.digest,
            openapi(bundle, options),
            options,
            {"/recommend": ("POST", self.recommend)},
        )
        self.threads = ThreadPoolExecutor(ENCODING_THREADS, "encode")
        self.scoring = ThreadPoolExecutor(1, "score")
        self.batcher = Batcher(
            self.recommender.answer,
            executor=self.scoring,
            items=options.batch_requests,
            rows=options.batch_tokens,
            wait_s=options.batch_wait_ms / 1000,
        )
        metrics: Any = importlib.import_module("ray.serve.metrics")
        self.tokens = metrics.Counter("layer_select_tokens", "Tokens of the prompts answered.")

    async def check_health(self) -> None:
        """Raise if the bundle no longer reproduces its sample; Serve replaces the replica then."""
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self.scoring, self.recommender.check_sample)

    async def recommend(self, scope: Any, receive: Any) -> Answer:
        """`{"model": digest, "items": [{"item", "title", "score"}]}`, the best first."""
        loop = asyncio.get_running_loop()
        async with self.admitted(scope):
            body = await read_body(scope, receive, self.options.max_body_bytes)
            with self.batcher.preparing():
                question = await loop.run_in_executor(self.threads, self.recommender.encode, body)
            items = await self.batcher(question, len(question))
            self.tokens.inc(len(question))
            answer = {"model": self.digest, "items": items}
            return await loop.run_in_executor(self.threads, as_json, answer), "application/json"
