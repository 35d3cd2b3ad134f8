"""Rows for a bundle whose table of tags is large; made without torch, as they are served."""

import numpy as np

from infnet.features.arrays import Arrays, SequenceArrays, to_arrays
from infnet.features.request import encode_request

LARGE = 2_000_000
"""Rows of the table of tags, 8 wide: 64 MB. A field and a sequence look up in it."""


def anywhere(bundle, rows, seed):
    """Rows whose tags are any of the large table, and that share one history."""
    random = np.random.default_rng(seed)
    sample = to_arrays(encode_request(bundle.encoder, **bundle.sample["request"]), bundle.schema)
    some = np.arange(rows) % len(sample)
    tag = [slot.name for slot in bundle.schema.fields].index("tag")
    ids = sample.ids[some].copy()
    ids[:, tag] = random.integers(0, LARGE, rows)
    sequences = {}
    for name, each in sample.sequences.items():
        events = each.ids[:1].copy()
        if name == "clicks":  # of items and tags
            events[..., 1] = random.integers(0, LARGE, events.shape[:2])
        sequences[name] = SequenceArrays(events, each.ages[:1], each.lengths[:1])
    return Arrays(ids=ids, dense=sample.dense[some], sequences=sequences)
