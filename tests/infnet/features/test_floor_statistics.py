"""The statistics on a real log: with plain logistic regression they give the published floor."""

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from infnet.features.batches import to_batch
from infnet.features.encoder import Encoder
from infnet.features.feature_set import FeatureSet
from infnet.features.hashing import row_keys
from infnet.features.statistic import observed_value
from rayrun.data.columns import Columns, TimeColumn

FILE = Path(os.environ.get("INFNET_DATA", "/nowhere"), "kuairand27k_explicit/interactions.parquet")
FLOOR = {"click": 0.761, "long_view": 0.745, "like": 0.917}
LABELS = {"click": "is_click", "long_view": "long_view", "like": "is_like"}


@pytest.mark.skipif(not FILE.exists(), reason="needs $INFNET_DATA/kuairand27k_explicit")
def test_frozen_user_and_video_rates_reach_the_floor(parse):
    log = pq.read_table(FILE)
    log = log.append_column("__row_id", pa.array(np.arange(log.num_rows)))
    statistic = {"type": "statistic", "outputs": ["logit"], "fold": "leave_one_out"}
    written = parse(
        {
            f"{key}_{task}": {**statistic, "key": [key], "value": f"task:{task}"}
            for key in ("user_id", "video_id")
            for task in LABELS
        },
        {task: {"type": "binary", "label": column} for task, column in LABELS.items()},
    )
    roles = Columns(user="user_id", time=TimeColumn(column="time_ms"))
    features = FeatureSet(written.features, written.tasks, roles, log.schema)
    day = log["date"].to_numpy()
    train = features.with_roles(log.filter(pa.array(day < 20220419)))
    test = log.filter(pa.array(day >= 20220420))

    tables, derived = {}, train
    for name, demand in features.demands().statistics.items():
        value = observed_value(train, demand.value)
        keys, of_row = np.unique(row_keys(train, demand.key), return_inverse=True)
        count, total = np.bincount(of_row), np.bincount(of_row, value)
        tables[name] = pa.table({"key": keys, "count": count.astype(float), "sum": total})
        for part, others in (("count", count[of_row] - 1.0), ("sum", total[of_row] - value)):
            derived = derived.append_column(f"__statistic.{name}.{part}", pa.array(others))
    summary = features.merge([features.summarise(train)])
    encoder = Encoder.fit(features, summary, {}, statistics=tables)

    schema = encoder.schema()
    seen = to_batch(encoder.encode(derived), schema)
    asked = to_batch(encoder.encode(encoder.derive(test)), schema)
    assert (len(seen), len(asked)) == (35_629, 3_816)
    for at, task in enumerate(schema.tasks):
        own = [i for i, slot in enumerate(schema.dense) if slot.task == task]
        model = LogisticRegression().fit(seen.dense[:, own].numpy(), seen.labels[:, at].numpy())
        scores = model.predict_proba(asked.dense[:, own].numpy())[:, 1]
        assert round(roc_auc_score(asked.labels[:, at].numpy(), scores), 3) == pytest.approx(
            FLOOR[task], abs=1.01e-3
        )
