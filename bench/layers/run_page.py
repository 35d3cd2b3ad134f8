"""What a run of all stages found, as a page of results.

    python bench/layers/run_page.py DIR --out docs/results/NAME.md [--command "…"] [--note "…"]…

DIR is the output of `layer-select run`. Nothing is measured here: every number is read from the
results that the stages wrote, and the page says of each target whether it is met.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import yaml

from layer_select.evaluate.report import (
    decode_caption,
    decode_rows,
    difference_rows,
    metric_rows,
    retained_rows,
    size_rows,
    table,
    target_rows,
    timing_caption,
    timing_rows,
)
from layer_select.run import STAGES
from rayrun.config import Json
from rayrun.object_store import human

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "layer_select"
PARTS = ("data", "task", "pretrain", "score", "select", "compact", "heal", "evaluate")
"""Of the configuration, which decide a number."""


class Run:
    """The results that stand in the output of a run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.whole = _json(folder / "result.json")
        self.of = {stage.verb: _json(folder / stage.folder / "result.json") for stage in STAGES}
        self.manifest = _json(folder / "manifest.json")
        self.config: Json = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))

    @property
    def details(self) -> Json:
        """Of the evaluation."""
        return self.of["evaluate"]["details"]

    @property
    def teacher(self) -> Json | None:
        """What pretraining told, where the run made its model itself and it still stands."""
        made = self.of["evaluate"], self.folder / "evaluation" / "config.yaml"
        place = Path(yaml.safe_load(made[1].read_text())["inputs"]["model"]) / "result.json"
        found = _json(place) if place.is_file() else None
        return found if found and found["verb"] == "pretrain-tiny" else None


def main() -> None:
    """Read and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--command", help="the call that made it; else by the configuration's name")
    parser.add_argument("--note", action="append", default=[], help="a paragraph below the first")
    given = parser.parse_args()
    run = Run(given.folder)
    given.out.write_text(page(run, given.command or command_of(run), given.note), encoding="utf-8")
    for line in run.details.get("targets", []):
        print(f"{line['met']:>12}  {line['name']} ({line['asked']})")


def command_of(run: Run) -> str:
    """By the file in `configs/` that has the name of the run."""
    for file in sorted(CONFIGS.glob("*.yaml")):
        if yaml.safe_load(file.read_text(encoding="utf-8"))["name"] == run.config["name"]:
            return f"layer-select run configs/layer_select/{file.name} --out DIR"
    raise SystemExit(f"no file in {CONFIGS} has the name {run.config['name']}; give --command")


def page(run: Run, command: str, notes: list[str]) -> str:
    """The page as Markdown."""
    details, told = run.details, run.details["domains"]["next_item"]
    kept = run.of["select"]["details"]["kept"]
    full = details["models"]["full"]["layers"]
    parts = [
        f"# {run.config['name']}: {full} layers to {len(kept)}",
        f"`{command}`",
        f"{told['source']}: {told['samples']:,} test samples of {told['users']:,} users, full "
        f"catalogue, ties against the model. 95 % user-bootstrap intervals "
        f"({run.config['evaluate']['bootstrap']:,} replicates, paired over users) in parentheses. "
        f"Layers {', '.join(map(str, kept))} stay. "
        + f"Every seed of the configuration: {seeds(run)}. "
        + f"Made on {run.manifest['created'][:10]} by commit {_commit(run)}, torch "
        f"{run.whole['versions']['torch']}; this page by `bench/layers/run_page.py`.",
        *notes,
        "## Targets",
        "Met: the whole interval is on the right side.",
        table(*target_rows(details["targets"])),
        *unmet(details["targets"]),
        *domain(details, "next_item", "## The table"),
    ]
    if "transfer" in details["domains"]:
        parts += domain(details, "transfer", "## Another domain")
    parts += [*choices(run), *before_healing(run), *costs(run), *export(run)]
    return "\n\n".join(parts) + "\n"


def unmet(targets: list[Json]) -> list[str]:
    """Said plainly."""
    missed = [t["name"] for t in targets if t["met"] == "not met"]
    unknown = [f"{t['name']} ({t['why']})" for t in targets if t["met"] == "not measured"]
    lines = [f"**Not met:** {', '.join(missed)}."] if missed else ["Every target measured is met."]
    return [*lines, *([f"Not measured: {', '.join(unknown)}."] if unknown else [])]


def domain(details: Json, name: str, heading: str) -> list[str]:
    """One domain: all models, what the student is ahead of each, what it retains."""
    told = details["domains"][name]
    lines = [heading]
    if name == "transfer":
        lines.append(
            f"{told['source']}, {told['samples']:,} test samples of {told['users']:,} users. The "
            "language models are not trained on it: item vectors come from its titles. Popularity "
            "and SASRec are."
        )
    lines += [table(*metric_rows(told, details)), f"{details['subject']} − model, paired:"]
    lines.append(table(*difference_rows(told)))
    if told["retained"]:
        lines += ["Share of the full model's value, paired:", table(*retained_rows(told))]
    return lines


def choices(run: Run) -> list[str]:
    """As many layers, chosen otherwise, and nothing healed: what the plan was compared with."""
    select = run.of["select"]
    (task,) = select["metrics"]
    names = [n for n in ("loss", "ndcg@10", "mrr", "hr@10") if n in select["metrics"][task]]
    each = {"full": select["baselines"]["full"], "the plan": select["metrics"]}
    each |= {who: of for who, of in select["baselines"].items() if who != "full"}
    rows = [
        [who.replace("_", " "), *(f"{of[task][n]:.4f}" for n in names)] for who, of in each.items()
    ]
    return [
        "## The choice by itself",
        "As many layers by other choices, nothing repaired or healed. The plan was chosen by the "
        f"loss on the calibration samples; these are the {select['split']} samples:",
        table(["choice", *names], rows),
    ]


def before_healing(run: Run) -> list[str]:
    """Layers left out, gaps repaired, healed."""
    compact, heal = run.of["compact"], run.of["heal"]
    (task,) = compact["metrics"]
    names = [n for n in ("loss", "ndcg@10", "mrr", "hr@10") if n in compact["metrics"][task]]
    each = {
        "full": compact["baselines"]["full"],
        "layers left out": compact["baselines"].get("naive"),
        "gaps repaired": compact["metrics"],
        "healed": heal["metrics"],
    }
    rows = [
        [who, *(f"{of[task][n]:.4f}" for n in names)] for who, of in each.items() if of is not None
    ]
    lines = ["## Before and after healing", table(["test samples", *names], rows)]
    repairs = compact["details"]["repairs"]
    if repairs:
        gained = sum(r["loss_before"] - r["loss_after"] for r in repairs if r["used"])
        used = sum(r["used"] for r in repairs)
        lines.append(
            f"{used} of {len(repairs)} gaps are repaired by a closed-form map; on the calibration "
            f"samples that takes {gained:.4f} off the loss. A map that raises it is dropped."
        )
    cost = heal["details"]["cost"]
    rivals = [n for n, m in run.details["models"].items() if m["healed"] and n != "student"]
    lines.append(
        f"Healing: {cost['steps']:,} steps, {cost['tokens']:,} tokens, {cost['seconds']:,.0f} s, "
        f"about {cost['flop']:.2g} FLOP with the teacher's; objectives "
        f"{', '.join(heal['details']['objectives'])}."
        + (" Every rival marked healed took the same." if rivals else "")
    )
    return lines


def costs(run: Run) -> list[str]:
    """Sizes, speed, and how long the stages took."""
    details = run.details
    lines = ["## Size and speed", table(*size_rows(details))]
    if timing := details["timing"]:
        lines += [table(*timing_rows(timing)), timing_caption(timing) + "."]
        if timing.get("decode"):
            lines += [table(*decode_rows(timing)), decode_caption(timing) + "."]
    stages: list[list[Any]] = [[k, f"{s:,.0f}"] for k, s in run.whole["details"]["stages"].items()]
    if (teacher := run.teacher) is not None:
        stages.insert(0, ["pretraining of the full model", f"{teacher['wall_s']:,.0f}"])
    lines += ["Seconds of each stage, Ray's start and all models of the table included:"]
    lines.append(table(["stage", "s"], stages))
    peak = human(run.whole["peak_memory_bytes"])
    lines.append(f"Peak memory of the largest worker of any stage: {peak}.")
    return lines


def export(run: Run) -> list[str]:
    """How each form ranks beside what it was written from."""
    rows = [
        [form, f"{of['identical']:.4f}", f"{of['overlap@10']:.4f}", f"{of['largest_difference']:g}"]
        for form, of in run.of["export"]["details"]["compared"].items()
    ]
    headers = ["form", "samples ranked identically", "overlap@10", "largest difference of scores"]
    return ["## Exported, and read back", table(headers, rows)]


def seeds(run: Run) -> str:
    """All values that stand under a key `seed` in what decides a number."""
    found: set[int] = set()

    def look(node: Any) -> None:
        if isinstance(node, dict):
            found.update([node["seed"]] if isinstance(node.get("seed"), int) else [])
            node = list(node.values())
        if isinstance(node, list):
            for one in node:
                look(one)

    for part in PARTS:
        look(run.config.get(part))
    return ", ".join(map(str, sorted(found)))


def _commit(run: Run) -> str:
    commit = run.manifest.get("git_commit") or "unknown"
    return commit[:10] + (" with changes" if commit.endswith("+") else "")


def _json(file: Path) -> Json:
    return json.loads(file.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
