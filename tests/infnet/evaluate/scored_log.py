"""Scored rows with everything that makes metrics go wrong: ties, one-label users, missing labels."""

import numpy as np

from infnet.evaluate.predictions import Predictions, Rows
from infnet.tasks import BinaryTask, RegressionTask

TASKS = {
    "click": BinaryTask(label="click"),
    "like": BinaryTask(label="like"),
    "spend": RegressionTask(label="spend"),
}


def scored(rows=600, users=40, seed=0, weighted=True):
    rng = np.random.default_rng(seed)
    user = rng.integers(0, 2**62, users)[(users * rng.random(rows) ** 2).astype(int)]
    prediction = rng.beta(2, 2, (rows, 3)).astype(np.float32)
    prediction = np.where(rng.random((rows, 3)) < 0.5, np.round(prediction * 8) / 8, prediction)
    label = (rng.random((rows, 3)) < prediction).astype(np.float32)
    label[user == user[0]] = 1
    label[user == np.unique(user)[0]] = 0
    label[:, 2] *= np.round(rng.lognormal(1, 1, rows), 1)
    prediction[:, 2] *= 5
    weight = rng.choice([0.0, 0.5, 1.0, 2.0], rows) if weighted else np.ones(rows)
    return Rows(
        row_id=np.arange(rows),
        user=user,
        weight=weight.astype(np.float32),
        prediction=prediction.astype(np.float32),
        label=label.astype(np.float32),
        observed=rng.random((rows, 3)) < 0.9,
    )


def predictions(rows, **options):
    """In batches of 100."""
    result = Predictions(list(TASKS), **options)
    for start in range(0, len(rows), 100):
        result.add(rows.take(slice(start, start + 100)))
    return result
