"""The verdict of the gate: what was found task by task, in JSON, in words and as a page."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from infnet.config import InfnetConfig
from infnet.evaluate.report import LOWER_IS_BETTER
from rayrun.config import Json
from rayrun.report import Report, Value


@dataclass(frozen=True)
class TaskVerdict:
    """One task that both models have."""

    task: str
    new: float
    live: float
    gain: float
    """New minus live in the better direction: above 0, the new model is better."""
    low: float
    high: float
    """95 % interval of `gain` over users, paired."""
    blocks: bool
    """The interval lies wholly below −margin."""


@dataclass(frozen=True)
class Verdict:
    """What the gate says, and why."""

    decision: Literal["pass", "blocked"]
    reason: str
    live: str = ""
    """Digest of the live bundle; empty: there is none."""
    tasks: tuple[TaskVerdict, ...] = ()
    not_compared: Mapping[str, str] = field(default_factory=dict)
    """Tasks of either model that were not compared, with the reason."""
    rows: int = 0
    """Rows scored by both."""
    seen_by_live: int | None = 0
    """Those of them that the live model was trained on; None: not to be told."""


def details(config: InfnetConfig, verdict: Verdict) -> Json:
    """`details` of `result.json`."""
    return {
        "decision": verdict.decision,
        "reason": verdict.reason,
        "live": verdict.live,
        "metric": config.gate.metric,
        "margin": config.gate.margin,
        "differences": [
            {
                "task": one.task,
                "new": one.new,
                "live": one.live,
                "gain": one.gain,
                "interval": [one.low, one.high],
                "blocks": one.blocks,
            }
            for one in verdict.tasks
        ],
        "not_compared": dict(verdict.not_compared),
        "seen_by_live": verdict.seen_by_live,
    }


def says(config: InfnetConfig, one: TaskVerdict) -> str:
    """One task in a few words."""
    metric, margin = config.gate.metric, config.gate.margin
    sign = -1 if metric in LOWER_IS_BETTER else 1
    low, high = sorted((sign * one.low, sign * one.high))
    said = (
        f"{one.task} {metric} {one.new:.4f} against {one.live:.4f}, "
        f"difference {sign * one.gain:+.4f} [{low:+.4f}, {high:+.4f}]"
    ).replace("-", "−")
    if not one.blocks:
        return said
    return said + (f", worse by more than {margin:g}" if margin else ", worse")


def report(config: InfnetConfig, verdict: Verdict) -> Report:
    """The page: the decision and one table."""
    metric = config.gate.metric
    page = Report(f"Gate of {config.name}", subtitle=f"decision: {verdict.decision}")
    page.text(f"**{verdict.decision}**: {verdict.reason}.")
    if verdict.tasks:
        headers = ["task", "new", "live", "gain", "95 % interval", "decision"]
        rows: list[list[Value]] = [
            [
                one.task,
                one.new,
                one.live,
                f"{one.gain:+.4f}".replace("-", "−"),
                f"[{one.low:+.4f}, {one.high:+.4f}]".replace("-", "−"),
                "blocks" if one.blocks else "passes",
            ]
            for one in verdict.tasks
        ]
        page.table(
            headers,
            rows,
            f"{metric} of the new and the live model on the same {verdict.rows:,} test rows. The "
            "gain is new minus live in the better direction, its interval a paired user bootstrap "
            f"({config.evaluate.bootstrap} replicates). A task blocks if the whole interval lies "
            f"below −{config.gate.margin:g}",
        )
        page.text(
            "The live model is scored with its own encoder, vocabularies and frozen look-ups, as "
            "they stood at the end of its training."
        )
        if verdict.seen_by_live:
            page.text(
                f"It was trained on {verdict.seen_by_live:,} of these rows, which flatters it."
            )
    if verdict.not_compared:
        page.text(
            "Not compared:\n\n"
            + "\n".join(f"- `{task}`: {why}" for task, why in verdict.not_compared.items())
        )
    if verdict.live:
        page.text(f"Live bundle: `{verdict.live}`.")
    page.heading("Configuration")
    page.details("config.yaml", config.to_yaml())
    return page
