"""Gates kept apart from the tokens change nothing, nor do rows that share their tokens."""

import pytest
import torch

from infnet.model.gated import GatedTokens, repeat

VALID = torch.tensor([[True, True, False, True, False], [False] * 5, [True] * 5])
EXACT = {"rtol": 1e-12, "atol": 1e-12}


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=random, dtype=torch.float64).requires_grad_()


def plain(queries, tokens, valid):
    """softmax(Q Xᵀ) X, row by row and over the valid tokens alone."""
    rows = []
    for q, x, v in zip(queries, tokens, valid, strict=True):
        seen = x[v]
        rows.append((q @ seen.T).softmax(-1) @ seen if len(seen) else torch.zeros_like(q))
    return torch.stack(rows)


@pytest.mark.parametrize("gates", [0, 1, 3])
@pytest.mark.parametrize("bases", [6, 3, 1])
def test_reading_gated_tokens_is_reading_each_rows_own_forward_and_backward(bases, gates):
    queries, base = numbers(6, 4, 3, seed=1), numbers(bases, 5, 3, seed=2)
    factors = [numbers(6, 1, 3, seed=3 + at) for at in range(gates)]
    valid = VALID.repeat(2, 1)[:bases]
    zeroed = base * valid[..., None]
    tokens = GatedTokens(zeroed, valid=valid)
    own = zeroed.repeat_interleave(6 // bases, dim=0)
    for gate in factors:
        tokens, own = tokens.by(gate), own * gate
    found = tokens.read(queries)
    expected = plain(queries, own, valid.repeat_interleave(6 // bases, dim=0))
    torch.testing.assert_close(found, expected, **EXACT)
    probe, inputs = numbers(6, 4, 3, seed=9), [queries, base, *factors]
    torch.testing.assert_close(
        torch.autograd.grad((found * probe).sum(), inputs, retain_graph=True),
        torch.autograd.grad((expected * probe).sum(), inputs),
        **EXACT,
    )


def test_gates_multiply_and_leave_the_base_alone():
    base, gates = numbers(2, 5, 3), numbers(2, 2, 1, 3, seed=1)
    tokens = GatedTokens(base).by(gates[0]).by(gates[1])
    assert tokens.base is base
    torch.testing.assert_close(tokens.gated, base * gates[0] * gates[1], **EXACT)


def test_a_function_sees_the_gated_tokens_and_leaves_padding_at_zero():
    base = numbers(3, 5, 3) * VALID[..., None]
    tokens = GatedTokens(base, valid=VALID).by(numbers(3, 1, 3, seed=1)).map(torch.cos)
    assert tokens.gate is None
    expected = (base * numbers(3, 1, 3, seed=1)).cos() * VALID[..., None]
    torch.testing.assert_close(tokens.base, expected, **EXACT)


def test_what_a_base_gives_is_repeated_for_the_rows_that_share_it():
    each = numbers(2, 1, 3)
    assert torch.equal(repeat(each, torch.empty(6, 1, 1)), each[[0, 0, 0, 1, 1, 1]])
    assert torch.equal(repeat(each[:0], torch.empty(0, 1, 1)), each[:0])
