"""The real sample, where it is there: published split, causal columns."""

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infnet.config import InfnetConfig
from infnet.data.prepare import prepare
from infnet.features.encoder import Encoder
from tests.infnet.data import brute_force
from tests.infnet.data.shards import SPLITS, everything, shards

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]


KUAIRAND = Path(os.environ.get("INFNET_DATA", "/nowhere")) / "kuairand27k_explicit"


@pytest.mark.skipif(not KUAIRAND.exists(), reason="needs INFNET_DATA with kuairand27k_explicit")
def test_kuairand_has_the_published_split_and_causal_columns(tmp_path):
    from rayrun.cli import load_config

    root = Path(__file__).parents[3]
    config = load_config(
        InfnetConfig,
        str(root / "configs/infnet/kuairand27k_explicit.yaml"),
        # Ids in the histories, which can be compared with the plain log event by event.
        [
            "features.video={type: categorical, column: video_id}",
            *(f"features.{name}.fields=[video]" for name in ("liked", "hated", "viewed")),
            *(f"features.{name}.share_tables=true" for name in ("liked", "hated", "viewed")),
        ],
    )
    out = tmp_path / "out"
    prepare(config, str(out))
    assert [shards(out, s).num_rows for s in SPLITS] == [35_629, 2_267, 3_816]
    raw = pq.read_table(KUAIRAND / "interactions.parquet")
    plain = raw.to_pylist()
    for position, row in enumerate(plain):
        row["__row_id"], row["__time"] = position, row["time_ms"]
        row["__split"] = 0 if row["date"] < 20220419 else 1 if row["date"] < 20220420 else 2
    found = everything(out)
    encoder = Encoder.read(out / "encoder")
    videos = encoder.vocabularies["video"]
    for name, column in (("liked", "is_like"), ("hated", "is_hate"), ("viewed", "long_view")):
        expected = brute_force.histories(
            plain, "user_id", lambda r, c=column: r[c] == 1, ("video_id",), 30
        )
        flat = [str(e[0]) for events in expected for e in events]
        lengths = [len(events) for events in expected]
        got = found[f"s.{name}.ids.video"].combine_chunks()
        assert got.value_lengths().to_pylist() == lengths
        np.testing.assert_array_equal(got.flatten(), videos.ids(pa.array(flat)))
    for key in ("user", "video"):
        for task, column in (
            ("click", "is_click"),
            ("long_view", "long_view"),
            ("like", "is_like"),
        ):
            expected = np.array(
                brute_force.statistics(plain, f"{key}_id", column, "earlier"), dtype=float
            )
            name = f"{key}_{task}_rate"
            prior = encoder.states[name]["prior"]
            rate = (expected[:, 1] + 5 * prior) / (expected[:, 0] + 5)
            np.testing.assert_allclose(
                found[f"d.{name}.logit"], np.log(rate / (1 - rate)), rtol=2e-6, atol=2e-6
            )
