"""Virtual time: it moves only while everybody waits, from event to event."""

import time

from tests.kube.clocks import START, VirtualClock


def test_events_run_in_order_of_their_times_while_somebody_sleeps() -> None:
    clock, seen = VirtualClock(), []

    def first() -> None:
        seen.append(("first", clock.now() - START))
        clock.call_at(clock.now() + 1, lambda: seen.append(("caused", clock.now() - START)))

    clock.call_at(START + 5, lambda: seen.append(("last", clock.now() - START)))
    clock.call_at(START + 2, first)
    begun = time.monotonic()
    clock.sleep(3600)
    assert time.monotonic() - begun < 5
    assert seen == [("first", 2.0), ("caused", 3.0), ("last", 5.0)]
    assert clock.now() == START + 3600


def test_waiting_ends_when_what_is_waited_for_is_so() -> None:
    clock, done = VirtualClock(), []
    clock.call_at(START + 40, lambda: done.append(True))
    assert clock.wait(lambda: bool(done), START + 100)
    assert clock.now() == START + 40
    assert not clock.wait(lambda: False, START + 50)
    assert clock.now() == START + 50
