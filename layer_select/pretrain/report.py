"""`report.html` of a pretraining: the decoder beside popularity, and the losses on the way."""

from typing import cast

from layer_select.config import LayerSelectConfig
from layer_select.pretrain.student import LOSSES
from rayrun.config import Json
from rayrun.metrics import Result
from rayrun.report import Report, Value


def report(config: LayerSelectConfig, result: Result) -> Report:
    """The page."""
    from matplotlib.figure import Figure

    details = result.details
    page = Report(f"Pretraining of {config.name}", subtitle=f"configuration {config.digest()}")
    page.text(
        f"A decoder of {details['parameters']:,} parameters, trained for {details['steps']:,} "
        f"steps ({details['tokens']:,} tokens, {details['train_s']:.0f} s). Next item over the "
        f"full catalogue on {result.rows:,} {result.split} targets, which training never saw; "
        "ties count against whoever is ranked. Intervals: 95 %, user bootstrap, paired."
    )
    page.heading("Against popularity")
    own = result.metrics["next_item"]
    popular = result.baselines["popularity"]["next_item"]
    found = cast("dict[str, Json]", details["difference_to_popularity"])
    rows: list[list[Value]] = [
        [
            name,
            value,
            popular[name],
            f"{found[name]['value']:+.4f}\n[{found[name]['low']:+.4f}, {found[name]['high']:+.4f}]",
        ]
        for name, value in own.items()
    ]
    page.table(["metric", "decoder", "popularity", "difference"], rows)
    page.heading("Losses")
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    for place, (name, axes) in enumerate(zip(LOSSES, figure.subplots(1, 3), strict=True), start=1):
        axes.plot([row[0] for row in details["losses"]], [row[place] for row in details["losses"]])
        axes.set(xlabel="optimizer steps", ylabel=name.replace("_", " "))
    page.plot(figure, caption="Mean cross-entropy of each kind of target")
    page.heading("Configuration")
    page.details("config.yaml", config.to_yaml())
    return page
