"""What the choice of layers must respect, family by family."""

import pytest
from transformers.models.bloom import BloomConfig

from layer_select.families import FAMILIES, constraints, family_of, per_layer_entries
from rayrun.config import ConfigError
from tests.layer_select.families import CONFIGS


def test_every_family_that_tests_know_is_a_family() -> None:
    assert {family_of(config()).model_type for config in CONFIGS.values()} == {
        family.model_type for family in FAMILIES
    }
    with pytest.raises(ConfigError, match=r"model_type must be one of llama, .*; found 'bloom'"):
        family_of(BloomConfig())


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "qwen3_moe"])
def test_layers_of_one_kind_are_free(family: str) -> None:
    assert constraints(CONFIGS[family]()) is None


@pytest.mark.parametrize(("family", "period"), [("gpt_oss", 2), ("gemma2", 2), ("gemma3", 6)])
def test_layers_that_differ_by_index_keep_their_place_in_the_period(
    family: str, period: int
) -> None:
    config = CONFIGS[family]()
    rule = constraints(config)
    assert rule is not None
    assert rule.allows(range(6))
    assert rule.allows([0, 1])
    assert rule.allows([0, 1, 4, 5]) == (period == 2)
    assert rule.allows([5, 4, 1, 0]) == rule.allows([0, 1, 4, 5])
    assert not rule.allows([0, 2, 3, 5])
    types = config.layer_types
    for kept in ([0, 1, 4, 5], [0, 1, 2, 3], [0, 3]):
        if rule.allows(kept):  # then what runtimes compute from the new index is what the layer was
            assert [types[new % period] for new in range(len(kept))] == [types[old] for old in kept]
    assert f"modulo {period} (attention window)" in rule.explain()
    assert "layer 2 would become layer 1: keep or remove one more layer" in rule.explain([0, 2])


def test_a_model_that_left_its_period_is_free() -> None:
    config = CONFIGS["gpt_oss"]()
    config.layer_types = ["full_attention"] * 6
    assert constraints(config) is None


def test_a_mixture_with_layers_of_two_kinds_is_refused() -> None:
    config = CONFIGS["qwen3_moe"]()
    config.decoder_sparse_step = 2
    with pytest.raises(ConfigError, match="found decoder_sparse_step 2, mlp_only_layers"):
        constraints(config)
    config.decoder_sparse_step, config.mlp_only_layers = 1, [0]
    with pytest.raises(ConfigError, match=r"mlp_only_layers \[0\]"):
        constraints(config)


def test_lists_with_an_entry_for_each_layer_are_named() -> None:
    found = {family: list(per_layer_entries(config())) for family, config in CONFIGS.items()}
    assert found["llama"] == found["mistral"] == []
    assert found["gpt_oss"] == found["gemma3"] == found["qwen3"] == ["layer_types"]
    assert per_layer_entries(CONFIGS["gpt_oss"]())["layer_types"][:2] == [
        "sliding_attention",
        "full_attention",
    ]
