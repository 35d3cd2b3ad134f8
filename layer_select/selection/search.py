"""What a strategy sees while it searches: the sets it may choose, what they lose, and a notebook.

A strategy decides on the calibration samples. Every step it takes is noted with the loss there and,
on the validation samples, loss and metrics; early stopping watches the latter as it goes.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from pydantic import Field, NonNegativeFloat, PositiveInt

from layer_select.selection.room import Layers, Room
from rayrun.config import Config, ConfigError, Json

LOWER_IS_BETTER = ("loss", "nll", "perplexity", "error")


@runtime_checkable
class Measured(Protocol):
    """Losses and metrics of sets of layers: `layer_select.coalitions.Coalitions`."""

    @property
    def num_layers(self) -> int:
        """L."""
        ...

    def evaluate(self, coalitions: Iterable[Iterable[int]]) -> None:
        """Measure all these sets at once."""
        ...

    def losses(self, coalition: Iterable[int]) -> Any:
        """Loss of each sample."""
        ...

    def loss(self, coalition: Iterable[int]) -> float:
        """Mean loss."""
        ...

    def metrics(self, coalition: Iterable[int]) -> dict[str, float]:
        """Mean of each metric."""
        ...


class Stop(Config):
    """Early stop of a search that removes: quality, watched on the validation samples, comes before
    the budget.
    """

    metric: str = ""
    """Metric of the task, or `loss`; empty: the one the task is judged by."""
    retained: float = Field(gt=0, le=1)
    """Share of the full model's value that must be retained. The search ends with the smallest set
    that does, though it may hold more layers than the budget."""
    patience: PositiveInt = 1
    """Steps in a row below the share that are taken before the search gives up."""


class ForwardStop(Config):
    """Early stop of a search that adds: fewer layers than the budget, if they are enough."""

    metric: str = ""
    """Metric of the task, or `loss`; empty: the one the task is judged by."""
    retained: float | None = Field(default=None, gt=0, le=1)
    """Share of the full model's value that is enough; None: never."""
    min_gain: NonNegativeFloat = 0.0
    """A step must better the best value so far by more than this to count as a gain."""
    patience: PositiveInt = 2
    """Steps in a row without a gain that end the search, at the best set so far."""


class Search:
    """One search: its room, its measurements, its history."""

    def __init__(
        self,
        room: Room,
        calibration: Measured,
        validation: Measured | None = None,
        scores: Mapping[str, Sequence[float]] | None = None,
        angular: Sequence[Sequence[float]] | None = None,
        *,
        metric: str = "",
    ) -> None:
        """Args:
        room: the sets to choose from.
        calibration: what decides.
        validation: what is watched beside it; None: nothing is.
        scores: importance of each layer, by method; higher means keep.
        angular: [L + 1, L + 1], distance between the hidden states that enter layers.
        metric: that early stopping watches unless it names another; empty: the first.
        """
        self._metric = metric
        self.room, self.calibration, self.validation = room, calibration, validation
        self._scores, self._angular = scores or {}, angular
        self._history: list[Json] = []
        self.stopped = ""
        """Why the search ended before its budget; empty where it did not."""
        self._asked: set[Layers] = set()

    @property
    def full(self) -> Layers:
        """All layers."""
        return tuple(range(self.room.num_layers))

    @property
    def history(self) -> list[Json]:
        """All steps, with what the validation samples say of them: measured now, all together, as
        far as nothing had to watch them earlier.
        """
        if self.validation is not None:
            pending = [step for step in self._history if not step["metrics"]]
            self.validation.evaluate([step["kept"] for step in pending])
            for step in pending:
                self._watch(step)
        return self._history

    def losses(self, sets: Sequence[Layers]) -> list[float]:
        """Mean calibration loss of each set."""
        self.calibration.evaluate(sets)
        self._asked.update(sets)
        return [self.calibration.loss(kept) for kept in sets]

    def loss(self, kept: Layers) -> float:
        """Mean calibration loss of one set."""
        return self.losses([kept])[0]

    def note(self, kept: Layers, *, added: Layers = (), removed: Layers = ()) -> Json:
        """Write a step into the history; its `increase` over the whole model is paired."""
        loss = self.loss(kept)
        each = self.calibration.losses(kept)
        increase = each - self.calibration.losses(self.full)
        step: Json = {
            "step": len(self._history),
            "kept": list(kept),
            **({"added": list(added)} if added else {}),
            **({"removed": list(removed)} if removed else {}),
            "loss": loss,
            "error": _standard_error(each),
            "increase": float(increase.mean()),
            "increase_error": _standard_error(increase),
            "metrics": {},
            "evaluations": len(self._asked),
        }
        self._history.append(step)
        return step

    def _watch(self, step: Json) -> None:
        """Fill in what the validation samples say of a step."""
        if self.validation is not None and not step["metrics"]:
            found = self.validation.metrics(step["kept"])
            step["metrics"] = {"loss": self.validation.loss(step["kept"]), **found}

    def scores(self, method: str) -> list[float]:
        """Importance of each layer.

        Raises:
            ConfigError: there is none by this method.
        """
        if method in self._scores:
            return list(self._scores[method])
        if not self._scores:
            raise ConfigError(
                f"select.strategy needs the scores of {method!r}; make them with `layer-select "
                "score CONFIG --out DIR` and give --set inputs.scores=DIR"
            )
        raise ConfigError(
            f"select.strategy needs the scores of {method!r}; inputs.scores has "
            f"{', '.join(sorted(self._scores))}: choose one of them, or score again"
        )

    def angular(self) -> Sequence[Sequence[float]]:
        """Angular distance between the inputs of layers, and the output of the last.

        Raises:
            ConfigError: the scores hold none.
        """
        if self._angular is None:
            raise ConfigError(
                "select.strategy: block by angular distance needs scores with the method angular; "
                "make them with `layer-select score` and give --set inputs.scores=DIR, or set "
                "select.strategy.by: loss"
            )
        return self._angular

    # -----------------------------------------------------------------------------------------

    def watched(self, step: Json, metric: str) -> float:
        """The validation value that early stopping watches, signed so that more is better.

        Raises:
            ConfigError: there are no validation samples, or the task has no such metric.
        """
        self._watch(step)
        known = step["metrics"]
        if not known:
            raise ConfigError(
                "select.strategy.stop needs validation samples; raise task.validation above 0"
            )
        name = metric or self._metric or next((n for n in known if n != "loss"), "loss")
        if name not in known:
            raise ConfigError(
                f"select.strategy.stop.metric must be one of {', '.join(known)}, found {metric!r}"
            )
        return -known[name] if lower_is_better(name) else known[name]

    def retained(self, step: Json, metric: str) -> float:
        """Share of the full model's validation value: its inverse where less is better."""
        of_full: Json = {"kept": list(self.full), "metrics": {}}
        here, whole = self.watched(step, metric), self.watched(of_full, metric)
        if whole == 0 or (whole < 0 and here == 0):
            raise ConfigError(
                "select.strategy.stop.retained is a share of the full model's value, which is 0 on "
                "the validation samples; watch another metric or raise task.validation"
            )
        return here / whole if whole > 0 else whole / here


def _standard_error(values: Any) -> float:
    return float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else 0.0


def lower_is_better(metric: str) -> bool:
    """Whether a metric counts what is lost."""
    return any(word in metric for word in LOWER_IS_BETTER)
