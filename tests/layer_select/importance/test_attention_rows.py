"""Attention weights had from queries and keys: those of eager attention, for every family."""

import pytest
import torch

from layer_select.importance.attention_concentration import AttentionConcentration
from layer_select.importance.attention_rows import spread_rows, watched
from layer_select.importance.fisher import Fisher
from layer_select.importance.gate_taylor import GateTaylor
from layer_select.importance.one_pass import OnePass
from layer_select.importance.taylor import Taylor
from layer_select.sources import HuggingFace, stream
from rayrun.ray.worker import SingleWorker
from tests.layer_select.families import CONFIGS, small_batch, small_model
from tests.layer_select.importance.simple import LastToken, batches, small_decoder


@pytest.mark.parametrize("family", CONFIGS)
def test_rows_are_those_of_eager_attention(family):
    """Rotary positions, norms of queries and keys, windows, sinks, caps; also of chosen rows."""
    decoder = small_decoder(family)
    ids, mask = small_batch()
    start = decoder.start(ids, mask)
    x = start.hidden
    for block, call in zip(decoder.blocks, start.calls, strict=True):
        module = next(m for m in block.modules() if type(m).__name__.endswith("Attention"))
        told: list[torch.Tensor] = []
        handle = module.register_forward_hook(lambda *a, told=told: told.append(a[2][1]))
        with torch.no_grad(), watched(block, mask) as seen:
            x = block(x, **call)
        handle.remove()
        for sample in range(3):
            real = mask[sample].nonzero()[:, 0]
            weights, visible = seen[0].rows(sample, real)
            expected = told[0][sample][:, real]
            torch.testing.assert_close(weights, expected, rtol=0, atol=1e-5)
            assert not weights[:, ~visible].any()
            assert not visible[:, mask[sample] == 0].any()
            assert (expected[:, visible] > 0).all()
            some = spread_rows(mask[sample], 3)
            torch.testing.assert_close(seen[0].rows(sample, some)[0], told[0][sample][:, some])


def concentrations(decoder, folder, **settings):
    observer = AttentionConcentration(sinks=2, **settings).observer()
    runner = OnePass(decoder, LastToken(decoder), {"a": observer}, SingleWorker(folder))
    return {k: v.samples for k, v in observer.found(runner.run(batches())[0]).items()}


@pytest.mark.parametrize("family", ["qwen3", "gpt_oss", "gemma2", "gemma3"])
def test_concentration_needs_no_eager_attention(family, tmp_path):
    """Where the family has another; gpt-oss and Gemma 2 have not, and get eager attention."""
    expected = concentrations(small_decoder(family), tmp_path)
    small_model(family).save_pretrained(tmp_path / "model")
    checkpoint = HuggingFace(path=str(tmp_path / "model")).open()
    decoder = stream(checkpoint, attention="sdpa")
    only_eager = family in ("gpt_oss", "gemma2")
    assert decoder.config._attn_implementation == ("eager" if only_eager else "sdpa")
    found = concentrations(decoder, tmp_path)
    assert decoder.config._attn_implementation == ("eager" if only_eager else "sdpa")
    for key, samples in expected.items():
        torch.testing.assert_close(found[key], samples, rtol=0, atol=1e-5, msg=key)
    fewer = concentrations(decoder, tmp_path, rows=5)
    every = found["attention_concentration"]
    assert 0 < (fewer["attention_concentration"] - every).abs().max() < 0.5


def test_rows_are_spread_over_a_sample_and_hold_its_last():
    real = torch.tensor([0, 0, 1, 1, 1, 1, 1, 1, 1])
    assert spread_rows(real, 3).tolist() == [3, 5, 8]
    assert spread_rows(real, 7).tolist() == spread_rows(real, 100).tolist() == list(range(2, 9))
    assert torch.equal(spread_rows(real[2:], 3), spread_rows(real, 3) - 2)


@pytest.mark.parametrize("family", ["gemma3"])
def test_gradients_do_not_depend_on_the_kind_of_attention(family, tmp_path):
    """Rows of padding see nothing at all under sdpa."""
    found = []
    for kind in ("eager", "sdpa"):
        decoder = small_decoder(family)
        decoder.model.set_attn_implementation(kind)
        methods = (Fisher(), Taylor(), GateTaylor())
        observers = {m.keys[0]: m.observer() for m in methods}
        runner = OnePass(decoder, LastToken(decoder), observers, SingleWorker(tmp_path))
        gathered = runner.run(batches())[0]
        found.append({k: v for o in observers.values() for k, v in o.found(gathered).items()})
    for key, one in found[0].items():
        torch.testing.assert_close(one.scores, found[1][key].scores, rtol=1e-4, atol=1e-6, msg=key)
