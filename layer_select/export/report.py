"""`report.html` of an export: what is in the bundle, and how well its forms agree."""

from collections.abc import Sequence

from layer_select.config import LayerSelectConfig
from layer_select.evaluate.report import in_order
from rayrun.config import Json
from rayrun.metrics import Result
from rayrun.object_store import human
from rayrun.report import Report, Value

WHO = {
    "bundle": "bundle: model and item vectors as stored",
    "source": "source: the model that was exported",
    "gguf": "GGUF file with the stored item vectors",
}


def report(
    config: LayerSelectConfig, result: Result, history: Sequence[str], answer: Sequence[Json]
) -> Report:
    """The page.

    Args:
        config: the whole run.
        result: of the export.
        history: titles of the sample's history, oldest first.
        answer: what the bundle recommends after it.
    """
    details = result.details
    page = Report(f"Bundle of {config.name}", subtitle=str(details["digest"]))
    page.text(
        f"A recommender of {details['layers']} layers and {details['parameters']:,} parameters "
        f"for {details['vectors']['items']:,} items. Every form was read back from the bundle, and "
        f"ranked the full catalogue for {result.rows:,} {result.split} samples."
    )
    page.heading("Do the forms agree?")
    names = ("identical", "overlap@10", "largest_difference")
    page.table(
        ["form", "keeps every number", *(name.replace("_", " ") for name in names)],
        [
            [form, found["lossless"], *(found[name] for name in names)]
            for form, found in details["compared"].items()
        ],
        caption="Share of samples with the same ten best items in the same order and the same rank "
        "of the target; mean share of the ten best in common; largest difference of two scores in "
        "the same place, relative above 1. The folder is compared with the source, the vectors as "
        "stored with float32, the GGUF file with the folder.",
    )
    page.heading("Quality")
    own = result.metrics["next_item"]
    names = in_order(own)
    of_all = {"bundle": own, **{who: of["next_item"] for who, of in result.baselines.items()}}
    rows: list[list[Value]] = [
        [WHO.get(who, who), *(of[name] for name in names)] for who, of in of_all.items()
    ]
    page.table(
        ["", *names],
        rows,
        caption="Next item over the full catalogue, ties against the model",
    )
    page.heading("Size")
    sizes = sorted(details["bytes"].items(), key=lambda part: -part[1])
    page.table(["part", "size"], [[name, human(size)] for name, size in sizes])
    page.heading("Sample")
    page.text(
        "A history of the log and what the bundle recommends after it. Whoever opens the bundle "
        "answers this first."
    )
    page.table(["history"], [[title] for title in history])
    page.table(
        ["item", "title", "score"], [[a["item"], a["title"], float(a["score"])] for a in answer]
    )
    page.heading("Configuration")
    page.details("config.yaml", config.to_yaml())
    return page
