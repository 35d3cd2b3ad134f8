import torch
from torch import nn

from infnet.model.layers import MLP, ParallelLinear, masked_softmax

VALID = torch.tensor([[True, True, False], [False, False, False], [True, True, True]])


def test_the_masked_softmax_is_the_softmax_of_the_valid_tokens():
    scores = torch.randn(3, 2, 3, generator=torch.Generator().manual_seed(0))
    shares = masked_softmax(scores, VALID)
    torch.testing.assert_close(shares[0, :, :2], scores[0, :, :2].softmax(-1))
    torch.testing.assert_close(shares[2], scores[2].softmax(-1))


def test_the_masked_softmax_is_exactly_zero_elsewhere_even_where_padding_scores_highest():
    scores = torch.zeros(3, 2, 3)
    scores[..., 2] = 1e30
    assert masked_softmax(scores, VALID)[0, :, 2].eq(0).all()


def test_a_row_without_valid_tokens_gets_no_share_and_no_gradient():
    scores = torch.randn(3, 2, 3, requires_grad=True)
    shares = masked_softmax(scores, VALID)
    (shares * torch.randn(3, 2, 3)).sum().backward()
    assert shares[1].eq(0).all()
    assert scores.grad is not None
    assert scores.grad[1].eq(0).all()
    assert scores.grad.isfinite().all()


def test_the_masked_softmax_stays_finite_in_bfloat16():
    scores = torch.full((3, 2, 3), -3e38, dtype=torch.bfloat16)
    assert masked_softmax(scores, VALID).isfinite().all()


def test_a_parallel_linear_is_one_linear_per_feature():
    torch.manual_seed(0)
    layer = ParallelLinear(3, 5, 4).double()
    x = torch.randn(7, 3, 5, dtype=torch.float64)
    expected = [x[:, g] @ layer.weight[g] + layer.bias[g] for g in range(3)]
    torch.testing.assert_close(layer(x), torch.stack(expected, 1))


def test_an_mlp_without_hidden_layers_is_one_linear():
    assert [type(layer) for layer in MLP(3, (), 2, dropout=0.5)] == [nn.Linear]


def test_dropout_follows_every_hidden_layer_and_not_the_last():
    layers = [type(layer).__name__ for layer in MLP(3, (4, 5), 2, dropout=0.5)]
    assert layers == ["Linear", "ReLU", "Dropout", "Linear", "ReLU", "Dropout", "Linear"]
