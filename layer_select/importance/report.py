"""`report.html` of scores: methods × layers, errors and cost, agreement, distances."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from layer_select.config import LayerSelectConfig
from layer_select.importance.ranks import ranks
from layer_select.scores import Scores
from rayrun.config import Json
from rayrun.report import Report, Value, figure

PANELS = 4
"""Methods beside each other."""


def report(config: LayerSelectConfig, scores: Scores, told: Json, task: Json, model: str) -> Report:
    """The page.

    Args:
        config: of the run.
        scores: what was found.
        told: `details` of the result: `concentration` and `spearman`.
        task: description of the task.
        model: where the model is.
    """
    page = Report(f"Layers of {config.name}", subtitle=f"model {scores.model}")
    page.text(
        f"{len(scores.methods)} scores of {scores.num_layers} layers of `{model}` on "
        f"{scores.samples:,} calibration samples of {task['source']}; mean loss of the whole model "
        f"{scores.loss:.4f}. A higher score means: keep. No score selects by itself: `layer-select "
        "select` measures what the task loses."
    )
    if quantised := told.get("quantised"):
        page.text(
            f"The model is quantised ({quantised}): importance is that of its rounded weights."
        )
    page.heading("Ranks")
    page.plot(
        _heat_map(scores),
        caption=f"Rank of each layer by each method; {scores.num_layers} is the highest score",
    )
    page.heading("Scores")
    _scores(page, scores)
    page.heading("Cost")
    _cost(page, scores)
    page.heading("Upper layers against lower ones")
    _concentration(page, told["concentration"])
    page.heading("Agreement of the methods")
    page.plot(_agreement(told["spearman"]), caption="Spearman's rank correlation of the scores")
    for name, matrix in scores.pairs.items():
        page.heading(f"Pairs: {name}")
        page.plot(_pairs(matrix), caption=_caption(name))
    page.heading("Task")
    page.table(
        ["prompt", "target"],
        [[example["prompt"], example["item"]] for example in task["examples"]],
        caption=f"Examples ({task['type']}; item vectors: {task['item_vectors'] or 'none'})",
    )
    page.heading("Configuration")
    page.details("config.yaml", config.to_yaml())
    return page


def _caption(name: str) -> str:
    if name == "angular":
        return "Angular distance between states of the residual stream; 0 enters the first layer"
    return f"{name} between states of the residual stream; 0 enters the first layer"


def _heat_map(scores: Scores) -> Any:
    keys, layers = list(scores.methods), scores.num_layers
    matrix = torch.stack([ranks(scores.methods[key].tensor) for key in keys])
    fig, axes = figure(2.6 + 0.4 * layers, 0.9 + 0.3 * len(keys))
    axes.imshow(matrix, cmap="viridis", aspect="auto", vmin=1, vmax=layers)
    axes.set_xticks(range(layers), [str(layer) for layer in range(layers)])
    axes.set_yticks(range(len(keys)), keys)
    axes.set_xlabel("layer")
    axes.grid(False)
    if layers <= 40:
        for row, values in enumerate(matrix.tolist()):
            for column, value in enumerate(values):
                # Not pure white or black, which follow the page's light and dark.
                colour = "#f4f4f4" if value < 0.6 * layers else "#111111"
                text = f"{value:.0f}" if value == int(value) else f"{value:.1f}"
                axes.text(column, row, text, ha="center", va="center", fontsize=7, color=colour)
    return fig


def _scores(page: Report, scores: Scores) -> None:
    page.plot(_panels(scores), caption="Scores by layer; bars: one standard error either way")
    lines: list[str] = []
    for key, one in scores.methods.items():
        lines.append(key)
        for layer, (score, error) in enumerate(zip(one.scores, one.errors, strict=True)):
            lines.append(f"  {layer:3d}  {_short(score):>10} ± {_short(error)}")
    page.details("the numbers", "\n".join(lines))


def _panels(scores: Scores) -> Any:
    """One small plot for each method, each on its own scale."""
    rows = -(-len(scores.methods) // PANELS)
    fig, axes = figure(9.0, 0.3 + 1.5 * rows, rows=rows, columns=PANELS)
    panels = list(np.asarray(axes).flat)
    for panel, (key, one) in zip(panels, scores.methods.items(), strict=False):
        panel.errorbar(range(scores.num_layers), one.scores, yerr=one.errors, marker=".", lw=1)
        panel.set_title(key.replace("_without", "\nwithout"), fontsize=7)
        panel.tick_params(labelsize=6)
    for panel in panels[len(scores.methods) :]:
        panel.remove()
    return fig


def _short(value: float) -> str:
    return f"{value:.3g}".replace("-", "−")


def _cost(page: Report, scores: Scores) -> None:
    shared = scores.shared_seconds
    names = {
        "forward": "forward pass and loss",
        "backward": "backward pass",
        "weights": "sums over gradients of weights",
    }
    rows: list[list[Value]] = [[f"shared: {names.get(n, n)}", s] for n, s in shared.items()]
    rows += [[key, one.seconds] for key, one in scores.methods.items()]
    total = sum(shared.values()) + sum(one.seconds for one in scores.methods.values())
    page.table(
        ["", "seconds"],
        [*rows, ["in all", total]],
        caption="Seconds of all workers together; the one pass is shared by the methods that "
        "observe it, and counted once",
    )


def _concentration(page: Report, found: Json) -> None:
    page.text(
        "Mean score of the top quarter of layers over that of the bottom quarter. Above 1 the "
        "upper layers score higher, with an interval that excludes 1 beyond chance. A dash: a "
        "quarter's mean is not above 0."
    )
    rows: list[list[Value]] = []
    for key, one in found.items():
        ratio: Value = one["ratio"]
        if one["low"] is not None:
            ratio = f"{one['ratio']:.3f}\n[{one['low']:.3f}, {one['high']:.3f}]"
        rows.append([key, ratio, one["by"]])
    page.table(["method", "top / bottom", "interval by"], rows)


def _agreement(spearman: dict[str, dict[str, float | None]]) -> Any:
    keys = list(spearman)
    numbers = [[_number(spearman[a][b]) for b in keys] for a in keys]
    fig, axes = figure(3.2 + 0.42 * len(keys), 2.2 + 0.36 * len(keys))
    image = axes.imshow(numbers, cmap="RdBu", vmin=-1, vmax=1)
    axes.set_xticks(range(len(keys)), keys, rotation=60, ha="right")
    axes.set_yticks(range(len(keys)), keys)
    axes.grid(False)
    for row, values in enumerate(numbers):
        for column, value in enumerate(values):
            colour = "#f4f4f4" if abs(value) > 0.6 else "#111111"
            axes.text(
                column, row, f"{value:.1f}", ha="center", va="center", fontsize=7, color=colour
            )
    fig.colorbar(image, ax=axes, shrink=0.7)
    return fig


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def _pairs(matrix: Sequence[Sequence[float]]) -> Any:
    size = len(matrix)
    fig, axes = figure(5.2, 4.2)
    image = axes.imshow(matrix, cmap="viridis")
    ticks = range(0, size, 1 if size <= 16 else 4)
    axes.set_xticks(ticks)
    axes.set_yticks(ticks)
    axes.set_xlabel("position")
    axes.set_ylabel("position")
    axes.grid(False)
    fig.colorbar(image, ax=axes)
    return fig
