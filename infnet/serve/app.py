"""The scorer over HTTP: `POST /score`, `GET /healthz`, `GET /openapi.json`, `GET /docs`.

A request takes a place or waits for one (503 when too many wait), then its body is read (413 when
too large), checked and encoded in a thread, and scored together with those that wait beside it.
The event loop does nothing of this that takes longer than to ask a thread for it, so health checks
are answered under any load. Plain ASGI: `infnet.serve.request` checks what there is to check.
"""

import asyncio
import importlib
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from infnet.config import ScorerServe
from infnet.serve.bundle import Bundle
from infnet.serve.decode import RequestError
from infnet.serve.openapi import openapi
from infnet.serve.predict import Predictor
from rayrun.ray.batching import Admission, Batcher
from rayrun.ray.http import (
    DisconnectedError,
    HttpError,
    as_json,
    authorize,
    path_of,
    read_body,
    read_token,
    respond,
)
from rayrun.ray.openapi_page import page
from rayrun.ray.serve import application

NAME = "scorer"
"""Name of the application in Ray Serve."""

ENCODING_THREADS = 4
"""A request of 100,000 candidates does not keep the small ones waiting."""
WRITTEN_AT_ONCE = 128
"""Predictions that are written as JSON in the time it takes to ask a thread to do it."""
LATENCY_MS = [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0]

Answer = tuple[bytes, str]
"""Body and content type of a 200."""


def build(options: ScorerServe, bundle_uri: str) -> Any:
    """The `ray.serve.Application` that serves the bundle at `bundle_uri`; nothing is opened yet."""
    return application(Scorer, options, bundle_uri, options)


class Scorer:
    """One replica: an open bundle behind HTTP."""

    def __init__(self, bundle_uri: str, options: ScorerServe) -> None:
        """Open the bundle, and answer its sample before anything else.

        Raises:
            ConfigError: the bundle is missing, damaged, newer or does not reproduce its sample; the
                variable of `token_env` is not set.
        """
        self.options = options
        self.token = read_token(options.token_env)
        self.bundle = Bundle.open(bundle_uri, threads=max(1, int(options.cpus_per_replica)))
        self.bundle.check_sample()
        self.predictor = Predictor(self.bundle, options)
        self.threads = ThreadPoolExecutor(ENCODING_THREADS, "encode")
        self.scoring = ThreadPoolExecutor(1, "score")
        self.admission = Admission(
            ongoing=options.max_ongoing_requests, queued=options.max_queued_requests
        )
        self.batcher = Batcher(
            self.predictor.score,
            executor=self.scoring,
            items=options.batch_requests,
            rows=options.batch_rows,
            wait_s=options.batch_wait_ms / 1000,
        )
        document = openapi(self.bundle, options)
        self.routes: dict[str, tuple[str, Callable[[Any, Any], Awaitable[Answer]]]] = {
            "/score": ("POST", self.score),
            "/healthz": ("GET", self.healthz),
            "/openapi.json": ("GET", _static(as_json(document), "application/json")),
            "/docs": (
                "GET",
                _static(
                    page(document, options.route_prefix.rstrip("/")), "text/html; charset=utf-8"
                ),
            ),
        }
        metrics: Any = importlib.import_module("ray.serve.metrics")  # its types are too narrow
        self.requests = metrics.Counter(
            "infnet_requests", "Requests answered.", tag_keys=("route", "status")
        )
        self.errors = metrics.Counter(
            "infnet_errors", "Requests refused or failed.", tag_keys=("route", "status")
        )
        self.candidates = metrics.Counter("infnet_candidates", "Candidates scored.")
        self.latency = metrics.Histogram(
            "infnet_latency_ms",
            "From the first byte of a request to the last of its answer.",
            boundaries=LATENCY_MS,
            tag_keys=("route",),
        )

    async def check_health(self) -> None:
        """Raise if the bundle no longer reproduces its sample; Serve replaces the replica then."""
        await asyncio.to_thread(self.bundle.check_sample)

    async def handle(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one HTTP request; an error of ours is a 500 without its details."""
        if scope["type"] != "http":
            await send({"type": "websocket.close"})
            return
        begun = time.perf_counter()
        path = path_of(scope)
        route = path if path in self.routes else "other"
        headers = {}
        kind = "application/json"
        try:
            status = 200
            body, kind = await self._answer(path, scope, receive)
        except (HttpError, RequestError) as error:
            status, body = error.status, as_json(error.body())
            headers = dict(error.headers) if isinstance(error, HttpError) else {}
        except DisconnectedError:
            return
        except Exception:
            status, body = 500, as_json(HttpError(500, "the server failed; see its log").body())
            _log_failure(path)
        await respond(send, status, body, kind=kind, headers=headers)
        tags = {"route": route, "status": str(status)}
        self.requests.inc(tags=tags)
        if status >= 400:
            self.errors.inc(tags=tags)
        self.latency.observe((time.perf_counter() - begun) * 1000, tags={"route": route})

    async def _answer(self, path: str, scope: Any, receive: Any) -> Answer:
        if path not in self.routes:
            raise HttpError(404, f"there is no {path}; there are {', '.join(self.routes)}")
        method, answer = self.routes[path]
        if scope["method"] != method:
            raise HttpError(405, f"{path} takes {method}", {"allow": method})
        return await answer(scope, receive)

    async def healthz(self, scope: Any, receive: Any) -> Answer:
        """Ready, and with which model: a replica that is not has not been started."""
        return as_json({"ready": True, "model": self.bundle.digest}), "application/json"

    async def score(self, scope: Any, receive: Any) -> Answer:
        """`{"model": digest, "predictions": [{task: value}]}` in the candidates' order."""
        authorize(scope, self.token)
        loop = asyncio.get_running_loop()
        async with self.admission.place():
            body = await read_body(scope, receive, self.options.max_body_bytes)
            with self.batcher.preparing():
                encoded = await loop.run_in_executor(self.threads, self.predictor.encode, body)
            rows = len(encoded)
            if rows > self.options.batch_rows:  # beside the others, which it would hold up
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


def _static(body: bytes, kind: str) -> Callable[[Any, Any], Awaitable[Answer]]:
    async def answer(scope: Any, receive: Any) -> Answer:
        return body, kind

    return answer


def _log_failure(path: str) -> None:
    import logging

    logging.getLogger("ray.serve").exception("a request to %s failed", path)
