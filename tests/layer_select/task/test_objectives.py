"""Losses, metrics and draws against plain loops in float64.

Batches are padded on the left, so that rotary positions (float32 tables) differ: hence 1e-6.
"""

import math
from dataclasses import replace

import pytest
import torch
from families import small_model
from safetensors.torch import save

from layer_select.decoder import Decoder
from layer_select.task.config import HeadTask, LikelihoodTask, YesNoTask
from layer_select.task.run import open_task
from rayrun.config import ConfigError

SIZES = {
    "calibration": 20,
    "validation": 20,
    "test": 30,
    "micro_batch": 7,
    "max_history": 5,
    "max_tokens": 60,
}
VOCABULARY = 97


@pytest.fixture(scope="module")
def decoder():
    return Decoder(small_model("llama").double())


@pytest.fixture(scope="module")
def projection():
    return torch.randn(32, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture
def opened(titled_data, tokenizer, projection):
    def make(task, **changes):
        given = {"vocab_size": VOCABULARY, "item_head": save({"projection": projection}), **changes}
        return open_task(titled_data, task, tokenizer=tokenizer, **given)

    return make


def normed_of(decoder, batch):
    with torch.no_grad():
        return decoder.finish(decoder.through(decoder.start(batch.ids, batch.mask)))


def alone(decoder, tokens):
    """Logits and hidden states of one unpadded text by the Hugging Face model."""
    ids = torch.tensor([tokens])
    with torch.no_grad():
        hidden = decoder.body(input_ids=ids).last_hidden_state[0]
    return hidden, decoder.model.lm_head(hidden)


def batches_with_samples(task, part="test"):
    for batch in task.batches(part):
        for row, number in enumerate(batch.sample.tolist()):
            yield batch, row, task.samples[part][number]


def test_the_head_is_the_brute_force_rank_over_the_catalogue(decoder, projection, opened):
    task = opened(HeadTask(**SIZES))
    objective = task.objective(decoder)
    table, titles = decoder.body.embed_tokens.weight.detach(), task.sequences.titles
    tokens = [task.prompts._tokenizer(t, add_special_tokens=False)["input_ids"] for t in titles]
    vectors = [sum(table[t] for t in ids) / len(ids) @ projection for ids in tokens]
    checked = 0
    for batch, row, sample in batches_with_samples(task):
        normed = normed_of(decoder, batch)
        hidden, _ = alone(decoder, task.prompts.of(sample.history))
        scores = [float(hidden[-1] @ vector) for vector in vectors]
        own = scores[sample.item]
        rank = sum(score >= own for score in scores)
        loss = math.log(sum(math.exp(score - own) for score in scores))
        assert float(objective.loss(normed, batch)[row]) == pytest.approx(loss, rel=1e-6)
        found = {
            name: float(value[row]) for name, value in objective.metrics(normed, batch).items()
        }
        gain = 1 / math.log2(1 + rank)
        assert found == pytest.approx(
            {
                "mrr": 1 / rank,
                "ndcg@5": gain * (rank <= 5),
                "ndcg@10": gain * (rank <= 10),
                "hr@5": float(rank <= 5),
                "hr@10": float(rank <= 10),
            }
        )
        checked += 1
    assert checked == 30


def test_ties_and_values_that_are_no_numbers_count_against_us():
    from layer_select.task.ranking import ranks

    scores = torch.tensor([[1.0, 1.0, 1.0], [2.0, 1.0, 2.0], [float("nan")] * 3])
    assert ranks(scores, torch.tensor([0, 0, 2])).tolist() == [3, 2, 3]


def test_yes_no_is_the_cross_entropy_of_two_answers(decoder, opened):
    task = opened(YesNoTask(**SIZES))
    objective = task.objective(decoder)
    no, yes = (task.prompts._tokenizer.convert_tokens_to_ids(letter) for letter in "ny")
    labels = []
    for batch, row, sample in batches_with_samples(task):
        normed = normed_of(decoder, batch)
        _, logits = alone(decoder, task.prompts.of(sample.history, sample.item))
        pair = [float(logits[-1, no]), float(logits[-1, yes])]
        loss = math.log1p(math.exp(pair[1 - sample.label] - pair[sample.label]))
        assert float(objective.loss(normed, batch)[row]) == pytest.approx(loss, rel=1e-6)
        right = objective.metrics(normed, batch)["accuracy"][row]
        assert float(right) == float(pair[sample.label] > pair[1 - sample.label])
        history = task.sequences.histories[sample.user]
        assert (sample.item in history) == (sample.label == 1)
        labels.append(sample.label)
    assert 0 < sum(labels) < len(labels)


def test_likelihood_is_the_sum_over_the_tokens_of_the_title(decoder, opened):
    task = opened(LikelihoodTask(**SIZES))
    objective = task.objective(decoder)
    for batch, row, sample in batches_with_samples(task):
        normed = normed_of(decoder, batch)
        prompt = task.prompts.of(sample.history)
        title = task.prompts.items[sample.item]
        _, logits = alone(decoder, prompt + title)
        chances = logits.log_softmax(-1)
        each = [float(chances[len(prompt) - 1 + k, token]) for k, token in enumerate(title)]
        assert float(objective.loss(normed, batch)[row]) == pytest.approx(-sum(each), rel=1e-6)
        mean = objective.metrics(normed, batch)["token_nll"][row]
        assert float(mean) == pytest.approx(-sum(each) / len(each), rel=1e-6)


@pytest.mark.parametrize("kind", [HeadTask, YesNoTask, LikelihoodTask])
def test_drawn_targets_follow_the_models_own_distribution(decoder, opened, kind):
    task = opened(kind(**SIZES))
    objective = task.objective(decoder)
    batch = task.batches("test")[1]
    normed = normed_of(decoder, batch)
    generator = torch.Generator().manual_seed(0)
    draws = [objective.drawn(normed, batch, generator) for _ in range(600)]
    surprise = torch.stack([objective.loss(normed, drawn) for drawn in draws])
    # E[−log p(y)] of y ~ p is the entropy of p: what the loss of drawn targets must average to.
    if kind is LikelihoodTask:
        chances = objective.log_probabilities(normed, batch)
        entropy = (-(chances.exp() * chances).sum(-1) * batch.target_valid).sum(1)
    else:
        chances = objective.scores(normed).log_softmax(-1)
        entropy = -(chances.exp() * chances).sum(-1)
    error = surprise.std(0) / math.sqrt(len(draws))
    assert ((surprise.mean(0) - entropy).abs() <= 5 * error + 1e-12).all()
    same = (replace(draws[0], target=batch.target, target_ids=batch.target_ids), batch)
    assert torch.equal(same[0].ids, same[1].ids)


def test_the_loss_is_differentiable_and_its_metrics_are_not(decoder, opened):
    for kind in (HeadTask, YesNoTask, LikelihoodTask):
        task = opened(kind(**SIZES))
        batch = task.batches("calibration")[0]
        normed = normed_of(decoder, batch).requires_grad_()
        objective = task.objective(decoder)
        loss = objective.loss(normed, batch)
        assert loss.shape == (batch.size,)
        (gradient,) = torch.autograd.grad(loss.sum(), normed)
        assert gradient.abs().sum() > 0
        assert not any(v.requires_grad for v in objective.metrics(normed, batch).values())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"x", r"item_head.safetensors is damaged .* make the model again with pretrain-tiny"),
        (
            save({"projection": torch.zeros(3, 3)}),
            r"must hold 'projection' of shape \[32, 32\], the model's width; it holds "
            r"\{'projection': \[3, 3\]\}. It belongs to another model",
        ),
    ],
)
def test_an_item_head_of_another_model_is_refused(decoder, opened, content, message):
    with pytest.raises(ConfigError, match=message):
        opened(HeadTask(**SIZES), item_head=content).objective(decoder)
