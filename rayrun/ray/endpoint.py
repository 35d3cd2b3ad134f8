"""One replica behind HTTP: its routes, its errors as JSON, its counters.

    class Scorer(Endpoint):                      # served by rayrun.ray.serve.application(Scorer, …)
        def __init__(self, …):
            super().__init__("infnet", digest, document, options, {"/score": ("POST", self.score)})

Plain ASGI. What every application answers is here: `/healthz`, `/openapi.json` and `/docs`, 401,
404, 405, 503 and 500 without details.
"""

import contextlib
import importlib
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import Any

from rayrun.config import Json
from rayrun.ray.batching import Admission
from rayrun.ray.body import RequestError
from rayrun.ray.http import (
    DisconnectedError,
    HttpError,
    as_json,
    authorize,
    path_of,
    read_token,
    respond,
)
from rayrun.ray.openapi_page import page
from rayrun.ray.serve_options import ServeOptions

LATENCY_MS = [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0]

Answer = tuple[bytes, str]
"""Body and content type of a 200."""
Handler = Callable[[Any, Any], Awaitable[Answer]]
"""Answers one request, given its ASGI `scope` and `receive`."""


class Endpoint:
    """What is left to a product: its own routes, and `check_health`, which Serve calls."""

    def __init__(
        self,
        prefix: str,
        digest: str,
        document: Json,
        options: ServeOptions,
        routes: Mapping[str, tuple[str, Handler]],
    ) -> None:
        """A replica that is ready to answer.

        Args:
            prefix: of the names of its metrics: `<prefix>_requests`, `_errors`, `_latency_ms`.
            digest: of the model, told by `/healthz`.
            document: OpenAPI, told by `/openapi.json` and shown by `/docs`.
            options: limits, and the token that callers must send.
            routes: path → method and handler.

        Raises:
            ConfigError: the variable of `token_env` is not set.
        """
        self.options, self.digest = options, digest
        self.token = read_token(options.token_env)
        self.admission = Admission(
            ongoing=options.max_ongoing_requests, queued=options.max_queued_requests
        )
        shown = page(document, options.route_prefix.rstrip("/"))
        self.routes: dict[str, tuple[str, Handler]] = {
            **routes,
            "/healthz": ("GET", self.healthz),
            "/openapi.json": ("GET", _static(as_json(document), "application/json")),
            "/docs": ("GET", _static(shown, "text/html; charset=utf-8")),
        }
        metrics: Any = importlib.import_module("ray.serve.metrics")  # its types are too narrow
        self.requests = metrics.Counter(
            f"{prefix}_requests", "Requests answered.", tag_keys=("route", "status")
        )
        self.errors = metrics.Counter(
            f"{prefix}_errors", "Requests refused or failed.", tag_keys=("route", "status")
        )
        self.latency = metrics.Histogram(
            f"{prefix}_latency_ms",
            "From the first byte of a request to the last of its answer.",
            boundaries=LATENCY_MS,
            tag_keys=("route",),
        )

    @contextlib.asynccontextmanager
    async def admitted(self, scope: Any) -> AsyncGenerator[None]:
        """A place for a request that carries the token.

        Raises:
            HttpError: 401, or 503 with Retry-After: all places and the whole queue are taken.
        """
        authorize(scope, self.token)
        async with self.admission.place():
            yield

    async def handle(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one HTTP request; an error of ours is a 500 without its details."""
        if scope["type"] != "http":
            await send({"type": "websocket.close"})
            return
        begun = time.perf_counter()
        path = path_of(scope)
        route = path if path in self.routes else "other"
        headers: Mapping[str, str] = {}
        kind = "application/json"
        try:
            status = 200
            body, kind = await self._answer(path, scope, receive)
        except (HttpError, RequestError) as error:
            status, body = error.status, as_json(error.body())
            headers = error.headers if isinstance(error, HttpError) else {}
        except DisconnectedError:
            return
        except Exception:
            status, body = 500, as_json(HttpError(500, "the server failed; see its log").body())
            logging.getLogger("ray.serve").exception("a request to %s failed", path)
        await respond(send, status, body, kind=kind, headers=headers)
        tags = {"route": route, "status": str(status)}
        self.requests.inc(tags=tags)
        if status >= 400:
            self.errors.inc(tags=tags)
        self.latency.observe((time.perf_counter() - begun) * 1000, tags={"route": route})

    async def healthz(self, scope: Any, receive: Any) -> Answer:
        """Ready, and with which model: a replica that is not has not been started."""
        return as_json({"ready": True, "model": self.digest}), "application/json"

    async def _answer(self, path: str, scope: Any, receive: Any) -> Answer:
        if path not in self.routes:
            raise HttpError(404, f"there is no {path}; there are {', '.join(self.routes)}")
        method, answer = self.routes[path]
        if scope["method"] != method:
            raise HttpError(405, f"{path} takes {method}", {"allow": method})
        return await answer(scope, receive)


def _static(body: bytes, kind: str) -> Handler:
    async def answer(scope: Any, receive: Any) -> Answer:
        return body, kind

    return answer
