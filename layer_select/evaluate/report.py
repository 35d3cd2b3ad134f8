"""`report.html` and `table.md` of an evaluation."""

from collections.abc import Iterable, Sequence
from typing import Any

from layer_select.config import LayerSelectConfig
from rayrun.config import Json
from rayrun.metrics import Result
from rayrun.object_store import human
from rayrun.report import Report, Value, figure
from rayrun.report.page import show

ORDER = ("ndcg@10", "mrr", "hr@10", "ndcg@5", "hr@5", "rmse", "mae", "accuracy")
ABREAST = 2
"""Metrics beside each other on a page; more need a second table."""

ARTEFACT = {
    "amazon_beauty2014_seq": "Beauty",
    "amazon_toys2014_seq": "Toys",
}
"""Sets whose files keep the order of events only."""

Rows = list[list[Value]]


def report(config: LayerSelectConfig, result: Result) -> Report:
    """The page."""
    details = result.details
    subject = details["subject"]
    page = Report(f"Evaluation of {config.name}", subtitle=_subtitle(details))
    page.text(_summary(result))
    if "targets" in details:
        page.heading("Targets")
        headers, rows = target_rows(details["targets"])
        page.table(headers, rows, caption="Met: the whole 95 % interval is on the right side")
    for domain, told in details["domains"].items():
        page.heading(_heading(domain, told))
        for note in _notes(told, details):
            page.text(note)
        caption = (
            f"{told['samples']:,} test samples of {told['users']:,} users, full catalogue, ties "
            "against the model; 95 % user-bootstrap intervals"
        )
        _abreast(page, *metric_rows(told, details), caption)
        _abreast(page, *difference_rows(told), f"{subject} − model, paired over users")
        if told["retained"]:
            _abreast(page, *retained_rows(told), "Paired over users")
    head = details["domains"]["next_item"]["models"]
    if "ndcg@10" in head["full"]:
        page.plot(
            _plot(details), caption="NDCG@10 against the parameters of the layers; bars: 95 %"
        )
    page.heading("Size and speed")
    headers, rows = size_rows(details)
    page.table(headers, rows, caption="Disk: files of weights, or the tensors of a view")
    if details["timing"]:
        headers, rows = timing_rows(details["timing"])
        page.table(headers, rows, caption=timing_caption(details["timing"]))
        if details["timing"]["decode"]:
            headers, rows = decode_rows(details["timing"])
            page.table(headers, rows, caption=decode_caption(details["timing"]))
    page.heading("Configuration")
    page.details("config.yaml", config.to_yaml())
    return page


def _abreast(page: Report, headers: list[str], rows: Rows, caption: str) -> None:
    """As many tables as it takes for none to be wider than the page."""
    for start in range(1, len(headers), ABREAST):
        some = slice(start, start + ABREAST)
        page.table(
            [headers[0], *headers[some]],
            [[row[0], *row[some]] for row in rows],
            caption=caption if start == 1 else "",
        )


def markdown(config: LayerSelectConfig, result: Result) -> str:
    """The tables as Markdown."""
    details = result.details
    parts = [f"# {config.name}", _summary(result)]
    if "targets" in details:
        parts += ["## Targets", table(*target_rows(details["targets"]))]
    for domain, told in details["domains"].items():
        parts += [f"## {_heading(domain, told)}", *_notes(told, details)]
        parts += [table(*metric_rows(told, details)), f"{details['subject']} − model:"]
        parts.append(table(*difference_rows(told)))
        if told["retained"]:
            parts += [table(*retained_rows(told))]
    parts += ["## Size and speed", table(*size_rows(details))]
    if details["timing"]:
        parts += [table(*timing_rows(details["timing"])), timing_caption(details["timing"])]
        if details["timing"]["decode"]:
            parts += [table(*decode_rows(details["timing"])), decode_caption(details["timing"])]
    return "\n\n".join(parts) + "\n"


def target_rows(targets: Sequence[Json]) -> tuple[list[str], Rows]:
    """What is asked, found, and whether it is met."""
    rows: Rows = []
    for line in targets:
        verdict = line["met"] + (f"\n{line['why']}" if line["why"] else "")
        found = "–" if line["value"] is None else _interval(line, "value", digits=3)
        rows.append([f"{line['name']}\n{line['asked']}", found, verdict])
    return ["target", "found", "verdict"], rows


def metric_rows(told: Json, details: Json) -> tuple[list[str], Rows]:
    """A model a row, a metric a column; draws of random layers are told by their mean."""
    names = in_order(told["models"]["full"])
    rows: Rows = []
    for model, metrics in _shown(told["models"], details["subject"]):
        rows.append([_named(model, details), *(_interval(metrics[n]) for n in names)])
    return ["model", *names], rows


def difference_rows(told: Json) -> tuple[list[str], Rows]:
    """What the subject is ahead of each model."""
    names = in_order(told["models"]["full"])
    rows: Rows = [
        [_words(model), *(_interval(metrics[n]) for n in names)]
        for model, metrics in told["differences"].items()
    ]
    return ["model", *names], rows


def retained_rows(told: Json) -> tuple[list[str], Rows]:
    """Share of the full model's value."""
    names = in_order(told["retained"])
    row: list[Value] = [
        "student / full",
        *(_interval(told["retained"][n], digits=3) for n in names),
    ]
    return ["", *names], [row]


def size_rows(details: Json) -> tuple[list[str], Rows]:
    """Parameters and bytes; the share of the full model's beside them."""
    full = details["models"]["full"]
    rows: Rows = []
    for name, model in details["models"].items():
        if name.startswith("random_") and name != "random_0":
            continue
        rows.append(
            [
                "random" if name == "random_0" else _words(name),
                model["layers"],
                _ranges(model["kept"]),
                _share(model["block_parameters"], full["block_parameters"]),
                _share(model["parameters"], full["parameters"]),
                human(model["disk_bytes"]),
            ]
        )
    if "random_0" in details["models"]:
        row = next(row for row in rows if row[0] == "random")
        row[2] = "drawn"
    return ["model", "layers", "kept", "parameters in layers", "in all", "disk"], rows


def timing_rows(timing: Json) -> tuple[list[str], Rows]:
    """Full model and student."""
    rows: Rows = []
    for name, found in timing["models"].items():
        ratio = timing["ratios"].get(name)
        peak = found.get("peak_bytes")
        rows.append(
            [
                _words(name),
                f"{found['p50_ms']:.1f} ms",
                f"{found['p95_ms']:.1f} ms",
                f"{found['sequences_per_s']:,.1f}",
                "–" if peak is None else human(peak),
                "1" if ratio is None else _interval(ratio, digits=2),
            ]
        )
    return ["model", "p50", "p95", "sequences/s", "peak memory", "times faster"], rows


def decode_rows(timing: Json) -> tuple[list[str], Rows]:
    """Full model and student, one token after the other."""
    rows: Rows = []
    for name, found in timing["decode"]["models"].items():
        ratio = timing["decode"]["ratios"].get(name)
        rows.append(
            [
                _words(name),
                f"{found['p50_ms']:.2f} ms",
                f"{found['p95_ms']:.2f} ms",
                f"{found['tokens_per_s']:,.0f}",
                "1" if ratio is None else _interval(ratio, digits=2),
            ]
        )
    return ["model", "p50 of a token", "p95", "tokens/s", "times faster"], rows


def decode_caption(timing: Json) -> str:
    """What was generated."""
    return (
        f"Generation of {timing['decode']['tokens']} tokens behind each of {timing['batch']} "
        f"sequences of {timing['length']}, with cached keys and values, prefill not counted"
    )


def timing_caption(timing: Json) -> str:
    """What was run."""
    return (
        f"Prefill of {timing['batch']} × {timing['length']} tokens, {timing['repeats']} passes of "
        f"each in turn on {timing['device']}, {timing['threads']} threads; memory to load and run "
        "one batch, without the libraries"
    )


def _summary(result: Result) -> str:
    details = result.details
    told = details["domains"]["next_item"]
    subject = details["subject"]
    text = f"**{_words(subject)}** on {told['source']}"
    if (metric := "ndcg@10") in told["models"][subject]:
        text += f": NDCG@10 {_line(told['models'][subject][metric])}"
        if metric in told["retained"]:
            text += f", {_line(told['retained'][metric], 3)} of the full model's"
        if "sasrec" in told["differences"]:
            ahead = told["differences"]["sasrec"][metric]
            verdict = "is not told apart from SASRec"
            if ahead["low"] is not None and ahead["low"] > 0:
                verdict = "beats SASRec"
            elif ahead["high"] is not None and ahead["high"] < 0:
                verdict = "is beaten by SASRec"
            text += f"; it {verdict} (difference {_line(ahead)})"
    elif "rmse" in told["models"][subject]:
        text += f": RMSE {_line(told['models'][subject]['rmse'])}"
        if (ahead := told["differences"].get("full")) is not None:
            text += f", that of the full model {_line(told['models']['full']['rmse'])}, difference "
            text += _line(ahead["rmse"])
    return text + "."


def _subtitle(details: Json) -> str:
    full, subject = details["models"]["full"], details["models"][details["subject"]]
    return f"{subject['layers']} of {full['layers']} layers" if subject is not full else ""


def _heading(domain: str, told: Json) -> str:
    return told["source"] if domain == "next_item" else f"Another domain: {told['source']}"


def _notes(told: Json, details: Json) -> list[str]:
    notes: list[str] = []
    if told["source"] in ARTEFACT:
        notes.append(
            "Events of one day stand in the order of the raw file, by item id: 43 % of Beauty's "
            "users have validation and test item on the same day. Every number of this set carries "
            "that artefact."
        )
    if details["seen"] == "exclude":
        notes.append("Items of the user's own history are left out of the ranking.")
    return notes


def _plot(details: Json) -> Any:
    told = details["domains"]["next_item"]["models"]
    fig, axes = figure(7.0, 3.8)
    sized = details["models"]
    for name, metrics in told.items():
        found = metrics["ndcg@10"]
        if name not in sized:
            if name != "random":
                axes.axhline(found["mean"], linestyle="--", linewidth=1, color="#8c8c8c")
                axes.annotate(
                    _words(name), (1, found["mean"]), xycoords=("axes fraction", "data"),
                    ha="right", va="bottom", fontsize=8,
                )  # fmt: skip
            continue
        bars = [[found["mean"] - found["low"]], [found["high"] - found["mean"]]]
        place = sized[name]["block_parameters"]
        draw = name.startswith("random_")
        axes.errorbar(
            [place], [found["mean"]], bars, marker="o", markersize=3 if draw else 5, capsize=2,
            color="#8c8c8c" if draw else None,
            label=None if draw and name != "random_0" else _words(name).removesuffix(" 0"),
        )  # fmt: skip
    axes.set_xlim(left=0)
    axes.set_xlabel("parameters of the layers")
    axes.set_ylabel("NDCG@10")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return fig


def _shown(models: Json, subject: str) -> list[tuple[str, Json]]:
    """The subject first, then the full model; draws only by their mean."""
    first = [name for name in (subject, "full") if name in models]
    rest = [n for n in models if n not in first and not n.startswith("random_")]
    return [(name, models[name]) for name in dict.fromkeys([*first, *rest])]


def _named(model: str, details: Json) -> str:
    told = details["models"].get(model if model != "random" else "random_0")
    return _words(model) + ("\nhealed" if told and told["healed"] else "")


def _words(name: str) -> str:
    return {"sasrec": "SASRec"}.get(name, name.replace("_", " "))


def in_order(found: Iterable[str]) -> list[str]:
    """Names of metrics, those that are judged first."""
    found = list(found)
    known = [name for name in ORDER if name in found]
    return [*known, *(name for name in found if name not in known)]


def _interval(found: Json, key: str = "mean", digits: int = 4) -> str:
    value = f"{found[key]:.{digits}f}"
    if found.get("low") is not None:
        value += f"\n{found['low']:.{digits}f} to {found['high']:.{digits}f}"
    return value.replace("-", "−")


def _line(found: Json, digits: int = 4) -> str:
    value, _, around = _interval(found, digits=digits).partition("\n")
    return f"{value} [{around}]" if around else value


def _share(part: int, whole: int) -> str:
    return f"{part / 1e6:,.2f} M\n{part / whole:.1%}"


def _ranges(layers: Sequence[int] | None) -> str:
    if layers is None:
        return "–"
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ", ".join(f"{r[0]}–{r[-1]}" if len(r) > 2 else ", ".join(map(str, r)) for r in runs)


def table(headers: Sequence[str], rows: Sequence[Sequence[Value]]) -> str:
    """As Markdown; a second line of a cell stands in parentheses."""
    lines = [list(headers), ["---"] * len(headers)]
    lines += [[_cell(value) for value in row] for row in rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _cell(value: Value) -> str:
    first, _, beside = show(value).partition("\n")
    return f"{first} ({beside})" if beside else first
