"""A small log with titles in two scripts, and a tokenizer for it."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from title_tokens import character_tokenizer

from layer_select.task.config import SequenceData
from rayrun.config import validate

TITLES = ["Go", "Chess", "围棋", "象棋 二", "Kite", "Go", "Zoo", "龙舟", "Tea", "Sea", "Sun", "Oak"]
WORDS = ["Next: ? \n", "no", "yes", "()2"]


@pytest.fixture(scope="session")
def tokenizer():
    return character_tokenizer([*TITLES, *WORDS])


@pytest.fixture(scope="session")
def titled_data(tmp_path_factory) -> SequenceData:
    rng = np.random.default_rng(5)
    rows = [
        (f"u{user}", int(item), time, TITLES[item])
        for user in range(30)
        for time, item in enumerate(rng.integers(0, len(TITLES), rng.integers(3, 9)))
    ]
    columns = dict(zip(("user", "item", "time", "title"), zip(*rows, strict=True), strict=True))
    path = tmp_path_factory.mktemp("log") / "log.parquet"
    pq.write_table(pa.table({n: list(v) for n, v in columns.items()}), path)
    return validate(
        SequenceData,
        {
            "source": {
                "path": str(path),
                "columns": {
                    "user": "user",
                    "item": "item",
                    "time": {"column": "time"},
                    "title": "title",
                },
            }
        },
        where="test",
    )
