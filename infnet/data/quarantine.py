"""The error of a log with too many bad rows: the top reasons, and where some of the rows stand."""

from collections.abc import Iterator

import pyarrow as pa

from infnet.data import rows
from infnet.data.passes import ROW_ID
from infnet.data.rows import Findings, RowReader
from infnet.features.columns import pc


def too_many(reader: RowReader, findings: Findings, limit: float, found: Iterator[pa.Table]) -> str:
    """What to tell; `found` are the quarantined rows, table by table, of which a few are read."""
    ranked = sorted(findings.reasons.items(), key=lambda item: (-item[1], item[0]))
    wanted = {reason: list[str]() for reason, _ in ranked[:3]}
    for _, table in zip(range(8), found, strict=False):
        for reason, shown in wanted.items():
            these = table.filter(pc.equal(table[rows.BAD], reason)).slice(0, 2 - len(shown))
            for line in these.to_pylist():
                row_id = line.pop(ROW_ID)
                line.pop(rows.BAD)
                values = ", ".join(f"{k}={v!r}" for k, v in list(line.items())[:8])
                shown.append(f"      {reader.place(row_id)}: {values}")
        if all(len(shown) == 2 for shown in wanted.values()):
            break
    lines = [
        f"{findings.bad:,} of {findings.total:,} rows ({findings.bad / findings.total:.1%}) are "
        f"bad, more than data.max_bad_share ({limit:.1%}):"
    ]
    for reason, count in ranked[:3]:
        lines += [f"  {count:,} rows: {reason}", *wanted[reason]]
    if len(ranked) > 3:
        lines.append(f"  and {len(ranked) - 3} more reasons")
    lines.append("correct the log or its description, or raise data.max_bad_share")
    return "\n".join(lines)
