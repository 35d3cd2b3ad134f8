import pytest
import torch

from infnet.baselines.online_stack import OnlineStackConfig
from infnet.model.recommender import Recommender
from infnet.schema import SequenceSlot
from rayrun.config import ConfigError, validate


def test_the_candidate_asks_with_the_fields_that_its_events_carry(make_schema):
    network = Recommender(OnlineStackConfig(), make_schema()).network
    assert network.targets == {"clicked": ("item", "author"), "liked": ("item",)}
    assert not list(network.queries.parameters())


def test_another_target_is_projected_to_the_width_of_an_event(make_schema):
    config = OnlineStackConfig(target_fields=("author",))
    network = Recommender(config, make_schema()).network
    assert [tuple(query.weight.shape) for query in network.queries] == [(24, 16), (8, 16)]


def test_the_candidate_changes_how_a_history_is_read(make_schema, make_batch):
    schema = make_schema()
    torch.manual_seed(0)
    network = Recommender(OnlineStackConfig(), schema).network
    query = torch.randn(2, 8).split(1)
    events, valid = torch.randn(1, 4, 8), torch.ones(1, 4, dtype=torch.bool)
    liked = network.attentions[1]
    assert not torch.allclose(liked(query[0], events, valid), liked(query[1], events, valid))


def test_a_target_that_is_no_field_is_refused(make_schema):
    config = OnlineStackConfig(target_fields=("price",))
    with pytest.raises(
        ConfigError, match=r"target_fields must name categorical features .*'price'"
    ):
        Recommender(config, make_schema())


def test_a_history_of_things_no_candidate_has_asks_for_target_fields(make_schema):
    slot = SequenceSlot(name="searched", max_length=3, tables=("tab",), fields=("query",))
    with pytest.raises(ConfigError, match=r"features\.searched: none of its event fields"):
        Recommender(OnlineStackConfig(), make_schema(sequences=(slot,)))


def test_a_schema_without_any_feature_is_refused(make_schema):
    with pytest.raises(ConfigError, match="online_stack needs at least one feature, found none"):
        Recommender(OnlineStackConfig(), make_schema(fields=(), dense=(), sequences=()))


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"cross_layers": 0}, "cross_layers must be at least 1, found 0"),
        ({"shared_experts": 0}, "shared_experts must be at least 1, found 0"),
        ({"expert_hidden": []}, "expert_hidden must hold one or more widths of at least 1"),
        ({"attention_hidden": [0]}, "attention_hidden must hold one or more widths of at least 1"),
        ({"dropout": -0.1}, r"dropout must be in \[0, 1\), found -0.1"),
        ({"cross": {"type": "low_rank", "rank": 0}}, "rank and num_experts must be at least 1"),
    ],
)
def test_impossible_settings_are_refused(raw, message):
    with pytest.raises(ConfigError, match=message):
        validate(OnlineStackConfig, raw, where="model")
