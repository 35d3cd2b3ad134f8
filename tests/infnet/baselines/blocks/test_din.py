import pytest
import torch

from infnet.baselines.blocks.din import TargetAttention

VALID = torch.tensor([[True, True, False], [False] * 3, [True] * 3])


def case(**settings):
    torch.manual_seed(0)
    layer = TargetAttention(4, hidden=(5, 3), **settings).double()
    target = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    events = torch.randn(3, 3, 4, dtype=torch.float64, requires_grad=True)
    return layer, target, events


def plain(layer, target, events):
    rows = []
    for q, history, valid in zip(target, events, VALID, strict=True):
        seen = [e for e, v in zip(history, valid, strict=True) if v]
        scores = [layer.rest(layer.first(torch.cat([q, e, q - e, q * e])).relu())[0] for e in seen]
        if layer.softmax and seen:
            scores = list(torch.stack(scores).softmax(0))
        weighted = (a * e for a, e in zip(scores, seen, strict=True))
        rows.append(sum(weighted, start=torch.zeros_like(q)))
    return torch.stack(rows)


@pytest.mark.parametrize("softmax", [False, True])
def test_target_attention_is_din_row_by_row_forward_and_backward(softmax):
    layer, target, events = case(softmax=softmax)
    ours, expected = layer(target, events, VALID), plain(layer, target, events)
    torch.testing.assert_close(ours, expected)
    probe, inputs = torch.randn_like(ours), [target, events, *layer.parameters()]
    # With a softmax the last bias moves all scores alike, so its gradient is 0.
    torch.testing.assert_close(
        torch.autograd.grad((ours * probe).sum(), inputs),
        torch.autograd.grad((expected * probe).sum(), inputs),
    )


def test_target_attention_passes_gradcheck_with_an_empty_history():
    layer, target, events = case()
    assert torch.autograd.gradcheck(lambda q, e: layer(q, e, VALID), (target, events))


def test_permuting_the_history_changes_nothing():
    layer, target, events = case()
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(
        layer(target, events[:, order], VALID[:, order]), layer(target, events, VALID)
    )


def test_weights_are_not_normalised_by_default():
    layer, target, events = case()
    full = torch.ones(3, 6, dtype=torch.bool)
    twice = layer(target, torch.cat([events, events], 1), full)
    torch.testing.assert_close(twice, 2 * layer(target, events, full[:, :3]))
