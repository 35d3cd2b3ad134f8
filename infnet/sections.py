"""Which sections of the configuration decide the result of each verb; `infnet.keys` tells the rest.

What a verb reads and does not list here would leave a stale result in a store: a test records what
each verb reads. `name`, `compute`, `serve`, `sinks` and places decide nothing anywhere.
"""

PREPARE = ("data", "features", "tasks")
TRAIN = ("tasks", "model", "rivals", "train", "evaluate.batch_size")
"""Beside the dataset; if train prepares it by itself, `PREPARE` too. Validation scores by
`evaluate.batch_size` rows, which shows in the last digits."""
TUNE = ("tasks", "model", "train", "evaluate.batch_size")
"""Beside `tune` itself, which is in no other key: `infnet.keys.to_tune` adds it."""
EVALUATE = ("data", "model", "evaluate")
"""`data` for the rows of `--data` and the truth of the simulator, `model` for its name."""
EXPORT = ()
"""The checkpoint decides all: what was trained, and how it is built."""
GATE = ("data", "evaluate", "gate")
