"""The report of a prepared dataset: rows, labels, features, bad rows."""

from pathlib import Path

from infnet.config import InfnetConfig
from infnet.data.rows import Findings
from infnet.data.shards import SPLITS
from infnet.data.split import moment
from infnet.schema import Schema
from rayrun.report import Report


def write_report(path: Path, config: InfnetConfig, schema: Schema, findings: Findings) -> None:
    """Write `report.html`."""
    report = Report(f"Data of {config.name}")
    report.heading("Rows")
    report.text(
        f"Statistics and histories are **{config.data.statistics}**. {findings.total:,} rows were "
        f"read, {findings.bad:,} of them are quarantined."
    )
    report.table(
        ["split", "rows", "first", "last"],
        [
            [name, count, *(map(moment, span) if span else ("", ""))]
            for name, count, span in zip(SPLITS, findings.rows, findings.times, strict=True)
        ],
    )
    report.heading("Labels")
    report.table(
        [
            "task",
            "type",
            "label",
            *(f"observed in {s}" for s in SPLITS),
            *(f"mean in {s}" for s in SPLITS),
        ],
        [
            [
                name,
                type(task).__name__.removesuffix("Task").lower(),
                task.source.column,
                *findings.observed[name],
                *findings.label_means(name),
            ]
            for name, task in config.tasks.items()
        ],
    )
    report.heading("Features")
    tables = [
        [f.name, "categorical", f.table, schema.tables[f.table].rows, schema.tables[f.table].dim]
        for f in schema.fields
    ]
    tables += [[d.name, d.kind, "", "", d.width] for d in schema.dense]
    tables += [
        [
            s.name,
            f"sequence of up to {s.max_length}",
            ", ".join(s.tables),
            "",
            sum(schema.tables[t].dim for t in s.tables),
        ]
        for s in schema.sequences
    ]
    report.table(["slot", "type", "table", "ids", "width"], tables)
    if findings.reasons:
        report.heading("Bad rows")
        ranked = sorted(findings.reasons.items(), key=lambda item: (-item[1], item[0]))
        report.table(["reason", "rows"], [list(item) for item in ranked])
    report.write(path)
