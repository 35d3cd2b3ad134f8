"""The HTTP that every served model shares: bodies of bounded size, tokens, errors as JSON.

An error is `{"error": {"path": field of the request, "message": what to do}}`, whatever its status.
"""

import asyncio
import hmac
import json
import os
from collections.abc import Mapping
from typing import Any

from rayrun.config import ConfigError, Json

RETRY_AFTER_S = 1
"""When a caller who was told that the server is busy may try again."""

BODY_TIMEOUT_S = 60.0
"""How long a caller may take to send a body."""

Headers = Mapping[str, str]


class HttpError(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, message: str, headers: Headers | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.headers = status, message, headers or {}

    def body(self) -> Json:
        """What the caller gets."""
        return {"error": {"path": "", "message": self.message}}


class DisconnectedError(Exception):
    """The caller has gone; nobody waits for an answer."""


def read_token(name: str) -> str:
    """The bearer token in the environment variable `name`; empty: none is asked of callers.

    Raises:
        ConfigError: the variable is not set where the application runs.
    """
    if not name:
        return ""
    if not (token := os.environ.get(name, "")):
        raise ConfigError(
            f"serve.token_env names the environment variable {name}, which must hold the bearer "
            "token where the application runs; it is not set there: set it before Ray starts"
        )
    return token


def authorize(scope: Any, token: str) -> None:
    """Whether the request carries `token`, compared in constant time.

    Raises:
        HttpError: 401 otherwise.
    """
    if not token:
        return
    scheme, _, given = header(scope, b"authorization").partition(b" ")
    if scheme.lower() != b"bearer" or not hmac.compare_digest(given.strip(), token.encode()):
        raise HttpError(
            401,
            "the header `Authorization: Bearer TOKEN` is required, with this server's token",
            {"www-authenticate": "Bearer"},
        )


def header(scope: Any, name: bytes) -> bytes:
    """The first header of that (lower-case) name; empty if there is none."""
    return next((value for key, value in scope["headers"] if key == name), b"")


def path_of(scope: Any) -> str:
    """The path below the application's route prefix, beginning with `/`."""
    path = scope["path"].removeprefix(scope.get("root_path", "").rstrip("/"))
    return path if path.startswith("/") else f"/{path}"


async def read_body(scope: Any, receive: Any, limit: int) -> bytes:
    """The whole body, of at most `limit` bytes: a longer one is refused before it is read.

    Raises:
        HttpError: 413 too large, 415 compressed, 408 not sent within a minute.
        DisconnectedError: the caller has gone.
    """
    length = header(scope, b"content-length")
    if length.isdigit() and int(length) > limit:
        raise _too_large(int(length), limit)
    if header(scope, b"content-encoding") not in (b"", b"identity"):
        raise HttpError(415, "the body must be plain JSON; send it without Content-Encoding")
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            return await _receive(receive, limit)
    except TimeoutError:
        raise HttpError(408, f"the body must arrive within {BODY_TIMEOUT_S:g} s") from None


async def _receive(receive: Any, limit: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise DisconnectedError
        part = message.get("body", b"")
        size += len(part)
        if size > limit:
            raise _too_large(size, limit)
        parts.append(part)
        if not message.get("more_body", False):
            return b"".join(parts)


def _too_large(size: int, limit: int) -> HttpError:
    return HttpError(
        413,
        f"the body must have at most {limit:,} bytes, found {size:,} or more; "
        "send fewer candidates or events per request, or raise serve.max_body_bytes",
    )


def as_json(value: Any) -> bytes:
    """Compact JSON.

    Raises:
        ValueError: a number is not finite.
    """
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


async def respond(
    send: Any,
    status: int,
    body: bytes,
    *,
    kind: str = "application/json",
    headers: Headers | None = None,
) -> None:
    """Send one whole response."""
    fields = {"content-type": kind, "content-length": str(len(body)), **(headers or {})}
    raw = [(key.encode(), value.encode()) for key, value in fields.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})
