from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest

from infnet.data import passes, scan
from infnet.data.passes import History, Pass, Statistic
from infnet.features.base import HistoryDemand, StatisticDemand, Where
from tests.infnet.data import brute_force


def log(seed, rows=120, keys=4, times=15):
    """Random rows with many ties; sorted by (key, time, row id)."""
    random = np.random.default_rng(seed)
    label = random.integers(0, 2, rows).astype(float)
    table = pa.table(
        {
            "__key": random.integers(0, keys, rows),
            "__time": random.integers(0, times, rows),
            "__row_id": random.permutation(rows).astype(np.int64),
            "__split": random.choice([0, 0, 0, 1, 2], rows).astype(np.int8),
            "item": random.integers(0, 50, rows),
            "click": label,
            "__label.click": pa.array(label, mask=random.random(rows) < 0.2),
            "amount": pa.array(random.integers(-30, 90, rows) / 4),
        }
    )
    return table.sort_by(
        [("__key", "ascending"), ("__time", "ascending"), ("__row_id", "ascending")]
    )


def plan(rolling, max_length=5):
    return Pass(
        key=("user",),
        rolling=rolling,
        statistics=tuple(
            Statistic(f"{fold}.{value}", StatisticDemand(key=("user",), value=value, fold=fold), 20)
            for fold in ("earlier", "leave_one_out")
            for value in ("task:click", "amount")
        ),
        histories=(
            History(
                "clicks",
                HistoryDemand(
                    where=Where(column="click", value=1), columns=("item",), max_length=max_length
                ),
            ),
            History("all", HistoryDemand(where=None, columns=("item", "click"), max_length=3)),
        ),
    )


def run(plan, rows, cuts):
    edges = [0, *sorted(cuts), rows.num_rows]
    blocks = [rows.slice(a, b - a) for a, b in pairwise(edges) if b > a]
    summaries = [scan.summarise(plan, block) for block in blocks]
    carries, finished = passes.fold(plan, [summary for summary, _ in summaries])
    pieces = [
        piece
        for block, carry in zip(blocks, carries, strict=True)
        for piece in scan.emit(plan, block, carry, cells=8)
    ]
    inner = [lookup for _, lookup in summaries]
    schema = inner[0].schema
    lookups = []
    for done, table in zip(finished, [*inner, schema.empty_table()], strict=True):
        lookups += [scan.boundary_rows(plan, done, schema), table]
    return pa.concat_tables(pieces).combine_chunks(), pa.concat_tables(lookups).combine_chunks()


@pytest.mark.parametrize("rolling", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_any_cut_gives_what_plain_loops_give(seed, rolling):
    random = np.random.default_rng(100 + seed)
    rows = log(seed)
    cuts = random.choice(rows.num_rows, size=int(random.choice([0, 1, 5, 40, 119])), replace=False)
    found, _ = run(plan(rolling), rows, cuts.tolist())
    plain = rows.to_pylist()
    for fold in ("earlier", "leave_one_out"):
        for value, column in (("task:click", "__label.click"), ("amount", "amount")):
            expected = brute_force.statistics(plain, "__key", column, fold, rolling=rolling)
            name = f"__statistic.{fold}.{value}"
            got = list(
                zip(
                    found[f"{name}.count"].to_pylist(),
                    found[f"{name}.sum"].to_pylist(),
                    strict=True,
                )
            )
            assert got == expected
    for name, is_event, columns, limit in (
        ("clicks", lambda r: r["click"] == 1, ("item",), 5),
        ("all", lambda r: True, ("item", "click"), 3),
    ):
        expected = brute_force.histories(plain, "__key", is_event, columns, limit, rolling=rolling)
        got = [
            [tuple(e.values()) for e in events] for events in found[f"__history.{name}"].to_pylist()
        ]
        assert got == expected


def test_the_look_ups_hold_what_training_left_per_key_however_the_rows_are_cut():
    rows = log(7)
    plain = [r for r in rows.to_pylist() if r["__split"] == 0]
    for cuts in ([], [1], [30, 31, 32, 33, 60], list(range(1, 120))):
        _, lookup = run(plan(False), rows, cuts)
        assert lookup["key"].to_pylist() == sorted(set(rows["__key"].to_pylist()))
        for line in lookup.to_pylist():
            mine = [r for r in plain if r["__key"] == line["key"]]
            assert line["earlier.amount.count"] == len(mine)
            assert line["earlier.amount.sum"] == sum(r["amount"] for r in mine)
            items = [e["item"] for e in line["clicks.events"]]
            assert items == [r["item"] for r in mine if r["click"] == 1][-5:]


def test_fractions_sum_to_the_same_bits_however_the_rows_are_cut():
    rows = log(3)
    amounts = np.random.default_rng(0).random(rows.num_rows) / 3
    rows = rows.set_column(rows.column_names.index("amount"), "amount", pa.array(amounts))
    whole, _ = run(plan(False), rows, [])
    cut, _ = run(plan(False), rows, list(range(1, 120, 3)))
    assert whole.equals(cut)


def test_ties_across_a_block_boundary_see_nothing_of_each_other():
    rows = pa.table(
        {
            "__key": [1, 1, 1, 1],
            "__time": [5, 5, 5, 6],
            "__row_id": [0, 1, 2, 3],
            "__split": np.zeros(4, np.int8),
            "item": [10, 11, 12, 13],
            "click": [1.0, 1, 1, 1],
            "__label.click": [1.0, 1, 1, 1],
            "amount": [1.0, 1, 1, 1],
        }
    )
    found, _ = run(plan(False), rows, [1, 2])
    assert found["__statistic.earlier.amount.count"].to_pylist() == [0, 0, 0, 3]
    assert [len(h) for h in found["__history.clicks"].to_pylist()] == [0, 0, 0, 3]


@pytest.mark.parametrize("largest", [1.0, 0.37, 1e9, 1e-9])
def test_the_scale_leaves_room_for_the_sum_and_keeps_53_bits_of_a_label(largest):
    rows = 10**8
    scale = passes.scale_of(largest, rows)
    assert largest * rows * 2.0**scale < 2**62
    assert largest * rows * 2.0**scale >= 2**60
