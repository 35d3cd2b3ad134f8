import math

import torch

from infnet.model.tokens import FeatureTokens, SequenceTokens, TaskTokens


def test_a_feature_of_the_token_width_is_its_own_token_and_others_are_projected():
    torch.manual_seed(0)
    layer = FeatureTokens({"a": 4, "b": 8, "c": 4}, 8, keep_dim=True)
    x = {"a": torch.randn(3, 4), "b": torch.randn(3, 8), "c": torch.randn(3, 4)}
    narrow, kept = layer(x)
    assert torch.equal(kept[:, 0], x["b"])
    projection = layer.projections[0]
    torch.testing.assert_close(narrow[:, 1], x["c"] @ projection.weight[1] + projection.bias[1])


def sequence_tokens(**changes):
    torch.manual_seed(0)
    settings = {"max_length": 4, "positions": False, "decay": 0.0, **changes}
    layer = SequenceTokens(3, 5, **settings)
    events = torch.randn(2, 4, 3)
    valid = torch.tensor([[True, True, True, False], [False] * 4])
    ages = torch.tensor([[3.0, 2.0, 0.5, 0.0], [0.0] * 4])
    return layer, events, valid, ages


def test_padding_is_a_zero_token_whatever_stands_there():
    layer, events, valid, ages = sequence_tokens(positions=True, decay=0.1)
    tokens = layer(events, valid, ages)
    assert tokens[0, 3].eq(0).all()
    assert tokens[1].eq(0).all()


def test_positions_count_from_the_most_recent_event():
    layer, events, valid, ages = sequence_tokens(positions=True)
    tokens = layer(events, valid, ages)
    for event, position in ((2, 0), (1, 1), (0, 2)):
        expected = layer.project(events[0, event]) + layer.positions.weight[position]
        torch.testing.assert_close(tokens[0, event], expected)


def test_decay_weakens_an_event_by_its_age_in_days():
    layer, events, valid, ages = sequence_tokens(decay=0.7)
    expected = layer.project(events[0, 1]) * math.exp(-0.7 * 2.0)
    torch.testing.assert_close(layer(events, valid, ages)[0, 1], expected)


def test_task_and_shared_tokens_start_small_and_shared_ones_can_start_as_task_tokens():
    torch.manual_seed(0)
    tokens = TaskTokens(200, 100, 64, shared_from_tasks=False)
    for parameter in (tokens.task, tokens.shared):
        # The standard error of a deviation from n = 6400 numbers or more is σ/√(2n) < 1 %.
        assert abs(parameter.std().item() - 0.02) < 0.02 * 0.05
    copied = TaskTokens(3, 5, 8, shared_from_tasks=True)
    assert torch.equal(copied.shared, copied.task[[0, 1, 2, 0, 1]])
