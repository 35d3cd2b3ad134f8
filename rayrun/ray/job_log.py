"""What a job prints, followed to its end: every line shown once, whatever the connection does.

The Jobs API sends a log from its beginning only, so a position in it is kept here: what comes again
after a dropped connection is passed over up to there. The log comes over a WebSocket; where that
brings nothing, by asking for the whole. Neither ends the following: the job's status does, which is
asked for by itself.
"""

import asyncio
import contextlib
import importlib
import ssl
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeVar

from rayrun.config import Json
from rayrun.ray.job_client import CONNECT_S, Jobs

ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
"""Values of a job's `status` that do not change any more."""

QUIET_S = 30.0
"""A connection that says nothing for this long may be dead: the dashboard answers no pings, so
another one is made."""
CLOSE_S = 1.0
AGAIN_S = 1.0
"""Between two connections."""
REST_TRIES = 5

T = TypeVar("T")


def follow(jobs: Jobs, job: str, show: Callable[[str], None]) -> Json:
    """Show the log of a job, line by line, until the job has ended and the log is whole.

    Args:
        jobs: of the cluster.
        job: its submission id.
        show: takes each line, without its line end.

    Returns:
        What the cluster says of the ended job (`Jobs.info`).

    Raises:
        ConfigError: no answer for `job_client.LOST_S`, or the job is not known any more.
    """
    log = Log(show)
    while True:
        before = log.position
        _tail(jobs, job, log)
        info = jobs.info(job)
        if info["status"] in ENDED:
            break
        if log.position == before:
            with contextlib.suppress(OSError, ValueError):
                log.take(0, jobs.log(job))
        time.sleep(AGAIN_S)
    _take_the_rest(jobs, job, log)
    log.close()
    return info


class Log:
    """Lines of a text that comes in pieces, some of them again."""

    def __init__(self, show: Callable[[str], None]) -> None:
        self.position = 0
        """Characters of the log that have been taken."""
        self.show = show
        self._begun = ""

    def take(self, start: int, text: str) -> None:
        """A piece of the log that begins at character `start`, no later than `position`."""
        if start + len(text) <= self.position:
            return
        new = text[self.position - start :]
        self.position += len(new)
        *lines, self._begun = (self._begun + new).split("\n")
        for line in lines:
            self.show(line)

    def close(self) -> None:
        """Show a last line that has no end."""
        if self._begun:
            self.show(self._begun)
            self._begun = ""


class Tail:
    """One WebSocket to the log of a job, which comes from its beginning. It may end at any time,
    with the log or with the connection.
    """

    def __init__(
        self, address: str, job: str, headers: Mapping[str, str], tls: ssl.SSLContext | None = None
    ) -> None:
        """Nothing is connected before something is received.

        Args:
            address: of the dashboard.
            job: its submission id.
            headers: of the request.
            tls: for https; None: the system's.
        """
        self.ended = False
        self.at = 0
        """Characters that have been received."""
        self._loop = asyncio.new_event_loop()
        self._address = f"{address}/api/jobs/{job}/logs/tail"
        self._headers, self._tls = dict(headers), tls
        self._session: Any = None
        self._socket: Any = None
        self._waiting: asyncio.Task[Any] | None = None

    def open(self) -> bool:
        """Connect; says whether that went well."""
        return self._run(self._open(), False) is True

    def receive(self, wait_s: float) -> tuple[int, str] | None:
        """A piece of the log and where it begins; None: there was none within `wait_s`, or the
        connection has `ended`.
        """
        return self._run(self._receive(wait_s), None)

    def close(self) -> None:
        """End the connection."""
        self._loop.run_until_complete(self._close())
        self._loop.close()

    def _run(self, work: Coroutine[Any, Any, T], otherwise: T) -> T:
        aiohttp: Any = importlib.import_module("aiohttp")
        try:
            return self._loop.run_until_complete(work)
        except (TimeoutError, aiohttp.ClientError, OSError):
            self.ended = True
            return otherwise

    async def _open(self) -> bool:
        aiohttp: Any = importlib.import_module("aiohttp")
        limits = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S)
        self._session = aiohttp.ClientSession(headers=self._headers, timeout=limits)
        closes = aiohttp.ClientWSTimeout(ws_receive=None, ws_close=CLOSE_S)
        opening = self._session.ws_connect(
            self._address, timeout=closes, max_msg_size=0, ssl=self._tls or True
        )
        self._socket = await asyncio.wait_for(opening, CONNECT_S)
        return True

    async def _receive(self, wait_s: float) -> tuple[int, str] | None:
        aiohttp: Any = importlib.import_module("aiohttp")
        if self._socket is None:
            await self._open()
        socket: Any = self._socket
        waiting = self._waiting or asyncio.ensure_future(socket.receive())
        # Not cancelled when the time is up: what arrives next is received by the next call.
        self._waiting = waiting
        await asyncio.wait([waiting], timeout=wait_s)
        if not waiting.done():
            return None
        self._waiting = None
        message = waiting.result()
        if message.type is not aiohttp.WSMsgType.TEXT:
            self.ended = True
            return None
        text = str(message.data)
        self.at += len(text)
        return self.at - len(text), text

    async def _close(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await self._waiting
        for opened in (self._socket, self._session):
            if opened is not None:
                await opened.close()


def _tail(jobs: Jobs, job: str, log: Log) -> None:
    """One connection, to its end. What it missed comes with the next one."""
    tail = Tail(jobs.address, job, jobs.headers)
    try:
        while (piece := tail.receive(QUIET_S)) is not None:
            log.take(*piece)
    finally:
        tail.close()


def _take_the_rest(jobs: Jobs, job: str, log: Log) -> None:
    """A dashboard that loses its agent ends a log as if it were whole: ask for the whole."""
    why = ""
    for attempt in range(REST_TRIES):
        time.sleep(AGAIN_S if attempt else 0)
        try:
            log.take(0, jobs.log(job))
            return
        except (OSError, ValueError) as error:  # ValueError: an answer that is no JSON
            why = str(error)
    log.close()
    log.show(f"(the rest of the log of {job} cannot be read: {why})")
