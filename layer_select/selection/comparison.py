"""What a choice is worth, on samples that took no part in it: beside other sets, with intervals.

Shapes: N samples.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from layer_select.coalitions import Coalitions
from layer_select.evaluate.bootstrap import Bootstrap
from layer_select.selection.room import Layers
from rayrun.config import Json


def compare(
    measured: Coalitions, chosen: Layers, others: Mapping[str, Layers], bootstrap: Bootstrap
) -> dict[str, Json]:
    """Loss and metrics of each set; `chosen` stands under its own name.

    Returns:
        By name: `kept`, mean `loss` with `low` and `high`, `metrics` with an interval each, and
        `worse_by`, the loss of the set minus that of the choice on the same samples (above 0: the
        choice is better).
    """
    sets = {"chosen": chosen, **others}
    measured.evaluate(sets.values())
    own = measured.losses(chosen)
    told: dict[str, Json] = {}
    for name, kept in sets.items():
        losses = measured.losses(kept)
        found = bootstrap.interval(losses)
        told[name] = {
            "kept": list(kept),
            "loss": found["mean"],
            "low": found["low"],
            "high": found["high"],
            "metrics": {
                metric: bootstrap.interval(values)
                for metric, values in measured.metric_values(kept).items()
            },
            "worse_by": None if name == "chosen" else bootstrap.interval(losses - own),
        }
    return told


def signal(
    true: Coalitions,
    shuffled: Coalitions,
    chosen: Layers,
    random: Sequence[Layers],
    bootstrap: Bootstrap,
) -> Json:
    """Does the choice know the task? By how much it beats random sets, and whether it still does so
    when the targets are exchanged between the prompts.

        d(n) = mean over random sets of ℓ_n − ℓ_n(chosen)
        found: E d > 0 on the task's targets, and more so than on shuffled ones

    Both with the whole 95 % interval, over the same prompts. A set that is merely better at
    guessing popular targets gains as much on shuffled ones.

    Returns:
        `found` (None without replicates), `true`, `shuffled` and their `difference`.
    """
    gains: list[Tensor] = []
    for measured in (true, shuffled):
        measured.evaluate([chosen, *random])
        others = torch.stack([measured.losses(kept) for kept in random]).mean(0)
        gains.append(others - measured.losses(chosen))
    told: Json = {
        "found": None,
        "true": bootstrap.interval(gains[0]),
        "shuffled": bootstrap.interval(gains[1]),
        "difference": bootstrap.interval(gains[0] - gains[1]),
    }
    lows = [told["true"]["low"], told["difference"]["low"]]
    if None not in lows:
        told["found"] = min(lows) > 0
    return told
