"""Local search around a set that another strategy chose."""

from layer_select.selection.room import Layers
from layer_select.selection.search import Search


def refine(search: Search, kept: Layers, rounds: int) -> Layers:
    """Exchange one kept layer for one that went, the best exchange of all, while the loss falls.

    At most `rounds` times. No set that differs in one layer is better when it ends sooner.
    """
    loss = search.loss(kept)
    for _ in range(rounds):
        others = search.room.swaps(kept)
        if not others:
            break
        losses = search.losses(others)
        if min(losses) >= loss:
            break
        loss = min(losses)
        other = others[losses.index(loss)]
        added = tuple(sorted(set(other) - set(kept)))
        search.note(other, added=added, removed=tuple(sorted(set(kept) - set(other))))
        kept = other
    return kept
