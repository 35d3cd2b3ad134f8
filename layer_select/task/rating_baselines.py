"""What ratings must be compared with: means over the training events, and no model.

    global   ŷ = mean of all ratings μ
    item     ŷ_i = (Σ_{n of i} r_n + k μ) / (n_i + k)         k: PRIOR, for items rated seldom
    user     ŷ_u, likewise over the events of the user
    item_user  ŷ = ŷ_i + ŷ_u − μ

Training events are all but the last two of a user (leave-one-out), those a decoder may learn from.

Shapes: N samples.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from layer_select.task.samples import Sample
from rayrun.config import ConfigError
from rayrun.data.sequences import Sequences

PRIOR = 5.0
"""Ratings of mean μ that every item and user is given beforehand."""

Floats = np.ndarray[Any, np.dtype[np.float64]]


def rating_baselines(
    sequences: Sequences, samples: Sequence[Sample]
) -> dict[str, dict[str, Floats]]:
    """Baseline → metric → the value of each sample, named as `RatingObjective.metrics` names them.

    Args:
        sequences: with ratings; only their training events are looked at.
        samples: of a rating task.

    Raises:
        ConfigError: the source has no ratings, or no training event.
    """
    if sequences.ratings is None:
        raise ConfigError(
            f"baselines of ratings need ratings, and {sequences.name} has none; name the column, "
            "data.source.columns.rating"
        )
    items = np.concatenate(sequences.training())
    ratings = np.concatenate([given[:-2] for given in sequences.ratings]).astype(np.float64)
    users = np.repeat(np.arange(len(sequences.users)), [len(g) - 2 for g in sequences.ratings])
    if not len(ratings):
        raise ConfigError(
            f"{sequences.name} has no training event to take a mean of; take more users"
        )
    mean = float(ratings.mean())
    of_item = _means(items, ratings, len(sequences.titles), mean)
    of_user = _means(users, ratings, len(sequences.users), mean)
    item, user = (np.array([getattr(s, n) for s in samples], np.int64) for n in ("item", "user"))
    stars = np.array([s.label for s in samples], np.float64)
    guesses = {
        "global_mean": np.full(len(samples), mean),
        "item_mean": of_item[item],
        "user_mean": of_user[user],
        "item_user_mean": np.clip(of_item[item] + of_user[user] - mean, 1, 5),
    }
    return {name: _metrics(guess, stars) for name, guess in guesses.items()}


def _means(keys: Any, ratings: Floats, count: int, mean: float) -> Floats:
    sums = np.bincount(keys, ratings, minlength=count)
    return (sums + PRIOR * mean) / (np.bincount(keys, minlength=count) + PRIOR)


def _metrics(guess: Floats, stars: Floats) -> dict[str, Floats]:
    error = stars - guess
    return {
        "squared_error": error**2,
        "absolute_error": np.abs(error),
        "accuracy": (np.abs(error) < 0.5).astype(np.float64),
    }
