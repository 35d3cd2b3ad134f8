"""Rows and schemas that the tests of the model rooms share."""

from collections.abc import Callable

import pytest
import torch

from infnet.batch import Batch, SequenceBatch
from infnet.schema import DenseSlot, FieldSlot, Schema, SequenceSlot, TableSpec
from infnet.tasks import BinaryTask, ConditionalTask, RegressionTask, ZilnTask


@pytest.fixture(scope="session")
def make_schema() -> Callable[..., Schema]:
    def make(**changes) -> Schema:
        described = {
            "tables": {
                "item": TableSpec(rows=20, dim=8),
                "author": TableSpec(rows=12, dim=16),
                "tab": TableSpec(rows=5, dim=8),
            },
            "fields": tuple(FieldSlot(name=n, table=n) for n in ("item", "author", "tab")),
            "dense": (
                DenseSlot(name="age", width=1, kind="numeric"),
                DenseSlot(name="week", width=7, kind="window"),
                DenseSlot(name="rate.count", width=1, kind="statistic", task=""),
                DenseSlot(name="rate.logit", width=1, kind="statistic", task="click"),
            ),
            "sequences": (
                SequenceSlot(
                    name="clicked",
                    max_length=6,
                    tables=("item", "author"),
                    fields=("item", "author"),
                ),
                SequenceSlot(name="liked", max_length=4, tables=("item",), fields=("item",)),
            ),
            "tasks": {
                "click": BinaryTask(label="click"),
                "like": ConditionalTask(label="like", given="click"),
                "spend": ZilnTask(label="spend"),
                "watch": RegressionTask(label="watch"),
            },
            "encoder_digest": "sha256:0",
        }
        return Schema(**{**described, **changes})

    return make


@pytest.fixture(scope="session")
def make_batch() -> Callable[..., Batch]:
    def make(schema: Schema, num_rows: int, *, seed: int = 0, empty: bool = False) -> Batch:
        """Random rows; every third history is full, `empty` makes all of them empty."""
        random = torch.Generator().manual_seed(seed)

        def ids(table: str, *shape: int) -> torch.Tensor:
            return torch.randint(1, schema.tables[table].rows, shape, generator=random)

        sequences = {}
        for slot in schema.sequences:
            lengths = torch.randint(0, slot.max_length + 1, (num_rows,), generator=random)
            lengths[::3] = slot.max_length
            if empty:
                lengths.zero_()
            valid = torch.arange(slot.max_length) < lengths[:, None]
            events = torch.stack([ids(t, num_rows, slot.max_length) for t in slot.tables], -1)
            ages = torch.rand(num_rows, slot.max_length, generator=random)
            sequences[slot.name] = SequenceBatch(events * valid[..., None], ages * valid, lengths)
        num_tasks = len(schema.tasks)
        labels = torch.randint(0, 2, (num_rows, num_tasks), generator=random).float()
        amounts = torch.tensor([task.label_range[1] > 1 for task in schema.tasks.values()])
        spread = torch.randn(num_rows, num_tasks, generator=random).exp()
        fields = [ids(slot.table, num_rows) for slot in schema.fields]
        return Batch(
            ids=torch.stack(fields, 1) if fields else torch.zeros(num_rows, 0, dtype=torch.int64),
            dense=torch.randn(num_rows, schema.dense_width, generator=random),
            sequences=sequences,
            labels=torch.where(amounts, labels * spread, labels),
            observed=torch.ones(num_rows, num_tasks, dtype=torch.bool),
            weight=torch.ones(num_rows),
            user=torch.arange(num_rows),
            row_id=torch.arange(num_rows),
        )

    return make


@pytest.fixture(scope="session")
def pad() -> Callable[..., Batch]:
    def padded(batch: Batch, *, by: int) -> Batch:
        """The same rows with `by` more columns of padding in every history."""
        longer = {
            name: SequenceBatch(
                torch.nn.functional.pad(s.ids, (0, 0, 0, by)),
                torch.nn.functional.pad(s.ages, (0, by)),
                s.lengths,
            )
            for name, s in batch.sequences.items()
        }
        return Batch(**{**vars(batch), "sequences": longer})

    return padded
