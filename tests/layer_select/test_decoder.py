import pytest
import torch
from torch import nn

from layer_select.decoder import Decoder
from tests.layer_select.families import CONFIGS, LAYERS, small_batch, small_model


@pytest.mark.parametrize("family", CONFIGS)
@torch.no_grad()
def test_block_by_block_is_the_model_itself(family: str) -> None:
    model = small_model(family)
    ids, mask = small_batch()
    expected = model(input_ids=ids, attention_mask=mask).logits
    decoder = Decoder(model)
    start = decoder.start(ids, mask)
    found = decoder.logits(decoder.finish(decoder.through(start)))
    assert torch.equal(found[mask == 1], expected[mask == 1])
    after = model(input_ids=ids, attention_mask=mask).logits
    assert torch.equal(after[mask == 1], expected[mask == 1]), "the model was left changed"


@torch.no_grad()
def test_a_left_out_block_is_a_removed_block() -> None:
    ids, mask = small_batch()
    decoder = Decoder(small_model("llama"))
    start = decoder.start(ids, mask)
    kept = (0, 2, 5)
    skipped = decoder.logits(decoder.finish(decoder.through(start, kept)))
    model = small_model("llama")
    model.model.layers = nn.ModuleList(model.model.layers[index] for index in kept)
    model.config.num_hidden_layers = len(kept)
    removed = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    assert torch.equal(skipped[mask == 1], removed[mask == 1])


@torch.no_grad()
def test_a_pass_may_go_on_from_any_block() -> None:
    ids, mask = small_batch()
    decoder = Decoder(small_model("gemma3"))
    start = decoder.start(ids, mask)
    half = decoder.through(start, range(3))
    whole = decoder.through(start)
    assert torch.equal(decoder.through(start, range(3, LAYERS), hidden=half), whole)
