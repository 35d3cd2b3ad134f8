"""A bundle of the trained small decoder, and the recommender that serves it."""

from pathlib import Path

import pytest
from bundles import OPTIONS, write_bundle

from layer_select.export.bundle import Bundle
from layer_select.serve.scorer import Recommender


@pytest.fixture(scope="session")
def served_bundle(tiny_config, tiny_model, tmp_path_factory) -> Path:
    """Tests that change it work on a copy."""
    return write_bundle(tiny_config, tiny_model, tmp_path_factory.mktemp("served") / "bundle")


@pytest.fixture(scope="session")
def recommender(served_bundle) -> Recommender:
    """With a prefix cache, which tests may fill."""
    return Recommender(Bundle.read(str(served_bundle)), OPTIONS)
