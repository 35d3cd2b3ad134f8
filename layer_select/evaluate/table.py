"""From what each model does on each sample to the table: intervals, differences, what is retained.

    difference(m) = mean(subject) − mean(m)          paired: the same users in every replicate
    retained      = mean(subject) / mean(full)       likewise

Shapes: N samples, R replicates.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float64
from torch import Tensor

from layer_select.evaluate.bootstrap import Bootstrap, around
from layer_select.evaluate.measure import Columns, metrics_of
from rayrun.config import Json

LOWER_IS_BETTER = ("rmse", "mae", "token_nll")


def compare(
    found: Mapping[str, Columns],
    subject: str,
    bootstrap: Bootstrap,
    *,
    draws: Mapping[str, list[str]] | None = None,
) -> Json:
    """Every model with intervals, and beside the subject.

    Args:
        found: columns of each sample by model; `full` is the whole model.
        subject: the model that the others are compared with.
        bootstrap: over the users of the samples.
        draws: name → models whose mean over samples it stands for (random layers).

    Returns:
        `models` {name: {metric: {mean, low, high}}}; `differences`, subject − model, for every
        model but the subject; `retained` {metric: {mean, low, high}} of the subject over the full
        model, where the two differ and higher is better.
    """
    values = {name: metrics_of(columns) for name, columns in found.items()}
    for name, members in (draws or {}).items():
        of_each = [values[member] for member in members]
        values[name] = {
            metric: torch.stack([one[metric] for one in of_each]).mean(0) for metric in of_each[0]
        }
    means: dict[str, dict[str, Tensor]] = {}
    replicates: dict[str, dict[str, Tensor]] = {}
    for name, metrics in values.items():
        rows = torch.stack(list(metrics.values()), dim=1)
        means[name] = _derived(dict(zip(metrics, rows.mean(0), strict=True)))
        drawn = bootstrap.means(rows)
        replicates[name] = _derived(dict(zip(metrics, drawn.T, strict=True)))
    told: Json = {
        "models": {
            name: {m: around(float(mean), replicates[name][m]) for m, mean in metrics.items()}
            for name, metrics in means.items()
        },
        "differences": {
            name: {
                m: around(
                    float(means[subject][m] - mean), replicates[subject][m] - replicates[name][m]
                )
                for m, mean in metrics.items()
            }
            for name, metrics in means.items()
            if name != subject
        },
        "retained": {},
    }
    if subject != "full":
        told["retained"] = {
            m: around(
                float(means[subject][m] / whole), replicates[subject][m] / replicates["full"][m]
            )
            for m, whole in means["full"].items()
            if m not in LOWER_IS_BETTER and float(whole) > 0
        }
    return told


def _derived(means: Mapping[str, Float64[Tensor, "..."]]) -> dict[str, Tensor]:
    """Metrics of the table from means over samples; of ratings the root of the mean square."""
    if "squared_error" not in means:
        return dict(means)
    return {
        "rmse": means["squared_error"].sqrt(),
        "mae": means["absolute_error"],
        "accuracy": means["accuracy"],
    }
