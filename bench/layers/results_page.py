"""The page of `layer_selection.py`: what its seeds say, in words and tables."""

import statistics
from collections.abc import Callable, Sequence

from rayrun.config import Json

SHARES = (0.75, 0.5, 0.25)
REMOVAL = ("leave_one_out", "shapley", "kernel_shap", "banded_shapley")
"""Methods that measure what removal costs; their scores may be below 0."""


def page(found: Sequence[Json], command: str) -> str:
    """The results as Markdown."""
    first = found[0]
    full = [one["full"] for one in found]
    lines = [
        "# Which layers matter, and which method finds them: a 12-layer decoder",
        "",
        f"Made by `{command}`.",
        "",
        f"Pretraining seeds: {len(found)}. Each decoder has {first['layers']} layers and "
        f"{first['parameters']:,} parameters and is trained on simulated histories of titles; such "
        "a model says nothing about a large one. The task is "
        "the next item by the head, over the full catalogue; "
        f"{first['samples']['calibration']} calibration samples score and choose, "
        f"{first['samples']['test']} test samples are reported. All 4,096 sets of layers were "
        "measured, so the Shapley values are exact and the best sets are known. No layer is "
        f"protected and nothing is healed. Whole models: NDCG@10 {_each(full, 'ndcg')}, loss "
        f"{_each(full, 'loss')}; loss without any layer {_each(found, 'empty')}.",
        "",
        *_answers(found),
        "",
        "## Increase of the loss by way of choosing",
        "",
        "Test loss over that of the whole model: mean over the seeds, in brackets the range over "
        "them. Last column: half the width of the 95 % bootstrap interval over samples at 25 %, "
        "the largest of the seeds. Best on test is no way of choosing but a bound.",
        "",
        *_increases(found),
        "",
        "## Against greedy backward, paired",
        "",
        "Test loss of a choice minus that of greedy backward on the same samples, with its 95 % "
        "bootstrap interval, for each seed. Positive: the choice loses more. **Bold**: the "
        "interval excludes 0. “same” where both chose the same layers.",
        "",
        *_paired(found),
        "",
        "## Upper quarter over lower quarter",
        "",
        "Mean score of the three uppermost layers over that of the three lowest, with its 95 % "
        "interval, for each seed; – where a mean is not above 0, so that a ratio means nothing.",
        "",
        *_concentrations(found),
        "",
        "## Agreement of the methods",
        "",
        "Spearman's rank correlation with leave-one-out and exact Shapley values: mean over seeds "
        "and range.",
        "",
        *_agreements(found),
        "",
        "## Scores",
        "",
        *_scores(first),
    ]
    return "\n".join(lines) + "\n"


def _answers(found: Sequence[Json]) -> list[str]:
    """Whether the two claims hold, decided by the numbers alone."""
    lines = ["## Answers", ""]
    above = {key: [one["concentration"][key] for one in found] for key in found[0]["concentration"]}
    yes = [k for k, cs in above.items() if all(c["low"] is not None and c["low"] > 1 for c in cs)]
    no = [k for k, cs in above.items() if all(c["high"] is not None and c["high"] < 1 for c in cs)]
    gaps = {key: [one["difference"][key] for one in found] for key in REMOVAL}
    lower = [key for key, told_gaps in gaps.items() if all(g["high"] < 0 for g in told_gaps)]
    upper = [key for key, told_gaps in gaps.items() if all(g["low"] > 0 for g in told_gaps)]
    verdict = "is refuted" if len(lower) == len(gaps) else "does not hold"
    verdict = "holds" if len(upper) == len(gaps) else verdict
    shown = "; ".join(
        f"{key} "
        + ", ".join(f"{g['mean']:.3f} [{g['low']:.3f}, {g['high']:.3f}]" for g in told_gaps)
        for key, told_gaps in gaps.items()
    )
    lines.append(
        "* **“Upper layers matter most.”** By the ratio below, upper layers score higher, in every "
        f"seed with the whole interval, by: {_list(yes)}. Lower layers score higher by: "
        f"{_list(no)}. The others are undecided, differ between seeds or have no ratio. What "
        "removal costs decides: upper quarter minus lower quarter, for each seed, is "
        f"{shown.replace('-0', '−0')}. By it the claim {verdict}."
    )
    ranks = {share: _order(found, share) for share in map(str, SHARES)}
    told_places: list[str] = []
    holds = True
    for share in map(str, SHARES):
        values = {name: round(_rows(found)[name][share][0], 9) for name in ranks[share]}
        fisher = values["top k: fisher"]
        ahead = sum(value < fisher for value in values.values())
        alike = sum(value == fisher for value in values.values()) - 1
        best = ranks[share][0].removeprefix("top k: ")
        holds = holds and ahead == 0
        told_places.append(
            f"at {float(share):.0%} {ahead} of {len(values)} methods lose less and {alike} as much"
            + (f" (least: {best})" if ahead else "")
        )
    lines.append(
        "* **“Fisher is the best indicator.”** Of the methods' top k, by mean test loss: "
        f"{'; '.join(told_places)}. The claim {'holds' if holds else 'does not hold'}."
    )
    rows = _rows(found)
    for share in map(str, SHARES):
        random = statistics.mean(rows[f"random {n}"][share][0] for n in range(5))
        named = {
            "greedy backward": "greedy backward",
            "Fisher's top k": "top k: fisher",
            "exact Shapley's": "top k: shapley",
            "first k": "first k",
            "every n-th": "every n-th",
            "the best set on calibration": "best on calibration (all sets)",
        }
        values = ", ".join(f"{name} {rows[row][share][0]:.4f}" for name, row in named.items())
        lines.append(
            f"* **{float(share):.0%} of the layers.** Loss increase: {values}, random (mean of "
            f"five sets) {random:.4f}."
        )
    return lines


def _order(found: Sequence[Json], share: str) -> list[str]:
    rows = _rows(found)
    methods = [name for name in rows if name.startswith("top k: ")]
    return sorted(methods, key=lambda name: rows[name][share][0])


def _rows(found: Sequence[Json]) -> dict[str, dict[str, tuple[float, float, float, float]]]:
    """Name → share → mean, least and largest increase over seeds, half width of an interval."""
    rows: dict[str, dict[str, tuple[float, float, float, float]]] = {}
    for name in found[0]["chosen"][str(SHARES[0])]:
        rows[name] = {}
        for share in map(str, SHARES):
            told_by_seed = [one["chosen"][share][name]["increase"] for one in found]
            means = [one["mean"] for one in told_by_seed]
            half = max((one["high"] - one["low"]) / 2 for one in told_by_seed)
            rows[name][share] = (statistics.mean(means), min(means), max(means), half)
    return rows


def _increases(found: Sequence[Json]) -> list[str]:
    rows = _rows(found)
    last = str(SHARES[-1])
    order = sorted(rows, key=lambda name: rows[name][last][0])
    head = ["choice", *(f"{share:.0%} of layers" for share in SHARES), "± at 25 %"]
    body = [
        [
            name,
            *(
                f"{mean:.4f} [{low:.4f}, {high:.4f}]" if len(found) > 1 else f"{mean:.4f}"
                for mean, low, high, _ in (rows[name][str(s)] for s in SHARES)
            ),
            f"{rows[name][last][3]:.4f}",
        ]
        for name in order
    ]
    return _table(head, body)


def _paired(found: Sequence[Json]) -> list[str]:
    rows = _rows(found)
    shares = [str(share) for share in SHARES[1:]]
    order = sorted(rows, key=lambda name: rows[name][shares[-1]][0])
    head = ["choice"]
    head += [f"{float(s):.0%}, seed {n}" for s in shares for n in range(len(found))]

    def cell(name: str, share: str, one: Json) -> str:
        if one["chosen"][share][name]["kept"] == one["chosen"][share]["greedy backward"]["kept"]:
            return "same"
        gap = one["chosen"][share][name]["over_default"]
        text = f"{gap['mean']:.3f} [{gap['low']:.3f}, {gap['high']:.3f}]"
        return f"**{text}**" if gap["low"] > 0 or gap["high"] < 0 else text

    body = [[name, *(cell(name, s, one) for s in shares for one in found)] for name in order]
    return _table(head, [row for row in body if row[0] != "greedy backward"])


def _concentrations(found: Sequence[Json]) -> list[str]:
    head = ["method", *(f"seed {number}" for number in range(len(found)))]
    return _table(
        head,
        [
            [key, *(_ratio(one["concentration"][key]) for one in found)]
            for key in found[0]["scores"]
        ],
    )


def _ratio(told_ratio: Json) -> str:
    if told_ratio["ratio"] is None:
        return "–"
    if told_ratio["low"] is None:
        return f"{told_ratio['ratio']:.2f}"
    return f"{told_ratio['ratio']:.2f} [{told_ratio['low']:.2f}, {told_ratio['high']:.2f}]"


def _agreements(found: Sequence[Json]) -> list[str]:
    def cell(key: str, other: str) -> str:
        values = [one["spearman"][key][other] for one in found]
        if None in values:
            return "–"
        mean = f"{statistics.mean(values):.2f}"
        return f"{mean} [{min(values):.2f}, {max(values):.2f}]" if len(values) > 1 else mean

    others = ("leave_one_out", "shapley", "fisher")
    body = [[key, *(cell(key, other) for other in others)] for key in found[0]["spearman"]]
    return _table(["method", "leave-one-out", "exact Shapley", "Fisher"], body)


def _scores(one: Json) -> list[str]:
    head = ["seed 0", *map(str, range(one["layers"]))]
    show: Callable[[float], str] = "{:.3g}".format
    return _table(head, [[key, *map(show, row)] for key, row in one["scores"].items()])


def _each(rows: Sequence[Json], key: str) -> str:
    return ", ".join(f"{one[key]:.3f}" for one in rows)


def _list(keys: Sequence[str]) -> str:
    return ", ".join(keys) if keys else "none"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    line = "| {} |".format
    rule = ["---", *("---:" for _ in head[1:])]
    cells = [[cell.replace("-0", "−0") for cell in row] for row in rows]
    return [line(" | ".join(row)) for row in (head, rule, *cells)]
