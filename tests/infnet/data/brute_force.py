"""The causal columns by plain loops: the reference of the sorted passes."""

from collections import defaultdict


def statistics(rows, key, value, fold, *, rolling=False):
    """[(count, sum)] per row; `rows` are dictionaries with __time, __split (0 train)."""
    groups = defaultdict(list)
    for other in rows:
        groups[other[key]].append(other)
    found = []
    for row in rows:
        seen = [
            o for o in groups[row[key]] if o[value] is not None and visible(row, o, fold, rolling)
        ]
        found.append((len(seen), sum(o[value] for o in seen)))
    return found


def visible(row, other, fold, rolling):
    earlier = other["__time"] < row["__time"]
    if row["__split"] != 0 and rolling:
        return earlier
    if other["__split"] != 0:
        return False
    if fold == "leave_one_out":
        return other is not row
    return earlier


def histories(rows, key, is_event, columns, limit, *, rolling=False):
    """[[event tuples with the time last]] per row, oldest first, ties by row id."""
    groups = defaultdict(list)
    for other in sorted(rows, key=lambda r: (r["__time"], r["__row_id"])):
        if is_event(other):
            groups[other[key]].append(other)
    return [
        [
            (*(o[c] for c in columns), o["__time"])
            for o in groups[row[key]]
            if visible(row, o, "earlier", rolling)
        ][-limit:]
        for row in rows
    ]
