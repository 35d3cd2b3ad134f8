"""What a smaller recommender is held to, and whether it meets it: by the interval, not the value.

A target is met only if the whole interval is on the right side; one that was not measured is told
as such.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from layer_select.compact.origin import GapRepair
from rayrun.config import Json

FEWER_BLOCKS = 0.75
"""Share of the parameters of the layers that is gone."""
RETAINED, RETAINED_LOW = 0.90, 0.87
FASTER = 3.5
BATCH, WIDTH = 32, 192
"""At least, for the target of speed to mean something."""
JUDGED = ("ndcg@10", "mrr")
BEATEN = ("first_k", "every_n", "random", "block_influence", "scratch", "sasrec")
"""Rivals that the student is to beat in NDCG@10."""


@dataclass(frozen=True)
class Target:
    """One line of the table."""

    name: str
    asked: str
    value: float | None
    low: float | None
    high: float | None
    met: bool | None
    """None: not measured."""
    why: str = ""
    """Why it was not measured, or what limits it."""

    def to_dict(self) -> Json:
        """As plain data; `met` in words."""
        return {
            **vars(self),
            "met": {True: "met", False: "not met", None: "not measured"}[self.met],
        }


def targets(
    sizes: Mapping[str, Json],
    compared: Json,
    timing: Json | None,
    repairs: Sequence[GapRepair],
) -> list[Target]:
    """All lines.

    Args:
        sizes: of `full` and `student`.
        compared: of `table.compare`, on the model's own domain.
        timing: of `timing.side_by_side`; None: nothing was timed.
        repairs: what was tried at the gaps before healing.
    """
    gone = 1 - sizes["student"]["block_parameters"] / sizes["full"]["block_parameters"]
    lines = [
        Target("parameters of the layers", f"−{FEWER_BLOCKS:.0%}", gone, None, None,
               gone >= FEWER_BLOCKS)
    ]  # fmt: skip
    for metric in JUDGED:
        kept = compared["retained"].get(metric)
        asked = f"≥ {RETAINED:.0%}, lower end ≥ {RETAINED_LOW:.0%}"
        met = None
        if kept is not None and kept["low"] is not None:
            met = kept["mean"] >= RETAINED and kept["low"] >= RETAINED_LOW
        lines.append(_line(f"{metric} retained", asked, kept, met, "no such ratio"))
    for rival in BEATEN:
        found = compared["differences"].get(rival, {}).get("ndcg@10")
        met = None if found is None or found["low"] is None else found["low"] > 0
        asked = "NDCG@10, above 0"
        lines.append(_line(f"better than {rival}", asked, found, met, "not in the table"))
    return [*lines, _speed(sizes, timing), _repair(repairs)]


def _line(name: str, asked: str, found: Json | None, met: bool | None, why: str) -> Target:
    if found is None:
        return Target(name, asked, None, None, None, None, why)
    return Target(name, asked, found["mean"], found["low"], found["high"], met)


def _speed(sizes: Mapping[str, Json], timing: Json | None) -> Target:
    name, asked = "prefill, times faster", f"≥ {FASTER}; batch ≥ {BATCH}, width ≥ {WIDTH}"
    if timing is None:
        return Target(name, asked, None, None, None, None, "nothing was timed")
    found = timing["ratios"]["student"]
    width = sizes["full"]["width"]
    if timing["batch"] < BATCH or width < WIDTH:
        why = f"batch {timing['batch']}, width {width}"
        return Target(name, asked, found["mean"], found["low"], found["high"], None, why)
    met = found["low"] >= FASTER
    return Target(name, asked, found["mean"], found["low"], found["high"], met)


def _repair(repairs: Sequence[GapRepair]) -> Target:
    name, asked = "loss gained by repair", "≥ 0 before healing"
    if not repairs:
        return Target(name, asked, None, None, None, None, "no repair")
    gained = sum(r.loss_before - r.loss_after for r in repairs if r.used)
    return Target(name, asked, gained, None, None, gained >= 0)
