"""The index of a bundle: what is read finds what was built."""

import shutil

import numpy as np
import pytest
from bundles import seal

from layer_select.export.bundle import INDEX, Bundle
from layer_select.serve.config import Faiss, RecommenderServe
from layer_select.serve.index import FaissIndex
from layer_select.serve.scorer import Recommender
from rayrun.config import ConfigError

RNG = np.random.default_rng(0)
VECTORS = RNG.normal(size=(400, 8)).astype(np.float32)
USERS = RNG.normal(size=(5, 8)).astype(np.float32)


def found(index):
    return [row.tolist() for row in index.search(USERS, 10)]


def test_an_index_that_is_read_finds_what_was_found_before(tmp_path):
    built = FaissIndex(VECTORS, Faiss(probes=4))
    built.write(tmp_path / INDEX)
    read = FaissIndex(VECTORS, Faiss(probes=4), file=tmp_path / INDEX)
    assert found(read) == found(built)
    # as many probes as are asked for, not as were when it was written
    more = FaissIndex(VECTORS, Faiss(probes=20), file=tmp_path / INDEX)
    exact = [np.argsort(-(VECTORS @ user), kind="stable")[:10].tolist() for user in USERS]
    assert found(more) == exact
    other = FaissIndex(VECTORS, Faiss(lists=7, probes=2), file=tmp_path / INDEX)
    assert found(other) == found(FaissIndex(VECTORS, Faiss(lists=7, probes=2)))


def test_an_index_of_another_catalogue_or_a_damaged_one_is_refused(tmp_path):
    FaissIndex(VECTORS[:399], Faiss()).write(tmp_path / INDEX)
    with pytest.raises(ConfigError, match="over 400 vectors of width 8, found 399 of width 8"):
        FaissIndex(VECTORS, Faiss(), file=tmp_path / INDEX)
    (tmp_path / INDEX).write_bytes(b"cut short")
    with pytest.raises(ConfigError, match="is no index that faiss can read .* export the bundle"):
        FaissIndex(VECTORS, Faiss(), file=tmp_path / INDEX)


def test_a_replica_reads_the_index_of_its_bundle(served_bundle, tmp_path, recommender):
    place = tmp_path / "bundle"
    shutil.copytree(served_bundle, place)
    vectors = recommender.bundle.vectors.numpy()
    FaissIndex(vectors[::-1].copy(), Faiss()).write(place / INDEX)  # tells that it is the file's
    seal(place, {})
    bundle = Bundle.read(str(place))
    assert bundle.index is not None
    options = RecommenderServe(index=Faiss(above=0, probes=99))
    index = Recommender(bundle, options).index
    assert index is not None
    user = vectors[3][None]
    nearest = index._index.search(user, 1)[1][0, 0]
    best = np.flatnonzero(vectors @ user[0] >= (vectors @ user[0]).max() * 0.98)
    assert len(vectors) - 1 - nearest in best
