"""Every family: packed rows are read as if each text stood alone, and low-rank changes merge."""

import numpy as np
import pytest
import torch

from layer_select.decoder import Decoder
from layer_select.heal import adapters
from layer_select.heal.recommender import Recommender
from layer_select.pretrain.texts import NONE, Text, packed
from layer_select.task.head import mean_embeddings
from tests.layer_select.families import CONFIGS, VOCABULARY, small_batch, small_model

FAMILIES = sorted(CONFIGS)
TITLES = [[5, 9], [7], [11, 12, 13]]


def texts_of(seed=0):
    rng = np.random.default_rng(seed)
    lengths = (9, 6, 5, 7, 3)
    ids = [rng.integers(3, VOCABULARY, length).tolist() for length in lengths]
    return [Text(one, [NONE] * len(one), [NONE] * len(one)) for one in ids]


@pytest.mark.parametrize("family", FAMILIES)
def test_texts_of_a_row_do_not_see_each_other(family):
    decoder = Decoder(small_model(family))
    recommender = Recommender(decoder, torch.eye(decoder.config.hidden_size), TITLES)
    rows = packed(texts_of(), 16, np.random.default_rng(0))
    assert len(rows) < len(texts_of())
    with torch.no_grad():
        together = recommender.see(rows, [1])
        for row in range(len(rows)):
            for number in range(1, int(rows.text[row].max()) + 1):
                there = rows.text[row] == number
                ids = rows.ids[row][there][None]
                start = decoder.start(ids, torch.ones_like(ids))
                after = decoder.through(start, range(2))
                alone = decoder.finish(decoder.through(start))
                found = together.normed[row][there], together.after[1][row][there]
                torch.testing.assert_close(found[0], alone[0], rtol=1e-4, atol=1e-5)
                torch.testing.assert_close(found[1], after[0], rtol=1e-4, atol=1e-5)
        expected = mean_embeddings(decoder.body.embed_tokens, TITLES)
    torch.testing.assert_close(recommender.vectors(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_low_rank_changes_merge_into_every_family(family):
    model = small_model(family)
    names = list(model.state_dict())
    ids, mask = small_batch()
    with torch.no_grad():
        before = model(input_ids=ids, attention_mask=mask).logits[mask == 1]
    count = adapters.attach(model, rank=4, alpha=8.0, seed=0)
    experts = 2 if family in ("qwen3_moe", "gpt_oss") else 0
    assert count == 6 * (4 + (experts or 3))
    learning = [name for name, p in model.named_parameters() if p.requires_grad]
    assert len(learning) == 2 * count
    with torch.no_grad():
        unchanged = model(input_ids=ids, attention_mask=mask).logits[mask == 1]
        torch.testing.assert_close(unchanged, before, rtol=0, atol=0)
        generator = torch.Generator().manual_seed(1)
        for name, parameter in model.named_parameters():
            if name in learning:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        changed = model(input_ids=ids, attention_mask=mask).logits[mask == 1]
    loss = model(input_ids=ids, attention_mask=mask).logits[mask == 1].square().mean()
    gradients = torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad])
    assert all(bool(g.abs().sum() > 0) for g in gradients)
    adapters.merge(model)
    assert sorted(model.state_dict()) == sorted(names)
    assert not [m for m in model.modules() if m._forward_hooks]
    with torch.no_grad():
        merged = model(input_ids=ids, attention_mask=mask).logits[mask == 1]
    assert float((merged - before).abs().max()) > 1e-3
    torch.testing.assert_close(merged, changed, rtol=1e-5, atol=1e-5)
