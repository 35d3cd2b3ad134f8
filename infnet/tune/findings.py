"""What a search found: the best point, what can be told apart from it, the Pareto front."""

from collections import Counter
from dataclasses import dataclass

from infnet.tune.points import symbol
from infnet.tune.verdict import Difference, Verdict, judge, pareto
from rayrun.config import ConfigError, Json
from rayrun.ray.space import text_of
from rayrun.ray.tune import Outcome, Search


@dataclass(frozen=True)
class Findings:
    """Of the trials that ran to their end, each point once."""

    plan: Search
    outcomes: list[Outcome]
    """All trials."""
    finished: list[Outcome]
    verdict: Verdict
    """On the first objective, in the order of `finished`."""
    front: list[int]
    """Indices of the Pareto front in `finished`."""

    @property
    def best(self) -> Outcome:
        """The best point."""
        return self.finished[self.verdict.best]

    @property
    def objective(self) -> str:
        """The first objective."""
        return next(iter(self.plan.objectives))

    def counts(self) -> dict[str, int]:
        """How many trials ended how."""
        states = Counter(outcome.state for outcome in self.outcomes)
        repeated = sum(bool(outcome.repeats) for outcome in self.outcomes)
        return {
            "total": len(self.outcomes),
            **{state: states[state] for state in ("finished", "stopped", "failed")},
            "repeated": repeated,
        }

    def sentence(self) -> str:
        """Whether the data can tell the points apart, in plain words."""
        verdict = self.verdict
        mean, spread = verdict.means[verdict.best], verdict.deviations[verdict.best]
        several = "" if spread is None else f" ± {spread:.4f} over {self._seeds()} seeds"
        said = f"The best {self.objective} is {mean:.4f}{several}, at {shown(self.best)}."
        others = [d for d in verdict.differences if d is not None]
        if not others:
            return f"{said} No other point ran to its end, so there is nothing to compare it with."
        if verdict.smallest is None:
            return (
                f"{said} With one seed the spread is not known, so the data cannot tell it from "
                f"the other {len(others)} points; set tune.seeds to three or more."
            )
        told = sum(difference.told for difference in others)
        least = f"the smallest difference that these seeds tell is {verdict.smallest:.4f}"
        if told == 0:
            return (
                f"{said} The data cannot tell it from any of the other {len(others)} points: "
                f"{least}."
            )
        if told == len(others):
            return f"{said} The data tell it from all other {told} points: {least}."
        return (
            f"{said} The data tell it from {told} of the other {len(others)} points, and not from "
            f"{len(others) - told}: {least}."
        )

    def by_value(self, path: str) -> list[tuple[object, int, Difference | None]]:
        """Of every value of a path the best finished point: value, index, difference to the best
        of all (None: it is that).
        """
        better = 1 if self.plan.objectives[self.objective] == "max" else -1
        order = sorted(
            range(len(self.finished)), key=lambda index: -better * self.verdict.means[index]
        )
        found: dict[str, tuple[object, int, Difference | None]] = {}
        for index in order:
            value = self.finished[index].values[path]
            found.setdefault(text_of(value), (value, index, self.verdict.differences[index]))
        listed = self.plan.space[path].listed()
        if listed is None:
            return sorted(found.values(), key=lambda each: float(str(each[0])))
        return [found[text] for value in listed if (text := text_of(value)) in found]

    def to_json(self) -> Json:
        """As plain data, for `result.json`."""
        points: list[Json] = []
        for index, outcome in enumerate(self.finished):
            difference = self.verdict.differences[index]
            points.append(
                {
                    "trial": outcome.id,
                    "values": outcome.values,
                    "objectives": outcome.objectives,
                    "deviation": self.verdict.deviations[index],
                    "difference": None if difference is None else vars(difference),
                    "told": difference is not None and difference.told,
                }
            )
        return {
            "trials": self.counts(),
            "objectives": dict(self.plan.objectives),
            "best": {"trial": self.best.id, "values": self.best.values},
            "verdict": self.sentence(),
            "smallest_told": self.verdict.smallest,
            "points": points,
            "pareto": [self.finished[index].id for index in self.front],
            "processes": len({outcome.pid for outcome in self.outcomes if outcome.pid}),
        }

    def _seeds(self) -> int:
        return len(self.best.details["seeds"])


def findings(plan: Search, outcomes: list[Outcome]) -> Findings:
    """Put together what the trials found.

    Raises:
        ConfigError: no trial ran to its end.
    """
    once: dict[str, Outcome] = {}
    for outcome in outcomes:
        if outcome.state == "finished":
            once.setdefault(text_of(outcome.values), outcome)
    finished = list(once.values())
    if not finished:
        failed = [outcome.error for outcome in outcomes if outcome.state == "failed"]
        raise ConfigError(
            f"none of the {len(outcomes)} trials ran to its end: {len(failed)} failed "
            f"({failed[0] if failed else 'none'}), the others were stopped; mend what failed, or "
            "set tune.scheduler to {type: none}"
        )
    name = next(iter(plan.objectives))
    scores = [
        [float(found["objectives"][name]) for found in outcome.details["seeds"].values()]
        for outcome in finished
    ]
    larger = [way == "max" for way in plan.objectives.values()]
    rows = [[outcome.objectives[each] for each in plan.objectives] for outcome in finished]
    verdict = judge(scores, larger_is_better=larger[0])
    return Findings(plan, outcomes, finished, verdict, pareto(rows, larger))


def shown(outcome: Outcome) -> str:
    """The values of a trial in a few words: `m = 8, k = 1`."""
    return ", ".join(f"{symbol(path)} = {plain(value)}" for path, value in outcome.values.items())


def plain(value: object) -> str:
    """A value as a person writes it."""
    return f"{value:.4g}" if isinstance(value, float) else text_of(value).strip('"')


def costs_of(found: Findings, name: str) -> list[float | None]:
    """A cost of the finished points."""
    values = [outcome.details["cost"][name] for outcome in found.finished]
    return [None if value is None else float(value) for value in values]
