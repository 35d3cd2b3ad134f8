"""Speed of the metrics at 1.4 million rows and 27 thousand users, against two other ways.

    python bench/metrics_speed.py [--rows N] [--users U] [--repeats R] [--sample S]

Three implementations compute the same numbers for one binary task: AUC, the three gAUCs, nDCG@5,
LogLoss, NE, ECE (ties exact everywhere). *ours* is `infnet.evaluate`; *loop* calls scikit-learn for
every user; *polars* ranks once with Polars expressions. Repeats are interleaved in one process, so
all see the same machine; the medians are compared. The loop is measured on a sample of the users
and scaled by their number where the full loop would take over five minutes; it says so.
"""

import argparse
import itertools
import statistics
import time
from collections.abc import Callable

import numpy as np
import polars as pl
from sklearn.metrics import log_loss, ndcg_score, roc_auc_score

from infnet.evaluate.calibration import ECE_BINS
from infnet.evaluate.metrics import compute
from infnet.evaluate.predictions import Predictions
from infnet.tasks import BinaryTask

METRICS = (
    "auc",
    "gauc_impressions",
    "gauc_users",
    "gauc_positives",
    "logloss",
    "ne",
    "ece",
    "ndcg@5",
)
LONGEST_LOOP_S = 300.0

Log = tuple[np.ndarray, np.ndarray, np.ndarray]


def simulate(rows: int, users: int, seed: int = 0) -> Log:
    """User hashes (activity lognormal), predictions (float32, some tied), labels."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, 2**62, users)
    activity = rng.lognormal(0, 1, users)
    user = ids[rng.choice(users, rows, p=activity / activity.sum())]
    prediction = rng.beta(2, 3, rows).astype(np.float32)
    label = (rng.random(rows) < prediction).astype(np.float32)
    tied = rng.random(rows) < 0.1
    prediction[tied] = np.round(prediction[tied] * 20) / 20
    return user, prediction, label


def ours(log: Log) -> dict[str, float]:
    """`infnet.evaluate`, from plain arrays to the table."""
    user, prediction, label = log
    rows = Predictions(["click"])
    rows.update(
        np.arange(user.size),
        user,
        np.ones(user.size, np.float32),
        prediction[:, None],
        label[:, None],
        np.ones((user.size, 1), bool),
    )
    found = compute(rows, {"click": BinaryTask(label="click")})
    return {name: float(found.values["click"][name] or 0) for name in METRICS}


def whole(log: Log) -> dict[str, float]:
    """What needs no users, by scikit-learn and NumPy."""
    _, p, y = log
    clipped = np.clip(p.astype(np.float64), 2.0**-23, 1 - 2.0**-23)
    loss, rate = log_loss(y, clipped), float(y.mean(dtype=np.float64))
    bins = np.minimum((p.astype(np.float64) * ECE_BINS).astype(int), ECE_BINS - 1)
    gaps = [abs((y[bins == b].astype(np.float64) - p[bins == b]).sum()) for b in range(ECE_BINS)]
    return {
        "auc": float(roc_auc_score(y, p)),
        "logloss": float(loss),
        "ne": float(loss / -(rate * np.log(rate) + (1 - rate) * np.log(1 - rate))),
        "ece": float(sum(gaps) / y.size),
    }


def loop(log: Log, sample: int) -> tuple[dict[str, float], float]:
    """A scikit-learn call per user; the metrics over the first `sample` users, and seconds for all
    of them.
    """
    started = time.perf_counter()
    result = whole(log)
    user, prediction, label = log
    order = np.argsort(user, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(user[order]) != 0, True])
    once = time.perf_counter() - started
    started = time.perf_counter()
    kept: list[tuple[float, int, float]] = []
    gains: list[float] = []
    for first, last in itertools.pairwise(starts[: sample + 1]):
        rows = order[first:last]
        y, p = label[rows], prediction[rows]
        if 0 < y.sum() < y.size:
            kept.append((float(roc_auc_score(y, p)), y.size, float(y.sum())))
        gain = float(ndcg_score([y], [p], k=5)) if y.size > 1 else float(y[0])
        gains.append(gain)
    per_user = time.perf_counter() - started
    auc, size, positives = (np.array(column) for column in zip(*kept, strict=True))
    result["gauc_impressions"] = float(np.average(auc, weights=size))
    result["gauc_users"] = float(auc.mean())
    result["gauc_positives"] = float(np.average(auc, weights=positives))
    result["ndcg@5"] = float(np.mean(gains))
    num_users = starts.size - 1
    return result, once + per_user * num_users / min(sample, num_users)


def polars(log: Log) -> dict[str, float]:
    """Polars: each user's ranks once (mid-ranks of ties), then sums by user, collected together.

    The fastest of four ways that were tried; sorting by (user, score) or grouping the ties first
    took 1.5 to 2 times as long.
    """
    user, prediction, label = log
    table = pl.Series(np.concatenate([[0.0], np.cumsum(1 / np.log2(np.arange(5) + 2.0))]))
    y, pos, neg, first = pl.col("y"), pl.col("pos"), pl.col("neg"), pl.col("top") - 1
    p = pl.col("p").cast(pl.Float64)
    clipped = p.clip(2.0**-23, 1 - 2.0**-23)
    rows = (
        pl.DataFrame({"user": user, "p": prediction, "y": label})
        .lazy()
        .with_columns(
            y.cast(pl.Float64),
            pl.col("p").rank().over("user").alias("mid"),
            pl.col("p").rank("min", descending=True).over("user").alias("top"),
        )
    )
    pairs = (pl.col("p").rank() * y).sum() - y.sum() * (y.sum() + 1) / 2
    whole = rows.select(
        (pairs / (y.sum() * (pl.len() - y.sum()))).alias("auc"),
        -pl.when(y == 1).then(clipped).otherwise(1 - clipped).log().mean().alias("loss"),
        y.mean().alias("rate"),
    )
    gaps = rows.group_by((p * ECE_BINS).cast(pl.Int64).clip(0, ECE_BINS - 1).alias("bin")).agg(
        (p - y).sum().abs().alias("gap")
    )
    sums = rows.group_by("user").agg(
        (pl.col("mid") * y).sum().alias("ranks"),
        y.sum().alias("pos"),
        (pl.len() - y.sum()).alias("neg"),
    )
    share = _at(table, (first + pl.col("n")).clip(0, 5)) - _at(table, first)
    gains = (
        rows.filter(pl.col("top") <= 5)
        .group_by("user", "top")
        .agg(pl.len().alias("n"), y.sum().alias("pos"))
        .select("user", (pos / pl.col("n") * share).alias("gain"))
        .group_by("user")
        .agg(pl.col("gain").sum())
    )
    one, gap, users, gain = pl.collect_all([whole, gaps, sums, gains])
    auc = (pl.col("ranks") - pos * (pos + 1) / 2) / (pos * neg)
    users = users.join(gain, on="user").with_columns(auc.alias("auc"))
    size = pos + neg
    impressions, plain, positives = (
        users.filter((pos > 0) & (neg > 0))
        .select(
            ((pl.col("auc") * size).sum() / size.sum()).alias("impressions"),
            pl.col("auc").mean().alias("users"),
            ((pl.col("auc") * pos).sum() / pos.sum()).alias("positives"),
        )
        .row(0)
    )
    ndcg = users.select((pl.col("gain") / _at(table, pos.clip(0, 5))).fill_nan(0.0).mean()).item()
    value, loss, rate = one.row(0)
    return {
        "auc": value,
        "gauc_impressions": impressions,
        "gauc_users": plain,
        "gauc_positives": positives,
        "logloss": loss,
        "ne": loss / -(rate * np.log(rate) + (1 - rate) * np.log(1 - rate)),
        "ece": gap["gap"].sum() / user.size,
        "ndcg@5": ndcg,
    }


def _at(table: pl.Series, index: pl.Expr) -> pl.Expr:
    return pl.lit(table).gather(index.cast(pl.UInt32))


def timed(function: Callable[[Log], dict[str, float]], log: Log) -> tuple[dict[str, float], float]:
    """Result and seconds."""
    started = time.perf_counter()
    result = function(log)
    return result, time.perf_counter() - started


def main() -> None:
    """Print the numbers, that they agree, and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_400_000)
    parser.add_argument("--users", type=int, default=27_000)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--sample", type=int, default=0, help="users of the loop")
    args = parser.parse_args()
    log = simulate(args.rows, args.users)
    times: dict[str, list[float]] = {"ours": [], "polars": []}
    timed(ours, log), timed(polars, log)
    results: dict[str, dict[str, float]] = {}
    for _ in range(args.repeats):
        for name, function in (("ours", ours), ("polars", polars)):
            results[name], seconds = timed(function, log)
            times[name].append(seconds)
    _, guess = loop(log, 500)
    sample = args.sample or (args.users if guess < LONGEST_LOOP_S else 2000)
    results["loop"], loop_s = loop(log, sample)
    median = {name: statistics.median(found) for name, found in times.items()}
    print(
        f"{args.rows:,} rows, {args.users:,} users; medians of {args.repeats} interleaved repeats"
    )
    for metric in METRICS:
        values = {name: found[metric] for name, found in results.items()}
        print(f"  {metric:17}" + "".join(f"  {n} {v:.12f}" for n, v in values.items()))
        compared = ["ours", "polars"] + (["loop"] if sample >= args.users else [])
        spread = max(values[n] for n in compared) - min(values[n] for n in compared)
        assert spread < 1e-9, f"{metric} differs by {spread}"
    scaled = "" if sample >= args.users else f", scaled from {sample:,} of the users"
    print(f"ours    {median['ours']:8.3f} s")
    print(f"polars  {median['polars']:8.3f} s   {median['polars'] / median['ours']:6.1f} × ours")
    print(f"loop    {loop_s:8.3f} s   {loop_s / median['ours']:6.1f} × ours{scaled}")


if __name__ == "__main__":
    main()
