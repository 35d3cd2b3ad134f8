"""Ranking metrics: AUC, the three gAUCs, nDCG@k. Ties count exactly (½ a pair; the mean over tied
orders).

Shapes: N rows, U users.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Float64, Int64, Shaped
from numpy import ndarray

from infnet.evaluate.ordering import Concordance, ascending, run_starts, sums_of_runs


@dataclass(frozen=True)
class UserOrder:
    """Rows sorted by user and, inside each user, by ascending score: what every per-user metric
    reads.
    """

    rows: Int64[ndarray, " N"]
    """Row numbers in that order."""
    users: Int64[ndarray, " U"]
    """First position of each user."""
    ties: Int64[ndarray, " G"]
    """First position of each run of rows with the same user and score."""


def order_by_user(
    order: Int64[ndarray, " N"], score: Shaped[ndarray, " N"], user: Int64[ndarray, " N"]
) -> UserOrder:
    """Regroup rows already in ascending order of score; `user` holds codes below 2³¹."""
    if not order.size:
        return UserOrder(order, order, order)
    keys = user[order].astype(np.uint64)
    keys <<= np.uint64(32)
    keys |= np.arange(keys.size, dtype=np.uint32)
    keys.sort()
    code = keys >> np.uint64(32)
    keys &= np.uint64(0xFFFFFFFF)
    rows = order[keys.view(np.int64)]
    sorted_score = score[rows]
    other_user = code[1:] != code[:-1]
    return UserOrder(
        rows=rows,
        users=run_starts(other_user),
        ties=run_starts(other_user | (sorted_score[1:] != sorted_score[:-1])),
    )


def user_aucs(
    order: UserOrder, positive: Float64[ndarray, " N"], negative: Float64[ndarray, " N"]
) -> tuple[Float64[ndarray, " U"], Float64[ndarray, " U"], Float64[ndarray, " U"]]:
    """AUC of each user, and its sums of positive and negative mass; AUC is NaN for a user with one
    label only.

    `positive` and `negative` are w·y and w·(1 − y) in the sequence of `order.rows`.
    """
    a, b = sums_of_runs(positive, order.ties), sums_of_runs(negative, order.ties)
    first_run = np.searchsorted(order.ties, order.users)
    running = np.cumsum(b)
    before = np.where(first_run > 0, running[first_run - 1], 0.0)
    running -= 0.5 * b
    pairs = np.add.reduceat(a * running, first_run)
    positives = np.add.reduceat(a, first_run)
    negatives = np.add.reduceat(b, first_run)
    pairs -= positives * before
    total = positives * negatives
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(total > 0, pairs / total, np.nan), positives, negatives


def user_ndcg(order: UserOrder, gain: Float64[ndarray, " N"], k: int) -> Float64[ndarray, " U"]:
    """nDCG@k of each user over all of the user's rows; 0 for a user whose gains are all 0.

    DCG@k = Σ_{r=1..k} gain_r / log2(r + 1) by descending score, divided by its largest possible
    value. Where scores tie, the mean over all orders of the tied rows, as scikit-learn does
    (McSherry and Najork, 2008). `gain` is the label in the sequence of `order.rows`; row weights do
    not enter.
    """
    num_rows = gain.size
    if not num_rows:
        return np.zeros(0)
    ends = np.append(order.users[1:], num_rows)
    discount = np.zeros(k + 1)
    discount[1:] = np.cumsum(1.0 / np.log2(np.arange(k) + 2.0))
    # the runs of ties that reach into a user's last k positions, the best scores
    last_run = np.append(np.searchsorted(order.ties, order.users)[1:], order.ties.size)
    reached = np.maximum(ends - k, order.users)
    first_run = np.searchsorted(order.ties, reached, side="right") - 1
    counts = last_run - first_run
    user = np.repeat(np.arange(order.users.size), counts)
    runs = np.arange(user.size) + np.repeat(last_run - np.cumsum(counts), counts)
    starts = order.ties[runs]
    stops = np.append(order.ties, num_rows)[runs + 1]
    edges = np.column_stack([starts, stops]).ravel()[:-1]
    of_run = np.add.reduceat(gain, edges)[::2]
    first_rank, last_rank = ends[user] - stops, ends[user] - starts
    share = (discount[np.minimum(last_rank, k)] - discount[first_rank]) / (stops - starts)
    dcg = np.bincount(user, of_run * share, minlength=order.users.size)
    ideal = _ideal_dcg(order, gain, ends, discount)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(ideal > 0, dcg / ideal, 0.0)


def _ideal_dcg(
    order: UserOrder, gain: ndarray, ends: ndarray, discount: ndarray
) -> Float64[ndarray, " U"]:
    k = discount.size - 1
    if ((gain == 0) | (gain == 1)).all():
        positives = np.add.reduceat(gain, order.users)
        return discount[np.minimum(positives, k).astype(np.int64)]
    code = np.repeat(np.arange(order.users.size), ends - order.users)
    best = gain[np.lexsort((-gain, code))]
    rank = np.arange(gain.size) - order.users[code]
    top = rank < k
    step = np.diff(discount)
    return np.bincount(code[top], best[top] * step[rank[top]], minlength=order.users.size)


# ---------------------------------------------------------------------------------------------
# The same on plain arrays


def auc(
    label: Shaped[ndarray, " N"],
    prediction: Float[ndarray, " N"],
    weight: Float[ndarray, " N"] | None = None,
) -> float:
    """Area under the ROC curve: the share of (positive, negative) pairs in the right order, ties ½.

    Pairs weigh w_i · w_j. A label between 0 and 1 is that share of a positive and the rest of a
    negative.

    Raises:
        ValueError: one of the two labels is missing.
    """
    positive, negative = masses(label, weight)
    order = ascending(prediction)
    score = prediction[order]
    starts = run_starts(score[1:] != score[:-1])
    unit = np.zeros(score.size, np.int32)
    value = Concordance(starts, positive[order], negative[order], unit).point()
    if np.isnan(value):
        raise ValueError(
            "auc needs rows of both labels with a weight above 0, found "
            f"{int((positive > 0).sum())} positive and {int((negative > 0).sum())} negative rows"
        )
    return value


def gauc(
    user: Shaped[ndarray, " N"],
    label: Shaped[ndarray, " N"],
    prediction: Float[ndarray, " N"],
    weight: Float[ndarray, " N"] | None = None,
    *,
    by: Literal["impressions", "users", "positives"] = "impressions",
) -> float:
    """Mean of the users' AUC, over users who have both labels.

    `by` says what a user weighs: `impressions` the weight of its rows (FuxiCTR's gAUC), `users` 1
    (UAUC), `positives` the weight of its positive rows (TechJam).

    Raises:
        ValueError: no user has both labels.
    """
    positive, negative = masses(label, weight)
    _, code = np.unique(user, return_inverse=True)
    order = order_by_user(ascending(prediction), prediction, code)
    value, positives, negatives = user_aucs(order, positive[order.rows], negative[order.rows])
    both = ~np.isnan(value)
    if not both.any():
        raise ValueError(
            f"gauc needs a user with both labels, found none among {order.users.size} users"
        )
    share = {"impressions": positives + negatives, "users": np.ones_like(value)}
    return float(np.average(value[both], weights=share.get(by, positives)[both]))


def ndcg(
    user: Shaped[ndarray, " N"],
    label: Shaped[ndarray, " N"],
    prediction: Float[ndarray, " N"],
    *,
    k: int = 5,
) -> float:
    """Mean nDCG@k over all users; a user without a positive counts 0. See `user_ndcg`."""
    _, code = np.unique(user, return_inverse=True)
    order = order_by_user(ascending(prediction), prediction, code)
    return float(user_ndcg(order, label[order.rows].astype(np.float64), k).mean())


def masses(
    label: Shaped[ndarray, " N"], weight: Float[ndarray, " N"] | None
) -> tuple[Float64[ndarray, " N"], Float64[ndarray, " N"]]:
    """w·y and w·(1 − y) in float64."""
    positive = label.astype(np.float64)
    negative = 1.0 - positive
    if weight is not None:
        positive *= weight
        negative *= weight
    return positive, negative
