"""Requests of one replica: how many are worked on, how many wait, which are computed together."""

import asyncio
import collections
import contextlib
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from rayrun.ray.http import RETRY_AFTER_S, HttpError

T = TypeVar("T")
R = TypeVar("R")


class Admission:
    """A bounded number of places, and a bounded queue before them."""

    def __init__(self, *, ongoing: int, queued: int) -> None:
        self._places = asyncio.Semaphore(ongoing)
        self._ongoing, self._queued = ongoing, queued
        self._inside = 0

    @contextlib.asynccontextmanager
    async def place(self) -> AsyncGenerator[None]:
        """One place, after those who came before.

        Raises:
            HttpError: 503 with Retry-After: all places and the whole queue are taken.
        """
        if self._inside >= self._ongoing + self._queued:
            raise HttpError(
                503,
                f"busy: {self._ongoing} requests are being answered and {self._queued} wait; "
                "try again, or raise serve.replicas",
                {"retry-after": str(RETRY_AFTER_S)},
            )
        self._inside += 1
        try:
            async with self._places:
                yield
        finally:
            self._inside -= 1


@dataclass
class _Waiting(Generic[T, R]):
    item: T
    rows: int
    answer: "asyncio.Future[R]" = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class Batcher(Generic[T, R]):
    """Computes items together that wait at the same time.

    An item that comes alone is computed at once. One that comes while others are being prepared
    (`preparing`) waits for them, but no longer than `wait_s`; one that comes during a computation
    joins the next.
    """

    def __init__(
        self,
        compute: Callable[[Sequence[T]], Sequence[R]],
        *,
        executor: Executor,
        items: int,
        rows: int,
        wait_s: float,
    ) -> None:
        """A batch has at most `items` items, and no further one once it has `rows` rows."""
        self._compute, self._executor = compute, executor
        self._items, self._rows, self._wait_s = items, rows, wait_s
        self._queue: collections.deque[_Waiting[T, R]] = collections.deque()
        self._arrived = asyncio.Event()
        self._coming = 0
        self._task: asyncio.Task[None] | None = None
        self.batches = 0
        """Batches computed so far."""

    @contextlib.contextmanager
    def preparing(self) -> Generator[None]:
        """An item is being made inside the block and will come."""
        self._coming += 1
        try:
            yield
        finally:
            self._coming -= 1

    async def __call__(self, item: T, rows: int) -> R:
        """The answer to one item of that many rows.

        Raises:
            whatever the computation of this item alone raises.
        """
        waiting = _Waiting[T, R](item, rows)
        self._queue.append(waiting)
        self._arrived.set()
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        return await waiting.answer

    async def _run(self) -> None:
        while True:
            await self._until_something_came()
            batch = await self._collect()
            if batch:
                self.batches += 1
                await self._answer(batch)

    async def _until_something_came(self) -> None:
        while not self._queue:
            self._arrived.clear()
            await self._arrived.wait()

    async def _collect(self) -> list[_Waiting[T, R]]:
        batch: list[_Waiting[T, R]] = []
        until = asyncio.get_running_loop().time() + self._wait_s
        while len(batch) < self._items and sum(one.rows for one in batch) < self._rows:
            if not self._queue:
                if not self._coming:
                    break
                try:
                    async with asyncio.timeout_at(until):
                        await self._until_something_came()
                except TimeoutError:
                    break
            one = self._queue.popleft()
            if not one.answer.done():  # its caller has gone
                batch.append(one)
        return batch

    async def _answer(self, batch: list[_Waiting[T, R]]) -> None:
        loop = asyncio.get_running_loop()
        items: Any = [one.item for one in batch]
        try:
            answers = await loop.run_in_executor(self._executor, self._compute, items)
        except Exception as error:
            if len(batch) > 1:  # each alone: one bad item does not take the others with it
                for one in batch:
                    await self._answer([one])
            elif not batch[0].answer.done():
                batch[0].answer.set_exception(error)
            return
        for one, answer in zip(batch, answers, strict=True):
            if not one.answer.done():
                one.answer.set_result(answer)
