"""Two clocks for one simulated cluster: real time, and time that passes only while everybody waits.

The API server, the controllers and the launcher under test share one clock. Whoever waits (a launcher
that sleeps, a request that the server holds) moves virtual time on, from one event to the next, and
runs what is due. A schedule of minutes so takes as long as its requests.
"""

import heapq
import itertools
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

START = 1_790_000_000.0
"""Where virtual time begins: seconds since 1970, some day in 2026."""
GRACE_S = 0.05
"""Real seconds that virtual time stands still for a thread that has been woken and is still at work."""


@dataclass(order=True)
class _Event:
    at: float
    order: int
    run: Callable[[], None] = field(compare=False)


@dataclass
class _Waiter:
    ready: Callable[[], bool]
    until: float
    woken: bool = False


class VirtualClock:
    """Time of a simulation."""

    virtual = True

    def __init__(self) -> None:
        self.lock = threading.RLock()
        """Held while anything of the cluster changes."""
        self._changed = threading.Condition(self.lock)
        self._now = START
        self._order = itertools.count()
        self._events: list[_Event] = []
        self._waiters: list[_Waiter] = []
        self._moving = False
        self.moved: list[Callable[[], None]] = []
        """Called after time has moved, before anybody goes on."""

    def now(self) -> float:
        """Seconds since 1970."""
        with self.lock:
            return self._now

    def sleep(self, seconds: float) -> None:
        """Let `seconds` pass, with all that happens in them."""
        self.wait(lambda: False, self.now() + max(seconds, 0.0))

    def call_at(self, at: float, run: Callable[[], None]) -> None:
        """Run something at a time; what is due already runs when time moves next."""
        with self.lock:
            heapq.heappush(self._events, _Event(at, next(self._order), run))

    def changed(self) -> None:
        """Something that others may wait for has changed."""
        with self.lock:
            self._changed.notify_all()

    def wait(self, ready: Callable[[], bool], until: float) -> bool:
        """Let time pass until `ready()`, or to `until`; says whether it is ready."""
        with self.lock:
            me = _Waiter(ready, until)
            self._waiters.append(me)
            self._changed.notify_all()
            try:
                while not ready():
                    if self._now >= until or me.woken:
                        return ready()
                    if self._moving:
                        self._changed.wait(GRACE_S)
                        continue
                    self._moving = True
                    try:
                        self._step(me)
                    finally:
                        self._moving = False
                        self._changed.notify_all()
                return True
            finally:
                self._waiters.remove(me)
                self._changed.notify_all()

    def _step(self, me: _Waiter) -> None:
        """On to the next event, or to the first time at which a waiter wants to go on."""
        self._let_work(me)
        first = min(waiter.until for waiter in self._waiters)
        if self._events and self._events[0].at <= first:
            event = heapq.heappop(self._events)
            self._now = max(self._now, event.at)
            event.run()
            self._tell()
            return
        self._now = max(self._now, first)
        self._tell()
        for waiter in self._waiters:
            waiter.woken = waiter.woken or waiter.until <= self._now

    def _tell(self) -> None:
        for told in list(self.moved):
            told()

    def _let_work(self, me: _Waiter) -> None:
        """Real time for other threads that can go on at this instant of virtual time."""
        others = [w for w in self._waiters if w is not me and (w.woken or w.ready())]
        if not others:
            return
        for waiter in others:
            waiter.woken = True
        until, count = time.monotonic() + GRACE_S, len(self._waiters)
        self._changed.notify_all()
        # They leave, work, and wait again: as many as before.
        while (left := until - time.monotonic()) > 0:
            self._changed.wait(left)
            if len(self._waiters) >= count and not any(w in self._waiters for w in others):
                return


class RealClock:
    """The time of day, with the same calls."""

    virtual = False

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._changed = threading.Condition(self.lock)
        self._order = itertools.count()
        self._events: list[_Event] = []
        self._ended = False
        self._thread: threading.Thread | None = None

    def now(self) -> float:
        """Seconds since 1970."""
        return time.time()

    def sleep(self, seconds: float) -> None:
        """Let `seconds` pass."""
        time.sleep(max(seconds, 0.0))

    def call_at(self, at: float, run: Callable[[], None]) -> None:
        """Run something at a time, in a thread of its own."""
        with self.lock:
            heapq.heappush(self._events, _Event(at, next(self._order), run))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def changed(self) -> None:
        """Something that others may wait for has changed."""
        with self.lock:
            self._changed.notify_all()

    def wait(self, ready: Callable[[], bool], until: float) -> bool:
        """Wait until `ready()`, or to `until`; says whether it is ready."""
        with self.lock:
            while not ready():
                left = until - time.time()
                if left <= 0:
                    return False
                self._changed.wait(min(left, 1.0))
            return True

    def stop(self) -> None:
        """Run nothing more."""
        with self.lock:
            self._ended = True
            self._changed.notify_all()

    def _run(self) -> None:
        with self.lock:
            while not self._ended:
                left = self._events[0].at - time.time() if self._events else 60.0
                if left > 0:
                    self._changed.wait(left)
                    continue
                heapq.heappop(self._events).run()


Clock = VirtualClock | RealClock
