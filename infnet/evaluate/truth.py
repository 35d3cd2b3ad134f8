"""The best reachable AUC: what the true probabilities of a simulated log reach on the same rows."""

import numpy as np

from infnet.config import InfnetConfig
from infnet.evaluate.metrics import AVERAGE, Values, compute
from infnet.evaluate.predictions import Predictions
from infnet.evaluate.raw import open_file
from infnet.schema import Schema
from infnet.tasks import BinaryTask
from rayrun.data.log import ROW_ID
from rayrun.data.source import open_source


def best_reachable(
    config: InfnetConfig, rows: Predictions, schema: Schema, data: str | None
) -> Values:
    """Metrics of the columns `p_<task>` of a simulated log, taken as predictions of the evaluated
    rows.

    Empty for any other log (a column of that name would be somebody's estimate), for more rows than
    are kept in memory, or where the log no longer has the rows.
    """
    if getattr(config.data.source, "type", "") != "simulate" or not rows.exact:
        return {}
    source = open_source(config.data.source)
    log = open_file(data, config.data.source, source.columns) if data else source
    tasks = {
        name: task
        for name, task in schema.tasks.items()
        if isinstance(task, BinaryTask) and f"p_{name}" in log.schema.names
    }
    if not tasks:
        return {}
    (found,) = rows.partitions()
    order = np.argsort(found.row_id)
    ids = found.row_id[order]
    truth = np.full((len(found), len(tasks)), np.nan)
    for fragment in log.fragments():
        for table in log.read(fragment, [f"p_{name}" for name in tasks]):
            row_id = table[ROW_ID].to_numpy()
            at = np.minimum(np.searchsorted(ids, row_id), max(len(found) - 1, 0))
            known = ids[at] == row_id if len(found) else np.zeros(row_id.size, bool)
            for column, name in enumerate(tasks):
                truth[order[at[known]], column] = table[f"p_{name}"].to_numpy()[known]
    if np.isnan(truth).any():
        return {}
    columns = [list(schema.tasks).index(name) for name in tasks]
    true = Predictions(list(tasks))
    true.update(
        found.row_id,
        found.user,
        found.weight,
        truth,
        found.label[:, columns],
        found.observed[:, columns],
    )
    values = compute(true, tasks, ndcg_at=config.evaluate.ndcg_at).values
    return {name: row for name, row in values.items() if name != AVERAGE}
