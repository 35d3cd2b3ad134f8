import paper
import pytest
import torch

from infnet.model.flow import CrossFlow
from infnet.model.gated import GatedTokens

VALID = torch.tensor([[True, True, False, True], [False] * 4, [True] * 4])


def case(num_heads: int):
    torch.manual_seed(0)
    flow = CrossFlow(6, 2, num_heads).double()
    readers = [torch.randn(3, p, 6, dtype=torch.float64, requires_grad=True) for p in (2, 1)]
    tokens = torch.randn(3, 4, 6, dtype=torch.float64, requires_grad=True)
    return flow, readers, tokens


def padded(tokens):
    return GatedTokens(tokens * VALID[..., None], valid=VALID)


def plain(flow, readers, tokens):
    rows = []
    for row in range(len(tokens)):
        seen = [x for x, v in zip(tokens[row], VALID[row], strict=True) if v]
        rows.append([paper.multi_head(flow, g, list(r[row]), seen) for g, r in enumerate(readers)])
    return [torch.stack([torch.stack(row[g]) for row in rows]) for g in range(len(readers))]


@pytest.mark.parametrize("num_heads", [1, 3])
def test_cross_flow_is_the_papers_attention_forward_and_backward(num_heads):
    flow, readers, tokens = case(num_heads)
    ours = flow(readers, padded(tokens))
    expected = plain(flow, readers, tokens)
    torch.testing.assert_close(ours, expected)
    probes = [torch.randn_like(x) for x in ours]
    inputs = [*readers, tokens, *flow.parameters()]
    torch.testing.assert_close(
        torch.autograd.grad(sum((x * p).sum() for x, p in zip(ours, probes, strict=True)), inputs),
        torch.autograd.grad(
            sum((x * p).sum() for x, p in zip(expected, probes, strict=True)), inputs
        ),
    )


def test_cross_flow_passes_gradcheck_with_an_empty_row():
    flow, readers, tokens = case(2)
    assert torch.autograd.gradcheck(
        lambda a, b, x: tuple(flow([a, b], padded(x))), (*readers, tokens)
    )


def test_a_row_without_valid_tokens_reads_zero_and_sends_no_gradient():
    flow, readers, tokens = case(1)
    read = flow(readers, padded(tokens))
    sum(x.sum() for x in read).backward()
    assert all(x[1].eq(0).all() for x in read)
    assert tokens.grad[1].eq(0).all()


def test_a_source_of_no_tokens_at_all_reads_zero():
    flow, readers, tokens = case(1)
    read = flow(readers, GatedTokens(tokens[:, :0], valid=VALID[:, :0]))
    assert all(x.eq(0).all() for x in read)
    sum(x.sum() for x in read).backward()
    assert all(p.grad.isfinite().all() for p in flow.parameters())


def test_cross_flow_never_multiplies_tokens_by_a_matrix():
    """The cost per token and reading vector is 4 D flops (score and sum), whatever D² would be."""
    from torch.utils.flop_counter import FlopCounterMode

    flow, readers, _ = case(1)
    counts = []
    for tokens in (10, 20):
        with FlopCounterMode(display=False) as counter:
            flow(readers, GatedTokens(torch.randn(3, tokens, 6, dtype=torch.float64)))
        counts.append(counter.get_total_flops())
    rows, vectors, dim = 3, 3, 6
    assert counts[1] - counts[0] == 10 * rows * vectors * 4 * dim
