import torch

from infnet.baselines.blocks.cross import CrossNetwork, LowRankCrossNetwork


def check(layer, plain):
    x0 = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    ours, expected = layer(x0), torch.stack([plain(row) for row in x0])
    torch.testing.assert_close(ours, expected)
    probe, inputs = torch.randn_like(ours), [x0, *layer.parameters()]
    torch.testing.assert_close(
        torch.autograd.grad((ours * probe).sum(), inputs),
        torch.autograd.grad((expected * probe).sum(), inputs),
    )
    assert torch.autograd.gradcheck(layer, x0)


def test_the_cross_network_is_the_formula_row_by_row():
    torch.manual_seed(0)
    layer = CrossNetwork(6, 2).double()

    def plain(x0):
        x = x0
        for one in layer.layers:
            x = x0 * (one.weight @ x + one.bias) + x
        return x

    check(layer, plain)


def test_the_low_rank_cross_network_is_the_formula_row_by_row():
    torch.manual_seed(0)
    layer = LowRankCrossNetwork(6, 2, rank=2, num_experts=3).double()
    torch.nn.init.normal_(layer.bias)

    def plain(x0):
        x = x0
        for level in range(2):
            gates = torch.softmax(layer.gate.weight @ x, 0)
            total = torch.zeros_like(x)
            for expert in range(3):
                inner = torch.tanh(layer.v[level, expert].T @ x)
                inner = torch.tanh(layer.c[level, expert].T @ inner)
                product = layer.u[level, expert].T @ inner + layer.bias[level]
                total = total + gates[expert] * x0 * product
            x = total + x
        return x

    check(layer, plain)


def test_without_weights_a_cross_network_passes_its_input_through():
    layer = CrossNetwork(4, 3)
    for parameter in layer.parameters():
        torch.nn.init.zeros_(parameter)
    x = torch.randn(2, 4)
    assert torch.equal(layer(x), x)
