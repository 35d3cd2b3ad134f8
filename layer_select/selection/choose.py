"""`choose`: from measurements and a budget to a plan."""

from layer_select.coalitions import Coalitions
from layer_select.plan import Plan
from layer_select.selection import Select
from layer_select.selection.baselines import every_nth, first_k, random_sets
from layer_select.selection.comparison import Bootstrap, compare, signal
from layer_select.selection.exhaustive import Exhaustive
from layer_select.selection.room import Layers
from layer_select.selection.search import Search
from layer_select.selection.swap import refine
from rayrun.config import Json


def choose(
    section: Select,
    search: Search,
    *,
    test: Coalitions | None,
    shuffled: Coalitions | None,
    digests: Json,
    budget: Json,
) -> Plan:
    """Search, then compare on the test samples. A collective of the measurements' workers.

    Args:
        section: `select:` of the configuration.
        search: over the calibration samples, watched on the validation samples.
        test: samples for the comparison; None: there is none.
        shuffled: the test samples with their targets exchanged, for the check for a signal.
        digests: `model` and `task`.
        budget: as told, with `layers`, and the times that were measured.

    Raises:
        ConfigError: the strategy lacks scores, samples or a permitted set.
    """
    room = search.room
    kept = section.strategy.search(search)
    if section.refine == "swap" and not search.stopped:
        kept = refine(search, kept, section.refine_rounds)
    told: Json = {}
    if test is not None:
        told = _compared(section, search, kept, test, shuffled)
    constraints: list[str] = []
    if room.protected:
        constraints.append(f"layers {', '.join(map(str, room.protected))} are protected")
    if room.rule is not None:
        constraints.append(room.rule.explain())
        if room.size < room.keep:
            constraints.append(f"the rule leaves {room.size} of {room.keep} layers at most")
    return Plan(
        model=digests["model"],
        task=digests["task"],
        num_layers=room.num_layers,
        kept=kept,
        budget=budget,
        strategy={**section.strategy.to_dict(), "refine": section.refine},
        portable=section.portable,
        history=tuple(search.history),
        stopped=search.stopped,
        constraints=tuple(constraints),
        **told,
    )


def _compared(
    section: Select, search: Search, kept: Layers, test: Coalitions, shuffled: Coalitions | None
) -> Json:
    room = search.room.of_size(len(kept))
    random = random_sets(room, section.random_baselines, section.seed)
    others: dict[str, Layers] = {
        "full": search.full,
        "first_k": first_k(room.unprotected()),
        "every_nth": every_nth(room.unprotected()),
        **{f"random_{number}": drawn for number, drawn in enumerate(random)},
    }
    if section.optimum:
        aside = Search(room, search.calibration)
        others["optimum_calibration"] = Exhaustive().search(aside)
        others["optimum_test"] = Exhaustive().search(Search(room, test))
    bootstrap = Bootstrap(test.num_samples, section.bootstrap, section.seed)
    found = compare(test, kept, others, bootstrap)
    told: Json = {"chosen": found.pop("chosen"), "baselines": found}
    if shuffled is not None:
        told["signal"] = signal(test, shuffled, kept, random, bootstrap)
    return told
