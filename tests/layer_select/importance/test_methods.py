"""Each method's definition: invariances, limits, finite differences, references written out."""

import math

import pytest
import torch

from layer_select.importance.angular import Angular, angular_distances
from layer_select.importance.attention_concentration import concentration
from layer_select.importance.block_influence import block_influence
from layer_select.importance.cka import alignment, hsic
from layer_select.importance.gate_taylor import GateTaylor
from layer_select.importance.hybrid import Hybrid, fitted, simplex
from layer_select.importance.method import Found
from layer_select.importance.one_pass import OnePass
from layer_select.importance.random import Random
from layer_select.importance.ranks import ranks, spearman
from rayrun.config import ConfigError
from rayrun.ray.worker import SingleWorker
from tests.layer_select.importance.simple import LastToken, batches, small_decoder


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotation(size: int) -> torch.Tensor:
    return torch.linalg.qr(drawn(size, size, seed=9)).Q


# Gates


def test_gate_taylor_is_the_derivative_of_a_gate_at_one(tmp_path):
    decoder = small_decoder("llama", torch.float64)
    observer = GateTaylor().observer()
    one_pass = OnePass(decoder, LastToken(decoder), {"g": observer}, SingleWorker(tmp_path))
    found = observer.found(one_pass.run(batches())[0])["gate_taylor"].samples

    def losses(gates: torch.Tensor, batch) -> torch.Tensor:
        start = decoder.start(batch.ids, batch.mask)
        x = start.hidden
        for layer, block in enumerate(decoder.blocks):
            x = x + gates[layer] * (block(x, **start.calls[layer]) - x)
        return LastToken(decoder).loss(decoder.finish(x), batch)

    ones = torch.ones(decoder.num_layers, dtype=torch.float64)
    step = 3e-3
    for batch in batches():
        jacobian = torch.autograd.functional.jacobian(lambda g, b=batch: losses(g, b), ones)
        torch.testing.assert_close(found[batch.sample], -jacobian, rtol=1e-6, atol=1e-8)
        for layer in (0, 5):
            moved = step * torch.nn.functional.one_hot(torch.tensor(layer), 6)
            slope = (losses(ones + moved, batch) - losses(ones - moved, batch)) / (2 * step)
            torch.testing.assert_close(found[batch.sample, layer], -slope, rtol=1e-3, atol=1e-5)


# The residual stream


def test_block_influence_ignores_scale_rotation_and_padding_and_is_clamped():
    x, y = drawn(2, 5, 8), drawn(2, 5, 8, seed=1)
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
    found = block_influence(x, y, mask)
    turn = rotation(8)
    torch.testing.assert_close(block_influence(3 * x @ turn, 0.5 * y @ turn, mask), found)
    changed = x.clone()
    changed[1, :2] = 0
    torch.testing.assert_close(block_influence(changed, y, mask), found, rtol=0, atol=0)
    cosines = [torch.nn.functional.cosine_similarity(x[n], y[n], dim=-1) for n in (0, 1)]
    expected = torch.stack([1 - cosines[0].mean(), 1 - cosines[1][2:].mean()])
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    nothing = torch.zeros(2, dtype=torch.float64)
    torch.testing.assert_close(block_influence(x, 2 * x, mask), nothing, rtol=0, atol=1e-15)
    assert (block_influence(x, x, mask) >= 0).all()
    torch.testing.assert_close(block_influence(x, -x, mask), nothing + 2)


def test_a_zero_state_has_no_direction():
    x = drawn(1, 3, 4)
    y = x.clone()
    y[0, 1] = 0
    with pytest.raises(
        ValueError, match="hidden states must be non-zero at real tokens, and every"
    ):
        block_influence(x, y, torch.ones(1, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match="hidden states must be non-zero at real tokens; a zero"):
        angular_distances(torch.stack([x[0], y[0]], 1))


def test_angles_are_those_of_plane_geometry():
    degrees = torch.tensor([0.0, 45.0, 90.0, 180.0], dtype=torch.float64) * math.pi / 180
    stream = torch.stack([degrees.cos(), degrees.sin()], 1)[None]
    expected = (degrees[:, None] - degrees).abs() / math.pi
    torch.testing.assert_close(angular_distances(stream)[0], expected, rtol=0, atol=1e-8)
    moved = torch.tensor([[[2.0], [0.1], [7.0], [1.0]]], dtype=torch.float64) * stream @ rotation(2)
    torch.testing.assert_close(
        angular_distances(moved), angular_distances(stream), rtol=0, atol=1e-7
    )


def test_angles_are_averaged_and_not_cosines(tmp_path):
    decoder = small_decoder("qwen3")
    found = {}
    for tokens in ("last", "all"):
        observer = Angular(tokens=tokens).observer()
        one_pass = OnePass(decoder, LastToken(decoder), {"a": observer}, SingleWorker(tmp_path))
        found[tokens] = observer.found(one_pass.run(batches())[0])["angular"]
    rows: list[torch.Tensor] = []
    last: list[torch.Tensor] = []
    with torch.no_grad():
        for batch in batches():
            start = decoder.start(batch.ids, batch.mask)
            states = [decoder.through(start, range(k)).double() for k in range(7)]
            for n in range(batch.size):
                real = batch.mask[n].bool()
                unit = [torch.nn.functional.normalize(x[n][real], dim=-1) for x in states]
                angles = torch.stack(
                    [torch.stack([(a * b).sum(-1).clamp(-1, 1).arccos() for b in unit]) for a in unit]
                ) / math.pi  # fmt: skip
                rows.append(angles.mean(-1))
                last.append(angles[..., -1])
    torch.testing.assert_close(
        found["all"].pairs["angular"], torch.stack(rows).mean(0), rtol=1e-6, atol=1e-6
    )
    torch.testing.assert_close(
        found["last"].pairs["angular"], torch.stack(last).mean(0), rtol=1e-6, atol=1e-6
    )
    for one in found.values():
        torch.testing.assert_close(one.scores, one.pairs["angular"].diagonal(1))


def test_cka_ignores_rotation_scale_and_shift():
    x = drawn(30, 6)
    y = torch.tanh(x @ drawn(6, 5, seed=1))
    plain = alignment(hsic_of(x, y))
    moved = alignment(hsic_of(4 * x @ rotation(6) + 3, y))
    torch.testing.assert_close(moved, plain, rtol=1e-9, atol=1e-12)
    assert 0.1 < plain[0, 1] < 0.95
    same = alignment(hsic_of(x, 0.1 * x @ rotation(6)))
    torch.testing.assert_close(same, torch.ones(2, 2, dtype=torch.float64))


def hsic_of(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    width = max(x.shape[1], y.shape[1])
    wide = [torch.nn.functional.pad(z, (0, width - z.shape[1])) for z in (x, y)]
    return hsic(torch.stack(wide))


def test_hsic_is_the_mean_over_all_quadruples_of_different_tokens():
    """The U-statistic that the closed form equals (Song et al. 2012), written out."""
    x, y = drawn(6, 3), drawn(6, 3, seed=1)
    gram_x, gram_y = x @ x.T, y @ y.T
    total, count = 0.0, 0
    for i in range(6):
        for j in range(6):
            for q in range(6):
                for r in range(6):
                    if len({i, j, q, r}) == 4:
                        total += gram_x[i, j] * (gram_y[i, j] + gram_y[q, r] - 2 * gram_y[i, q])
                        count += 1
    torch.testing.assert_close(hsic_of(x, y)[0, 1], total / count, rtol=1e-9, atol=0)


def test_hsic_of_independent_states_is_zero_on_average_even_in_many_dimensions():
    values = torch.stack(
        [hsic_of(drawn(8, 40, seed=s), drawn(8, 40, seed=s + 500)) for s in range(200)]
    )
    own, other = values[:, 0, 0], values[:, 0, 1]
    assert abs(other.mean()) < 4 * other.std() / len(other) ** 0.5
    assert other.mean().abs() < 0.05 * own.mean()


def test_cka_says_what_it_needs():
    with pytest.raises(ValueError, match="at least 4 real tokens in every micro-batch, found 3"):
        hsic(drawn(2, 3, 4))
    with pytest.raises(ValueError, match=r"vary over tokens; those at position\(s\) \[1\]"):
        alignment(hsic_of(drawn(8, 4), torch.ones(8, 4, dtype=torch.float64)))


# Attention


def test_uniform_attention_scores_zero_and_one_key_scores_one():
    visible = torch.ones(6, 6, dtype=torch.bool).tril()
    uniform = (visible / visible.sum(-1, keepdim=True).double())[None]
    assert concentration(uniform, visible).abs() < 1e-12
    one_hot = torch.zeros(2, 6, 6, dtype=torch.float64)
    one_hot[..., 0] = 1
    assert (concentration(one_hot, visible) - 1).abs() < 1e-12


@pytest.mark.parametrize("first", [0, 2])
def test_sinks_that_the_softmax_knows_are_renormalised_and_first_tokens_can_be_left_out(first):
    """`first`: tokens of padding."""
    visible = torch.ones(8, 8, dtype=torch.bool).tril()[first:] & (torch.arange(8) >= first)
    weights = drawn(3, len(visible), 8).masked_fill(~visible, -1e30).softmax(-1)
    found = concentration(weights, visible)
    torch.testing.assert_close(concentration(0.4 * weights, visible), found)
    values = []
    for head in range(3):
        for row in range(1, len(visible)):
            a = weights[head, row, first : first + row + 1]
            values.append(1 + (a * a.log()).sum() / math.log(len(a)))
    torch.testing.assert_close(found, torch.stack(values).mean(), rtol=1e-9, atol=0)
    inflated = weights.clone()
    inflated[:, :, 2] += 50
    assert concentration(inflated / inflated.sum(-1, keepdim=True), visible) > found + 0.3
    keys = visible & (torch.arange(8) >= first + 4)
    inflated[:, :, : first + 4] += 50
    torch.testing.assert_close(concentration(inflated, keys), concentration(weights, keys))


def test_attention_over_too_few_keys_is_refused():
    visible = torch.ones(1, 1, dtype=torch.bool)
    with pytest.raises(ValueError, match="two visible tokens beyond the sinks, found one whose"):
        concentration(torch.ones(1, 1, 1), visible)


# Ranks and the hybrid


def test_ranks_share_ties_and_agree_with_scipy():
    import scipy.stats

    values = torch.tensor([3.0, 1.0, 1.0, 7.0, 3.0, 3.0])
    other = drawn(6)
    assert ranks(values).tolist() == scipy.stats.rankdata(values).tolist()
    assert spearman(values, other) == pytest.approx(scipy.stats.spearmanr(values, other).statistic)
    assert spearman(values, torch.ones(6)) is None


def mean_of(samples: torch.Tensor) -> Found:
    return Found.mean(samples)


def test_the_hybrid_averages_ranks_whatever_the_units():
    found = {key: mean_of(drawn(20, 5, seed=s)) for s, key in enumerate(("a", "b", "c"))}
    method = Hybrid(weights={"a": 5, "b": 3, "c": 2})
    scores = method.combined(found, 5)["hybrid"].scores
    expected = sum(w * ranks(found[k].scores) for k, w in (("a", 0.5), ("b", 0.3), ("c", 0.2))) / 5
    torch.testing.assert_close(scores, expected)
    stretched = {**found, "a": mean_of(1e6 * found["a"].samples)}
    torch.testing.assert_close(method.combined(stretched, 5)["hybrid"].scores, scores)


def test_fitted_weights_find_the_method_that_agrees_and_tell_it_on_other_samples():
    truth = torch.arange(8, dtype=torch.float64)
    samples = truth + 0.1 * drawn(50, 8)
    noise = {f"n{s}": mean_of(drawn(50, 8, seed=s)) for s in (3, 4)}
    found = {"good": mean_of(3 * samples), **noise, "leave_one_out": mean_of(samples)}
    method = Hybrid(weights={"n3": 1, "good": 1, "n4": 1}, fit="leave_one_out")
    one = method.combined(found, 8)["hybrid_fitted"]
    assert one.details["weights"]["good"] >= 0.5
    assert one.details["spearman"] == pytest.approx(1.0)
    assert one.details["held_out"] > 0.95
    assert spearman(one.scores, truth) == pytest.approx(1.0)


def test_the_grid_of_weights_is_whole_and_prefers_even_ones():
    grid = torch.stack(simplex(3, 10))
    assert len(grid) == math.comb(12, 2)
    assert torch.allclose(grid.sum(1), torch.ones(1, dtype=torch.float64))
    same = ranks(drawn(5)).expand(2, 5)
    assert fitted(same, same[0])[0].tolist() == [0.5, 0.5]


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (
            Hybrid(weights={"a": 1, "z": 1}),
            r"hybrid needs the scores z, which score.methods does not",
        ),
        (
            Hybrid(weights={"a": 1}, fit="rough"),
            r"hybrid.fit needs scores that are means .*; rough",
        ),
        (
            Hybrid(weights={"a": 1}, fit="b", folds=9),
            r"hybrid.folds \(9\) must be at most .* \(4\)",
        ),
    ],
)
def test_a_hybrid_says_what_it_needs(method, message):
    found = {"a": mean_of(drawn(4, 5)), "b": mean_of(drawn(4, 5))}
    found["rough"] = Found(found["a"].scores, found["a"].errors)
    with pytest.raises(ConfigError, match=message):
        method.combined(found, 5)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"weights": {"a": 0.0}}, "at least one method with a weight above 0"),
        ({"weights": {"a": 1.0}, "fit": "a"}, r"fit \(a\) must not be one of the methods"),
    ],
)
def test_a_hybrid_of_nothing_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        Hybrid(**values)


def test_a_random_order_follows_its_seed():
    orders = [Random(seed=s).combined({}, 9)["random"].scores for s in (0, 0, 1)]
    assert torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[0], orders[2])
