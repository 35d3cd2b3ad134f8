"""Candidates scored by log-likelihood, the prompt encoded once for all of them.

    score(c) = Σ_s log p(c_s | prompt, c_<s)        length-normalised: divided by the tokens of c

Only the candidates' own tokens run after the prompt's keys and values, which is the same number as
if each were scored alone behind the whole prompt: positions and masks are those of the whole text.
"""

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float64
from torch import Tensor

from rayrun.config import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@torch.no_grad()
def candidate_log_likelihood(
    model: "PreTrainedModel",
    prompt: Sequence[int],
    candidates: Sequence[Sequence[int]],
    *,
    normalise: bool = False,
    at_once: int = 64,
) -> Float64[Tensor, " C"]:
    """Log-likelihood of every candidate after the prompt, in nats (per token with `normalise`).

    Args:
        model: a causal language model in evaluation mode.
        prompt: token ids, at least one.
        candidates: token ids of each, the mark that ends a title included.
        normalise: divide by the number of the candidate's tokens.
        at_once: candidates of one forward pass.

    Raises:
        ConfigError: the prompt or a candidate is empty.
    """
    from transformers import DynamicCache

    if not prompt or not all(candidates):
        what = "the prompt" if not prompt else f"candidate {[len(c) for c in candidates].index(0)}"
        raise ConfigError(
            f"{what} has no tokens; candidates are scored after at least one token, and need one"
        )
    embed: Any = model.get_input_embeddings()
    device = embed.weight.device
    ids = torch.tensor([list(prompt)], device=device)
    begun: Any = model(
        input_ids=ids, past_key_values=DynamicCache(config=model.config), logits_to_keep=1
    )
    first = _log_softmax(begun.logits[0, -1])
    found = torch.empty(len(candidates), dtype=torch.float64, device=device)
    # Equal lengths together: nothing is padded, and a family with a sliding window stays exact.
    order = sorted(range(len(candidates)), key=lambda c: len(candidates[c]))
    start = 0
    while start < len(order):
        length = len(candidates[order[start]])
        end = start
        while end < len(order) and end - start < at_once and len(candidates[order[end]]) == length:
            end += 1
        rows = torch.tensor([list(candidates[c]) for c in order[start:end]], device=device)
        total = first[rows[:, 0]]
        if length > 1:
            cache = copy.deepcopy(begun.past_key_values)
            cache.batch_repeat_interleave(len(rows))
            following: Any = model(input_ids=rows[:, :-1], past_key_values=cache)
            chances = _log_softmax(following.logits)
            total = total + chances.gather(2, rows[:, 1:, None])[..., 0].sum(1)
        found[order[start:end]] = total / (length if normalise else 1)
        start = end
    return found


def _log_softmax(logits: Tensor) -> Tensor:
    return logits.double().log_softmax(-1)
