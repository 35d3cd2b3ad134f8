"""An S3 file system that asks again: each request, and the body of its answer, as one attempt.

s3fs repeats requests in one loop, bodies in a second around it and botocore in a third below: a
store that stalls would be waited for 36 times. Here there is one loop, so that attempts × timeout
bounds the time, and a body that breaks off half-way is a failed attempt like any other.
"""

# s3fs, botocore and aiohttp come without types:
# pyright: basic

import asyncio
import builtins
import io
import random
import time
from typing import Any

import aiohttp
from botocore.exceptions import (
    ClientError,
    ConnectionError,
    HTTPClientError,
    IncompleteReadError,
    SSLError,
)
from fsspec.asyn import sync_wrapper
from s3fs.core import S3_RETRYABLE_ERRORS, S3FileSystem
from s3fs.errors import translate_boto_error

from rayrun.object_store import gave_up

FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 20.0

WHOLE_BYTES = 64 << 20
"""Bodies up to this size are read within the attempt. s3fs reads larger objects in ranges of 50
MiB, each of which is one."""

BROKEN_OFF = (
    *S3_RETRYABLE_ERRORS,
    ConnectionError,
    HTTPClientError,
    IncompleteReadError,
    aiohttp.ClientError,
    builtins.ConnectionError,
    TimeoutError,
)
BUSY = ("SlowDown", "RequestTimeout", "Throttling", "ThrottlingException", "TooManyRequests")
"""Codes of answers that ask for patience, whatever their status."""
NEVER_SERVED = 501
"""The store does not know the request; asking again does not help."""


class PatientS3(S3FileSystem):
    """s3fs with one loop of attempts.

    Failures that remain are `StorageError`s, which no reader takes for a damaged file.
    """

    def __init__(self, *args: Any, attempts: int = 5, **options: Any) -> None:
        """`attempts` of each request; the rest is s3fs's, where botocore makes one attempt."""
        super().__init__(*args, **options)
        self.attempts = attempts
        self.retries = 1

    async def _call_s3(self, method: str, *listed: Any, **named: Any) -> Any:
        await self.set_session()
        client = await self.get_s3(named.get("Bucket"))
        function = getattr(client, method)
        arguments = self._get_s3_method_kwargs(function, *listed, **named)
        began = time.monotonic()
        for attempt in range(1, self.attempts + 1):
            try:
                return await _whole(await function(**arguments))
            except Exception as error:
                if not _transient(error):
                    raise translate_boto_error(error) from error
                if attempt == self.attempts:
                    uri = "/".join(["s3:/", str(named.get("Bucket")), named.get("Key", "")])
                    raise gave_up(uri, error, attempt, time.monotonic() - began) from error
            wait_s = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** (attempt - 1))
            await asyncio.sleep(wait_s * random.uniform(0.5, 1.0))
        raise AssertionError("at least one attempt")

    call_s3 = sync_wrapper(_call_s3)


class _Body:
    """The content of an answer, read as s3fs reads a stream."""

    def __init__(self, content: bytes) -> None:
        self._stream = io.BytesIO(content)

    async def read(self, amount: int | None = None) -> bytes:
        return self._stream.read(amount)

    def close(self) -> None:
        self._stream.close()


async def _whole(answer: Any) -> Any:
    body = answer.get("Body")
    if body is None or answer.get("ContentLength", WHOLE_BYTES + 1) > WHOLE_BYTES:
        return answer
    try:
        content = await body.read()
    finally:
        body.close()
    return answer | {"Body": _Body(content)}


def _transient(error: Exception) -> bool:
    if isinstance(error, ClientError):
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        code = str(error.response.get("Error", {}).get("Code"))
        return (status >= 500 and status != NEVER_SERVED) or status == 429 or code in BUSY
    return isinstance(error, BROKEN_OFF) and not isinstance(error, SSLError)
