"""What a job prints, followed to its end: every line shown once, whatever the connection does.

The Jobs API sends a log from its beginning only, so a position in it is kept here: what comes again
after a dropped connection is passed over up to there. The log comes over a WebSocket; where that
brings nothing, by asking for the whole. Neither ends the following: the job's status does, which is
asked for by itself.
"""

import asyncio
import contextlib
import importlib
import time
from collections.abc import Callable
from typing import Any

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
    log = _Log(show)
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


class _Log:
    """Lines of a text that comes in pieces, some of them again."""

    def __init__(self, show: Callable[[str], None]) -> None:
        self.position = 0
        """Characters of the log that have been taken."""
        self.show = show
        self._begun = ""

    def take(self, start: int, text: str) -> None:
        """A piece of the log that begins at character `start`, no later than `position`."""
        new = text[self.position - start :]
        self.position += len(new)
        *lines, self._begun = (self._begun + new).split("\n")
        for line in lines:
            self.show(line)

    def close(self) -> None:
        if self._begun:
            self.show(self._begun)
            self._begun = ""


def _tail(jobs: Jobs, job: str, log: _Log) -> None:
    """One connection, to its end, which may be of the log or of the connection."""
    aiohttp: Any = importlib.import_module("aiohttp")

    async def receive() -> None:
        at = 0
        address = f"{jobs.address}/api/jobs/{job}/logs/tail"
        limits = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S)
        quiet = aiohttp.ClientWSTimeout(ws_receive=QUIET_S, ws_close=CLOSE_S)
        async with (
            aiohttp.ClientSession(headers=jobs.headers, timeout=limits) as session,
            session.ws_connect(address, timeout=quiet, max_msg_size=0) as connection,
        ):
            async for message in connection:
                if message.type is aiohttp.WSMsgType.TEXT:
                    text = str(message.data)
                    if at + len(text) > log.position:
                        log.take(at, text)
                    at += len(text)

    # What it missed comes with the next one.
    with contextlib.suppress(aiohttp.ClientError, OSError, asyncio.TimeoutError):
        asyncio.run(receive())


def _take_the_rest(jobs: Jobs, job: str, log: _Log) -> None:
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
