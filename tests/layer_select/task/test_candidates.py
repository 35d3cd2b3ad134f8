"""Candidates behind a prompt that is encoded once score as they do alone."""

import pytest
import torch
from families import CONFIGS, small_batch, small_model

from layer_select.task.candidates import candidate_log_likelihood
from rayrun.config import ConfigError

PROMPT = small_batch()[0][0].tolist()
CANDIDATES = [[7], [9, 4, 3], [5, 5], [9, 4, 8], [11, 3, 20, 31, 6], [12, 40]]


@pytest.mark.parametrize("family", CONFIGS)
def test_a_shared_prefix_changes_no_score(family):
    model = small_model(family)
    found = candidate_log_likelihood(model, PROMPT, CANDIDATES, at_once=2)
    for candidate, score in zip(CANDIDATES, found.tolist(), strict=True):
        with torch.no_grad():
            ids = torch.tensor([PROMPT + candidate])
            chances = model(input_ids=ids).logits[0].double().log_softmax(-1)
        at = range(len(PROMPT) - 1, len(PROMPT) - 1 + len(candidate))
        alone = sum(float(chances[k, token]) for k, token in zip(at, candidate, strict=True))
        assert score == pytest.approx(alone, abs=1e-5)


def test_the_order_of_candidates_changes_nothing_and_length_is_divided_out():
    model = small_model("llama")
    found = candidate_log_likelihood(model, PROMPT, CANDIDATES)
    order = [3, 0, 5, 2, 4, 1]
    turned = candidate_log_likelihood(model, PROMPT, [CANDIDATES[c] for c in order])
    torch.testing.assert_close(turned, found[order], rtol=0, atol=1e-6)
    lengths = torch.tensor([float(len(c)) for c in CANDIDATES])
    normalised = candidate_log_likelihood(model, PROMPT, CANDIDATES, normalise=True)
    torch.testing.assert_close(normalised, found / lengths, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("prompt", "candidates", "what"),
    [([], [[1]], "the prompt"), ([1], [[1], []], "candidate 1")],
)
def test_nothing_cannot_be_scored(prompt, candidates, what):
    with pytest.raises(ConfigError, match=f"{what} has no tokens; candidates are scored after"):
        candidate_log_likelihood(small_model("llama"), prompt, candidates)
