"""Requests that wait together are computed together, and those too many are told so."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from rayrun.ray.batching import Admission, Batcher
from rayrun.ray.http import HttpError


class Doubling:
    """Computes 2·x; remembers the batches; waits at `gate` while it is closed."""

    def __init__(self):
        self.batches = []
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, items):
        self.gate.wait(5)
        self.batches.append(list(items))
        if "bad" in items:
            raise ValueError("a bad item")
        return [2 * item for item in items]


@pytest.fixture
def doubling():
    return Doubling()


@pytest.fixture
def executor():
    with ThreadPoolExecutor(1) as executor:
        yield executor


def batcher(doubling, executor, **changes):
    return Batcher(doubling, executor=executor, **{"items": 4, "rows": 100, "wait_s": 5} | changes)


def test_an_item_that_comes_alone_does_not_wait(doubling, executor):
    async def main():
        batch = batcher(doubling, executor)
        begun = time.monotonic()
        assert await batch(3, 1) == 6
        assert time.monotonic() - begun < 1

    asyncio.run(main())


def test_items_that_come_during_a_computation_are_the_next_batch(doubling, executor):
    async def main():
        batch = batcher(doubling, executor)
        doubling.gate.clear()
        first = asyncio.create_task(batch(0, 1))
        await asyncio.sleep(0.05)
        others = [asyncio.create_task(batch(x, 1)) for x in range(1, 7)]
        await asyncio.sleep(0.05)
        doubling.gate.set()
        assert await first == 0
        assert await asyncio.gather(*others) == [2, 4, 6, 8, 10, 12]

    asyncio.run(main())
    assert doubling.batches == [[0], [1, 2, 3, 4], [5, 6]]


def test_an_item_waits_for_one_that_is_being_prepared_but_not_for_ever(doubling, executor):
    async def main():
        batch = batcher(doubling, executor, wait_s=0.3)

        async def prepared():
            with batch.preparing():
                await asyncio.sleep(0.1)
            return await batch(2, 1)

        later = asyncio.create_task(prepared())
        await asyncio.sleep(0.01)
        assert await batch(1, 1) == 2
        assert await later == 4
        with batch.preparing():
            begun = time.monotonic()
            await batch(5, 1)
            assert 0.2 < time.monotonic() - begun < 2

    asyncio.run(main())
    assert doubling.batches == [[1, 2], [5]]


def test_a_batch_ends_when_it_has_its_rows(doubling, executor):
    async def main():
        batch = batcher(doubling, executor)
        doubling.gate.clear()
        tasks = [asyncio.create_task(batch(0, 1))]
        await asyncio.sleep(0.05)
        tasks += [asyncio.create_task(batch(x, 60)) for x in (1, 2, 3)]
        await asyncio.sleep(0.05)
        doubling.gate.set()
        await asyncio.gather(*tasks)

    asyncio.run(main())
    assert doubling.batches == [[0], [1, 2], [3]]


def test_one_bad_item_does_not_take_the_others_with_it_and_one_that_has_gone_is_left_out(
    doubling, executor
):
    async def main():
        batch = batcher(doubling, executor)
        doubling.gate.clear()
        first = asyncio.create_task(batch("a", 1))
        await asyncio.sleep(0.05)
        good, bad, gone = (asyncio.create_task(batch(x, 1)) for x in ("b", "bad", "c"))
        await asyncio.sleep(0.05)
        gone.cancel()
        await asyncio.sleep(0.05)
        doubling.gate.set()
        assert (await first, await good) == ("aa", "bb")
        with pytest.raises(ValueError, match="a bad item"):
            await bad
        assert await batch("d", 1) == "dd"

    asyncio.run(main())
    assert doubling.batches == [["a"], ["b", "bad"], ["b"], ["bad"], ["d"]]


def test_one_too_many_is_told_to_come_again_and_places_are_given_back():
    async def main():
        admission = Admission(ongoing=1, queued=1)
        leave = asyncio.Event()

        async def stay():
            async with admission.place():
                await leave.wait()

        inside, waiting = asyncio.create_task(stay()), asyncio.create_task(stay())
        await asyncio.sleep(0.01)
        with pytest.raises(HttpError, match="busy: 1 requests are being answered and 1 wait") as no:
            async with admission.place():
                pass
        assert (no.value.status, no.value.headers) == (503, {"retry-after": "1"})
        waiting.cancel()  # its caller has gone; another one may wait
        await asyncio.sleep(0.01)
        another = asyncio.create_task(stay())
        leave.set()
        await asyncio.gather(inside, another)
        async with admission.place():
            pass

    asyncio.run(main())
