"""Every configuration we ship loads, plans without side effects, and survives a round trip."""

from pathlib import Path

import pytest

from infnet.config import InfnetConfig
from layer_select.config import LayerSelectConfig
from rayrun.config import ConfigError, load, parse_yaml, validate
from rayrun.ray.applications import Applications

ROOT = Path(__file__).parents[1]
CLASSES = {
    "infnet": InfnetConfig,
    "layer_select": LayerSelectConfig,
    "serve": Applications,
}
"""By the folder below configs/."""
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))


def test_the_walk_finds_them():
    assert len(CONFIGS) >= 4


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_it_loads_and_survives_a_round_trip(path):
    cls = CLASSES[path.relative_to(ROOT / "configs").parts[0]]
    config = load(cls, path)
    assert config.name
    again = validate(cls, parse_yaml(config.to_yaml(), where="again"), where="again")
    assert again == config
    assert again.digest() == config.digest()


def test_the_configuration_reference_is_current():
    from rayrun.reference import reference

    text = reference("Configuration of `infnet`", InfnetConfig)
    text += "\n" + reference("Configuration of `layer-select`", LayerSelectConfig)
    text += "\n" + reference("The file of `python -m pipelines serve`", Applications)
    path = ROOT / "docs" / "config.md"
    import os

    if os.environ.get("GOLDEN_WRITE"):
        path.write_text(text, encoding="utf-8")
    assert path.read_text(encoding="utf-8") == text, "run: make golden"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epochs=-1", "train.epochs: Input should be greater than 0; found -1"),
        ("train.optimizer.lr=0", "train.optimizer.lr: Input should be greater than 0; found 0"),
        ("data.max_bad_share=3", "data.max_bad_share: Input should be less than or equal to 1; f"),
        ("compute.num_cpus=0", "compute.num_cpus: Input should be greater than 0; found 0"),
    ],
)
def test_a_number_out_of_range_is_refused_before_anything_starts(override, message):
    with pytest.raises(ConfigError, match=message):
        load(InfnetConfig, ROOT / "configs/infnet/smoke.yaml", [override])
