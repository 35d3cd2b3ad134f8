"""`report.html` of a compaction: what stayed, what it weighs, and what the repairs did."""

from layer_select.config import LayerSelectConfig
from rayrun.config import Json
from rayrun.metrics import Result
from rayrun.report import Report, Value

_SIZES = {
    "layers": "layers",
    "block_parameters": "parameters in layers",
    "parameters": "parameters in all",
    "bytes": "bytes of weights",
}


def report(config: LayerSelectConfig, result: Result, measured: Json, model: str) -> Report:
    """The page.

    Args:
        config: of the run.
        result: its sizes, repairs and notes.
        measured: loss and metrics by part and model; empty without repair.
        model: where the full model is.
    """
    details = result.details
    sizes = details["sizes"]
    page = Report(f"{config.name}, compacted", subtitle=f"from {model}")
    kept = ", ".join(map(str, details["kept"]))
    page.text(f"**{sizes['layers'][1]} of {sizes['layers'][0]} layers** stay: {kept}.")
    page.heading("Size")
    page.table(
        ["", "before", "after", "change"],
        [_size_row(label, *sizes[name]) for name, label in _SIZES.items()],
        caption="Bytes before are those of the same type of numbers, so the change is the layers'",
    )
    if measured:
        page.heading("What the task loses")
        for part in ("calibration", "test"):
            if part in measured:
                _measured(page, part, measured[part])
    if details["repairs"]:
        page.heading("Repaired gaps")
        rows: list[list[Value]] = [
            [
                repair["after"],
                ", ".join(map(str, repair["gap"])),
                repair["loss_before"],
                repair["loss_after"],
                "yes" if repair["used"] else "no, it would raise the loss",
            ]
            for repair in details["repairs"]
        ]
        page.table(
            ["after layer", "gap", "loss before", "loss after", "used"],
            rows,
            caption="Calibration loss without and with the map of each gap, front to back; layers "
            "are numbered as in the full model",
        )
    if details["notes"]:
        page.heading("Notes")
        page.text("\n".join(f"- {note}" for note in details["notes"]))
    page.heading("Configuration")
    page.details("config.yaml", config.to_yaml())
    return page


def _size_row(label: str, before: int, after: int) -> list[Value]:
    return [label, before, after, f"{after / before - 1:+.1%}".replace("-", "−")]


def _measured(page: Report, part: str, found: Json) -> None:
    names = list(found["full"])
    rows: list[list[Value]] = [
        [model, *(values[name] for name in names)] for model, values in found.items()
    ]
    page.table(["model", *names], rows, caption=f"Means over the {part} samples; nothing is healed")
