"""Greedy search on the task's loss, one layer after the other, watched at every step."""

from collections.abc import Callable
from typing import Literal

from pydantic import PositiveInt

from layer_select.selection.room import Layers
from layer_select.selection.search import ForwardStop, Search, Stop
from rayrun.config import Config, Json


class GreedyBackward(Config):
    """Remove in each round the layer whose absence costs least (SLEB, Song et al. 2024,
    arXiv:2402.09025, on the task's loss in place of the perplexity of text).

    Under a family's rule runs of several layers go at once; rounds then compare the loss that is
    added for each removed layer. L = 12, k = 3 takes 72 sets without protected layers.
    """

    type: Literal["greedy_backward"] = "greedy_backward"
    stop: Stop | None = None
    """End before the budget is met, when quality would be lost. None: the budget is met."""

    def search(self, search: Search) -> Layers:
        """Raises: ConfigError: early stopping lacks samples or a metric."""
        return remove(search, self.stop, lambda runs: runs)


class Hybrid(Config):
    """Backward greedy among the few layers with the lowest scores: importance proposes, the task's
    loss decides.
    """

    type: Literal["hybrid"] = "hybrid"
    method: str = "hybrid"
    """Method of `inputs.scores` (the weighted ranks of several, by default)."""
    shortlist: PositiveInt = 4
    """Layers tried in each round."""
    stop: Stop | None = None
    """As for greedy_backward."""

    def search(self, search: Search) -> Layers:
        """Raises: ConfigError: no such scores; early stopping lacks samples or a metric."""
        scores = search.scores(self.method)

        def lowest(runs: list[Layers]) -> list[Layers]:
            by_mean = sorted(runs, key=lambda run: (sum(scores[i] for i in run) / len(run), run))
            return by_mean[: self.shortlist]

        return remove(search, self.stop, lowest)


def remove(
    search: Search, stop: Stop | None, shortlist: Callable[[list[Layers]], list[Layers]]
) -> Layers:
    """Remove runs of layers, the cheapest first, until `search.room.size` are left."""
    room = search.room
    kept = search.full
    step = search.note(kept)
    retained, below = kept, 0
    if stop is not None:
        search.retained(step, stop.metric)  # tells early what it cannot watch
    while len(kept) > room.size:
        runs = shortlist(room.removals(kept))
        rests = [tuple(layer for layer in kept if layer not in run) for run in runs]
        losses = search.losses(rests)
        costs = [
            ((loss - step["loss"]) / len(run), run) for loss, run in zip(losses, runs, strict=True)
        ]
        removed = min(costs)[1]
        kept = rests[runs.index(removed)]
        step = search.note(kept, removed=removed)
        if stop is None:
            retained = kept
        elif search.retained(step, stop.metric) >= stop.retained:
            retained, below = kept, 0
        else:
            below += 1
            if below == stop.patience:
                break
    if retained != kept:
        search.stopped = (
            f"{len(retained)} layers: fewer did not retain {stop.retained if stop else 0:g} of the "
            "full model's validation value"
        )
    return retained


class GreedyForward(Config):
    """Add in each round the layer that lowers the loss most, beginning with the protected ones."""

    type: Literal["greedy_forward"] = "greedy_forward"
    stop: ForwardStop | None = None
    """End before the budget is used up. None: it is used up."""

    def search(self, search: Search) -> Layers:
        """Raises: ConfigError: early stopping lacks samples or a metric."""

        def cheapest(kept: Layers) -> int:
            layers = search.room.additions(kept)
            losses = search.losses([tuple(sorted((*kept, layer))) for layer in layers])
            return layers[losses.index(min(losses))]

        return add(search, self.stop, cheapest)


class Incremental(Config):
    """Add layers in the order of their importance, and look at the task after each."""

    type: Literal["incremental"] = "incremental"
    method: str = "hybrid"
    """Method of `inputs.scores`."""
    stop: ForwardStop | None = ForwardStop(retained=0.95)
    """End before the budget is used up. None: it is used up."""

    def search(self, search: Search) -> Layers:
        """Raises: ConfigError: no such scores; early stopping lacks samples or a metric."""
        scores = search.scores(self.method)

        def most_important(kept: Layers) -> int:
            return max(search.room.additions(kept), key=lambda layer: (scores[layer], -layer))

        return add(search, self.stop, most_important)


def add(search: Search, stop: ForwardStop | None, choose: Callable[[Layers], int]) -> Layers:
    """Add the layer that `choose` names until `search.room.size` are kept, or `stop` says so."""
    room = search.room
    kept: Layers = room.protected
    watch = _Watch(search, stop)
    if kept and watch.ends(search.note(kept), kept):
        return watch.best
    while len(kept) < room.size:
        new = choose(kept)
        kept = tuple(sorted((*kept, new)))
        if watch.ends(search.note(kept, added=(new,)), kept):
            break
    if stop is None or watch.best == ():
        return kept
    if watch.best != kept and not search.stopped:
        search.stopped = f"{len(watch.best)} layers: more gained nothing on validation"
    return watch.best


class _Watch:
    """Early stopping of a search that adds."""

    def __init__(self, search: Search, stop: ForwardStop | None) -> None:
        self._search, self._stop = search, stop
        self._value = float("-inf")
        self._without_gain = 0
        self.best: Layers = ()
        """The best deployable set so far."""

    def ends(self, step: Json, kept: Layers) -> bool:
        stop, search = self._stop, self._search
        if stop is None:
            return False
        value = search.watched(step, stop.metric)
        deployable = search.room.allows(kept)
        if deployable and value > self._value + (stop.min_gain if self.best else 0.0):
            self._value, self.best, self._without_gain = value, kept, 0
        else:
            self._without_gain += 1
        if deployable and stop.retained is not None:
            share = search.retained(step, stop.metric)
            if share >= stop.retained:
                self.best = kept
                search.stopped = (
                    f"{len(kept)} layers retain {share:.3f} of the full model's validation value"
                )
                return True
        if self._without_gain >= stop.patience:
            search.stopped = (
                f"{len(self.best)} layers: {stop.patience} steps more gained nothing on validation"
            )
            return bool(self.best)
        return False
