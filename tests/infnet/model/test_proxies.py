import paper
import pytest
import torch

from infnet.model.proxies import FlattenedProxies, SequenceProxies

VALID = torch.tensor([[True, True, False], [False, False, False]])


def tokens():
    x = torch.randn(2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return x * VALID[..., None]


@pytest.mark.parametrize("per_behaviour", [1, 3])
def test_sum_pooled_proxies_project_every_event_and_add_up(per_behaviour):
    torch.manual_seed(0)
    layer = SequenceProxies(4, per_behaviour, ["sum"]).double()
    x = tokens().requires_grad_()
    ours = layer([x], [VALID])
    expected = [
        torch.stack(
            paper.sequence_proxies(layer.weight, [e for e, v in zip(*row, strict=True) if v])
        )
        for row in zip(x, VALID, strict=True)
    ]
    expected = torch.stack(expected)
    torch.testing.assert_close(ours, expected)
    probe = torch.randn_like(ours)
    torch.testing.assert_close(
        torch.autograd.grad((ours * probe).sum(), [x, layer.weight]),
        torch.autograd.grad((expected * probe).sum(), [x, layer.weight]),
    )


def test_mean_pooling_divides_by_the_number_of_events():
    torch.manual_seed(0)
    layer = SequenceProxies(4, 1, ["mean"]).double()
    x = tokens()
    expected = (x[0, 0] + x[0, 1]) / 2 @ layer.weight[0]
    torch.testing.assert_close(layer([x], [VALID])[0, 0], expected)


def test_attention_pooling_weighs_events_by_a_softmax_of_their_scores():
    torch.manual_seed(0)
    layer = SequenceProxies(4, 2, ["attention"]).double()
    x = tokens()
    ours = layer([x], [VALID])
    for proxy in range(2):
        shares = layer.score(x[0, :2])[:, proxy].softmax(0)
        expected = (shares[:, None] * x[0, :2]).sum(0) @ layer.weight[proxy]
        torch.testing.assert_close(ours[0, proxy], expected)


@pytest.mark.parametrize("pooling", ["sum", "mean", "attention"])
def test_an_empty_history_has_zero_proxies(pooling):
    layer = SequenceProxies(4, 2, [pooling]).double()
    assert layer([tokens()], [VALID])[1].eq(0).all()


def test_proxies_of_one_behaviour_type_stand_side_by_side():
    torch.manual_seed(0)
    layer = SequenceProxies(4, 2, ["sum", "sum"]).double()
    x = tokens()
    both = layer([x, 2 * x], [VALID, VALID])
    torch.testing.assert_close(both[:, 2:], 2 * both[:, :2])


def test_flattened_proxies_mix_all_tokens_of_a_row():
    torch.manual_seed(0)
    layer = FlattenedProxies(3, 2, 4, hidden=(6,), dropout=0.0).double()
    x = tokens()
    torch.testing.assert_close(layer(x)[0].flatten(), layer.mlp(torch.cat(list(x[0]))))
