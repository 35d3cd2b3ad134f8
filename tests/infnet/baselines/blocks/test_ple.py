import pytest
import torch

from infnet.baselines.blocks.ple import CustomizedGateControl, ProgressiveLayeredExtraction

TASKS, SPECIFIC, SHARED = 2, 2, 3


def cgc(last: bool) -> CustomizedGateControl:
    torch.manual_seed(0)
    return CustomizedGateControl(
        4, num_tasks=TASKS, num_specific=SPECIFIC, num_shared=SHARED, hidden=(5, 3), last=last
    ).double()


def plain(layer, inputs):
    """One row: every gate and expert in a loop."""
    shared = [expert(inputs[-1]) for expert in layer.experts[-1]]
    own = [[e(x) for e in layer.experts[k]] for k, x in enumerate(inputs[:-1])]

    def mix(gate, x, experts):
        shares = torch.softmax(gate(x), 0)
        return sum(s * f for s, f in zip(shares, experts, strict=True))

    outputs = [mix(layer.gates[k], inputs[k], own[k] + shared) for k in range(TASKS)]
    if layer.shared_gate is not None:
        everyone = [expert for experts in own for expert in experts] + shared
        outputs.append(mix(layer.shared_gate, inputs[-1], everyone))
    return outputs


@pytest.mark.parametrize("last", [False, True])
def test_a_cgc_layer_is_the_formula_row_by_row_forward_and_backward(last):
    layer = cgc(last)
    inputs = [torch.randn(3, 4, dtype=torch.float64, requires_grad=True) for _ in range(TASKS + 1)]
    ours = layer(inputs)
    rows = [plain(layer, [x[i] for x in inputs]) for i in range(3)]
    expected = [torch.stack(parts) for parts in zip(*rows, strict=True)]
    torch.testing.assert_close(ours, expected)
    probes = [torch.randn_like(x) for x in ours]
    wanted = [*inputs, *layer.parameters()]
    torch.testing.assert_close(
        torch.autograd.grad(sum((x * p).sum() for x, p in zip(ours, probes, strict=True)), wanted),
        torch.autograd.grad(
            sum((x * p).sum() for x, p in zip(expected, probes, strict=True)), wanted
        ),
    )


def test_the_shared_gate_mixes_all_experts():
    assert cgc(last=False).shared_gate.out_features == TASKS * SPECIFIC + SHARED


def test_another_tasks_own_experts_reach_a_task_only_through_the_shared_branch():
    x = torch.randn(3, 4, dtype=torch.float64)
    layer = cgc(last=True)
    layer([x] * 3)[0].sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in layer.experts[1].parameters())
    torch.manual_seed(0)
    two = ProgressiveLayeredExtraction(
        4, num_tasks=2, num_layers=2, num_specific=1, num_shared=1, hidden=(3,)
    ).double()
    two(x)[0].sum().backward()
    assert any(p.grad.any() for p in two.layers[0].experts[1].parameters())


def test_the_last_layer_builds_no_shared_gate_so_every_parameter_is_used():
    torch.manual_seed(0)
    ple = ProgressiveLayeredExtraction(
        4, num_tasks=2, num_layers=3, num_specific=1, num_shared=2, hidden=(5, 3)
    )
    assert [layer.shared_gate is None for layer in ple.layers] == [False, False, True]
    sum(x.square().sum() for x in ple(torch.randn(16, 4))).backward()
    assert all(p.grad is not None for p in ple.parameters())
