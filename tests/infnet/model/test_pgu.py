import paper
import torch

from infnet.model.gated import GatedTokens
from infnet.model.pgu import ProxyGatedUnit


def case():
    torch.manual_seed(0)
    unit = ProxyGatedUnit(2, 4, hidden=(5,)).double()
    tokens = torch.randn(3, 6, 4, dtype=torch.float64, requires_grad=True)
    proxies = torch.randn(3, 2, 4, dtype=torch.float64, requires_grad=True)
    return unit, tokens, proxies


def test_pgu_is_the_papers_formula_forward_and_backward():
    unit, tokens, proxies = case()
    ours = unit(GatedTokens(tokens), proxies).gated
    rows = zip(tokens, proxies, strict=True)
    expected = torch.stack([torch.stack(paper.gate(unit, list(x), list(p))) for x, p in rows])
    torch.testing.assert_close(ours, expected)
    probe, inputs = torch.randn_like(ours), [tokens, proxies, *unit.parameters()]
    torch.testing.assert_close(
        torch.autograd.grad((ours * probe).sum(), inputs),
        torch.autograd.grad((expected * probe).sum(), inputs),
    )


def test_gates_lie_strictly_between_zero_and_one():
    unit, _, proxies = case()
    gate = unit.gate(proxies)
    assert gate.gt(0).all()
    assert gate.lt(1).all()


def test_pgu_passes_gradcheck():
    unit, tokens, proxies = case()
    assert torch.autograd.gradcheck(lambda x, p: unit(GatedTokens(x), p).gated, (tokens, proxies))


def test_a_gate_is_shared_by_all_tokens_of_a_row():
    unit, tokens, proxies = case()
    ratio = unit(GatedTokens(tokens), proxies).gated / tokens
    torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio))
