"""Gradients of single samples against a backward pass for each sample."""

import pytest
import torch

from layer_select.decoder import Decoder
from layer_select.importance.fisher import Fisher
from layer_select.importance.gradient_norm import GradientNorm
from layer_select.importance.gradients import formed, square_by_grams
from layer_select.importance.method import Gathered
from layer_select.importance.one_pass import OnePass
from layer_select.importance.taylor import Taylor
from layer_select.task.batch import TaskBatch
from rayrun.ray.worker import SingleWorker
from tests.layer_select.importance.simple import LastToken, batches, small_decoder

FAMILIES = ("llama", "gemma3", "qwen2", "qwen3_moe", "gpt_oss")


def measured(decoder: Decoder, tmp_path, scale: float = 1.0) -> Gathered:
    methods = (Fisher(), GradientNorm(), Taylor())
    observers = {m.type: m.observer() for m in methods}
    worker = SingleWorker(tmp_path)
    return OnePass(decoder, LastToken(decoder, scale), observers, worker).run(batches())[0]


def one_by_one(decoder: Decoder) -> list[list[dict[str, torch.Tensor]]]:
    """By sample and layer: the gradient of every parameter, by autograd, a batch of one at a time."""
    decoder.model.requires_grad_(True)
    found = []
    for batch in batches():
        for row in range(batch.size):
            one = TaskBatch(*(part[row : row + 1] for part in list(vars(batch).values())[:4]))
            last = decoder.through(decoder.start(one.ids, one.mask))
            decoder.model.zero_grad(set_to_none=True)
            LastToken(decoder).loss(decoder.finish(last), one).sum().backward()
            found.append(
                [
                    {n: p.grad.double() for n, p in block.named_parameters() if p.grad is not None}
                    for block in decoder.blocks
                ]
            )
    decoder.model.requires_grad_(False)
    return found


@pytest.mark.parametrize(
    ("family", "dtype", "tolerance"),
    [
        *((family, torch.float32, 1e-5) for family in FAMILIES),
        # Norms and softmax of transformers are float32 even in a float64 model. Where a norm's
        # scale is float32 too (Gemma), so are gradients; elsewhere both ways round alike.
        ("llama", torch.float64, 1e-10),
        ("qwen2", torch.float64, 1e-10),
        ("qwen3_moe", torch.float64, 1e-10),
        ("gpt_oss", torch.float64, 1e-10),
        ("gemma3", torch.float64, 1e-6),
    ],
)
def test_sums_over_gradients_equal_those_of_a_loop_over_samples(family, dtype, tolerance, tmp_path):
    decoder = small_decoder(family, dtype)
    found = measured(decoder, tmp_path)
    gradients = one_by_one(decoder)
    weights = [
        {n: p.detach().double() for n, p in block.named_parameters()} for block in decoder.blocks
    ]

    def close(ours, expected):
        expected = torch.tensor(expected, dtype=torch.float64)
        torch.testing.assert_close(ours, expected, rtol=tolerance, atol=0)

    squares = [[sum(float(g.square().sum()) for g in at.values()) for at in n] for n in gradients]
    close(found.values["fisher.0"], squares)
    close(found.values["gradient_norm"].square(), squares)
    absolutes = [
        [
            sum(float((g * w[name]).abs().sum()) for name, g in at.items())
            for at, w in zip(n, weights, strict=True)
        ]
        for n in gradients
    ]
    close(found.values["taylor"], absolutes)
    signed = []
    for layer, weight in enumerate(weights):
        total = 0.0
        for name, value in weight.items():
            own = [n[layer][name] for n in gradients if name in n[layer]]
            total += float((sum(own) * value).abs().sum()) if own else 0.0
        signed.append(total)
    close(found.signed_all, signed)


def test_fisher_is_not_the_square_of_the_batch_gradient(tmp_path):
    decoder = small_decoder("llama")
    fisher = Fisher().observer().found(measured(decoder, tmp_path))["fisher"].scores
    gradients = one_by_one(decoder)
    summed = [
        sum(
            float(sum(n[layer][name] for n in gradients).square().sum())
            for name in gradients[0][layer]
        )
        for layer in range(decoder.num_layers)
    ]
    other = torch.tensor(summed, dtype=torch.float64) / len(gradients)
    assert ((fisher - other).abs() / fisher).min() > 0.01


def test_a_loss_times_c_gives_c_squared_times_the_fisher_information(tmp_path):
    decoder = small_decoder("llama", torch.float64)
    once = measured(decoder, tmp_path).values["fisher.0"]
    more = measured(decoder, tmp_path, scale=4.0).values["fisher.0"]  # rounds alike
    torch.testing.assert_close(more, 16 * once, rtol=1e-12, atol=0)


def test_norms_and_signed_sums_obey_their_inequalities(tmp_path):
    decoder = small_decoder("qwen3")
    gathered = measured(decoder, tmp_path)
    found = {
        key: value
        for method in (Fisher(), GradientNorm(), Taylor())
        for key, value in method.observer().found(gathered).items()
    }
    samples = len(found["taylor"].samples)
    assert (found["gradient_norm"].scores ** 2 < found["fisher"].scores).all()
    assert (found["taylor_signed"].scores < samples * found["taylor"].scores).all()
    assert (found["taylor_signed"].errors > 0).all()


def test_grams_and_formed_gradients_have_the_same_square():
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(2, 5, 7, generator=generator, dtype=torch.float64)
    d = torch.randn(2, 5, 3, generator=generator, dtype=torch.float64)
    loops = torch.zeros(2, 3, 7, dtype=torch.float64)
    for n in range(2):
        for t in range(5):
            loops[n] += torch.outer(d[n, t], a[n, t])
    torch.testing.assert_close(formed(a, d), loops, rtol=1e-12, atol=0)
    expected = loops.square().sum((1, 2))
    torch.testing.assert_close(square_by_grams(a, d), expected, rtol=1e-12, atol=0)


def test_drawn_labels_are_the_same_for_any_order_and_not_the_observed_ones(tmp_path):
    decoder = small_decoder("llama")
    method = Fisher(monte_carlo=True, draws=2)

    def score(parts):
        one_pass = OnePass(
            decoder, LastToken(decoder), {"f": method.observer()}, SingleWorker(tmp_path)
        )
        return method.observer().found(one_pass.run(parts)[0])["fisher_monte_carlo"].samples

    torch.testing.assert_close(score(batches()), score(batches()), rtol=0, atol=0)
    assert (score(batches()) - measured(decoder, tmp_path).values["fisher.0"]).abs().min() > 0


def test_a_measurement_that_is_not_finite_is_refused(tmp_path):
    decoder = small_decoder("llama")
    with torch.no_grad():
        decoder.blocks[3].mlp.down_proj.weight[0, 0] = float("inf")
    with pytest.raises(ValueError, match=r"must be finite on every sample, micro-batch 0 has"):
        measured(decoder, tmp_path)
