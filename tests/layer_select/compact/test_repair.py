"""Repair of gaps against a plain twin in float64, and what folding does to the weights."""

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from layer_select.compact.folded import Folded, LinearMap
from layer_select.compact.repair import fit, gaps_of, measure, passes
from layer_select.compact.view import Compacted
from layer_select.decoder import Decoder
from layer_select.pretrain.tokenizer import train_tokenizer
from layer_select.sources import load, open_model, stream
from layer_select.sources.huggingface_write import write_folder
from rayrun.config import ConfigError
from rayrun.ray.worker import SingleWorker
from tests.layer_select.families import CONFIGS, small_batch, small_model
from tests.layer_select.selection.small_task import NextToken, batches, deep_decoder

FOLDABLE = ("llama", "mistral", "qwen2", "qwen3", "qwen3_moe", "gpt_oss")
KEPT = (0, 1, 4)
FLOAT32 = 1e-4
"""Norms and softmax of transformers are float32 in a float64 model, so padding moves states by some
1e-7, and the products of small outputs magnify it; a wrong map is off by 1e-1."""


def saved(model, folder: Path) -> Path:
    model.save_pretrained(folder)
    train_tokenizer(["one two"], 80).save_pretrained(str(folder))
    return folder


class OneOf(SingleWorker):
    """A worker of several threads: sums meet at a barrier."""

    def __init__(self, rank: int, world_size: int, room: dict[str, Any]) -> None:
        super().__init__(room["folder"])
        self.rank, self.world_size, self._room = rank, world_size, room

    def sum(self, value: Tensor) -> Tensor:
        self._room["values"][self.rank] = value
        self._room["barrier"].wait()
        total = torch.stack(self._room["values"]).sum(0)
        self._room["barrier"].wait()
        return total


def fitted(make, kept, folder, workers: int = 1, **options):
    """The maps as every worker found them."""
    barrier = threading.Barrier(workers, timeout=60)
    room = {"values": [None] * workers, "barrier": barrier, "folder": folder}
    found: list[Any] = [None] * workers

    decoders = [make() for _ in found]  # building models is not safe in threads

    def work(rank: int) -> None:
        decoder = decoders[rank]
        worker = OneOf(rank, workers, room)
        found[rank] = fit(decoder, NextToken(decoder), batches(), kept, worker, **options)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def family_decoder(family: str) -> Decoder:
    model = small_model(family)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    decoder = Decoder(model.double())
    decoder.config._experts_implementation = "eager"
    return decoder


@torch.no_grad()
def twin(decoder: Decoder, kept, ridge: float, bias: bool):
    """One row after the other, without padding, and least squares by `lstsq` on stacked rows."""
    rows = [
        ids[mask == 1][None]
        for batch in batches()
        for ids, mask in zip(batch.ids, batch.mask, strict=True)
    ]
    targets = torch.tensor([t for batch in batches() for t in batch.target.tolist()])
    starts = [decoder.start(row, torch.ones_like(row)) for row in rows]
    full = [[start.hidden] for start in starts]
    for start, states in zip(starts, full, strict=True):
        for layer in range(decoder.num_layers):
            states.append(decoder.blocks[layer](states[-1], **start.calls[layer]))

    def step(layer, start, x, found=None):
        made: list[Tensor] = []

        def note(_m, _i, output):
            made.append(output[0] if isinstance(output, tuple) else output)

        hook = decoder.blocks[layer].mlp.register_forward_hook(note)
        out = decoder.blocks[layer](x, **start.calls[layer])
        hook.remove()
        mlp = made[0].reshape(out.shape)
        if found is not None:
            moved = mlp @ found[0] + (0 if found[1] is None else found[1])
            out = out - mlp + moved
        return out, mlp

    def loss(maps):
        total = 0.0
        for start, target in zip(starts, targets, strict=True):
            x = start.hidden
            for layer in kept:
                x, _ = step(layer, start, x, maps.get(layer))
            logits = decoder.logits(decoder.finish(x))[:, -1]
            total += torch.nn.functional.cross_entropy(logits, target[None]).item()
        return total / len(starts)

    maps: dict[int, Any] = {}
    told = []
    width = decoder.config.hidden_size
    for layer, gap in gaps_of(kept, decoder.num_layers).items():
        made, wanted = [], []
        for start, states in zip(starts, full, strict=True):
            x = start.hidden
            for here in [k for k in kept if k < layer]:
                x, _ = step(here, start, x, maps.get(here))
            out, mlp = step(layer, start, x)
            made.append(mlp[0])
            wanted.append((states[gap[-1] + 1] - out + mlp)[0])
        m, r = torch.cat(made), torch.cat(wanted)
        hold = (ridge * (m.T @ m).trace() / width).sqrt()
        eye = torch.eye(width, dtype=torch.float64)
        left, right = torch.cat([m, hold * eye]), torch.cat([r, hold * eye])
        if bias:
            ones = torch.cat([torch.ones(len(m), 1), torch.zeros(width, 1)]).double()
            left = torch.cat([left, ones], dim=1)
        solved = torch.linalg.lstsq(left, right, driver="gelsd").solution
        candidate = (solved[:width], solved[width] if bias else None)
        before, after = loss(maps), loss({**maps, layer: candidate})
        told.append((layer, gap, candidate, before, after))
        if after < before:
            maps[layer] = candidate
    return told


@pytest.mark.parametrize("family", FOLDABLE)
def test_maps_are_those_of_a_twin_that_solves_by_lstsq_row_by_row(family, tmp_path):
    bias = family == "gpt_oss"
    (found,) = fitted(lambda: family_decoder(family), KEPT, tmp_path, bias=bias)
    expected = twin(family_decoder(family), KEPT, 1e-3, bias)
    assert [(one.after, one.gap) for one in found] == [(1, (2, 3)), (4, (5,))]
    for one, (after, gap, (matrix, constant), before, loss) in zip(found, expected, strict=True):
        assert (one.after, one.gap) == (after, gap)
        torch.testing.assert_close(one.map.matrix, matrix, rtol=0, atol=FLOAT32)
        if bias:
            torch.testing.assert_close(one.map.bias, constant, rtol=0, atol=FLOAT32)
        else:
            assert one.map.bias is None
        assert one.loss_before == pytest.approx(before, abs=FLOAT32)
        assert one.loss_after == pytest.approx(loss, abs=FLOAT32)
        assert one.used == (loss < before)


def same(one, other, atol: float) -> None:
    assert [(m.after, m.gap, m.used) for m in one] == [(m.after, m.gap, m.used) for m in other]
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a.map.matrix, b.map.matrix, rtol=0, atol=atol)
        assert a.loss_before == pytest.approx(b.loss_before, abs=1e-9)
        assert a.loss_after == pytest.approx(b.loss_after, abs=1e-9)


def test_one_worker_or_two_whole_or_streamed_the_maps_are_the_same(tmp_path):
    source = saved(deep_decoder(layers=6).model, tmp_path / "source")
    kept = (0, 2, 5)

    def whole() -> Decoder:
        return load(open_model(None, str(source)), dtype=torch.float64)

    def streamed() -> Decoder:
        return stream(open_model(None, str(source)), dtype=torch.float64)

    (alone,) = fitted(whole, kept, tmp_path / "w", bias=True)
    assert {m.after for m in alone} == {0, 2}
    first, second = fitted(whole, kept, tmp_path / "w", workers=2, bias=True)
    same(first, second, 0.0)
    same(alone, first, 1e-9)
    (read,) = fitted(streamed, kept, tmp_path / "w", bias=True)
    same(alone, read, 0.0)


def test_a_map_that_raises_the_calibration_loss_is_dropped_so_none_makes_it_worse(tmp_path):
    used, dropped, lowered = 0, 0, 0
    for seed in range(4):
        decoder, kept = deep_decoder(layers=8, seed=seed), (1, 2, 5)
        worker, objective = SingleWorker(tmp_path), NextToken(decoder)
        passed: list[int] = []
        maps = fit(
            decoder, objective, batches(), kept, worker, advance=lambda p=passed: p.append(1)
        )
        assert len(passed) == passes(kept, 8)
        naive = measure(decoder, objective, batches(), kept, worker)
        repaired = measure(decoder, objective, batches(), kept, worker, maps)
        assert repaired["loss"] <= naive["loss"]
        assert set(repaired) == {"loss", "mrr", "hr@10"}
        assert [m.gap for m in maps] == [(3, 4), (6, 7)]
        best = naive["loss"]
        for found in maps:
            assert found.loss_before == best
            assert found.used == (found.loss_after < best)
            best = min(best, found.loss_after)
        assert repaired["loss"] == best
        used += sum(m.used for m in maps)
        dropped += sum(not m.used for m in maps)
        lowered += repaired["loss"] < naive["loss"]
    assert used >= 1
    assert dropped >= 1, "no seed tries the rule"
    assert lowered >= 1


def test_without_a_gap_there_is_nothing_to_fit(tmp_path):
    decoder = deep_decoder(layers=4)
    assert fit(decoder, NextToken(decoder), batches(), (2, 3), SingleWorker(tmp_path)) == []
    assert gaps_of((0, 2), 4) == {0: (1,), 2: (3,)}


@torch.no_grad()
def mapped_logits(decoder: Decoder, kept, maps) -> Tensor:
    """The map applied to what the MLP gave, the weights as they were."""
    ids, mask = small_batch()
    start = decoder.start(ids, mask)
    x = start.hidden
    for layer in kept:
        found = maps.get(layer)

        def bend(_m, _i, output, found=found):
            made = output[0] if isinstance(output, tuple) else output
            moved = made.double() @ found.matrix + (0 if found.bias is None else found.bias)
            moved = moved.to(made.dtype)
            return (moved, *output[1:]) if isinstance(output, tuple) else moved

        block = decoder.blocks[layer]
        hook = block.mlp.register_forward_hook(bend) if found else None
        x = block(x, **start.calls[layer])
        if hook is not None:
            hook.remove()
    return decoder.logits(decoder.finish(x))[mask == 1]


@pytest.mark.parametrize("family", FOLDABLE)
def test_a_folded_model_read_back_is_the_model_with_its_maps(family, tmp_path):
    source = saved(small_model(family), tmp_path / "source")
    kept, width = (0, 1, 4, 5), CONFIGS[family]().hidden_size
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    constant = family in ("llama", "gpt_oss")
    maps = {
        layer: LinearMap(drawn(width, width) / 4, drawn(width) if constant else None)
        for layer in (1, 4)
    }
    checkpoint = open_model(None, str(source))
    expected = mapped_logits(load(checkpoint), kept, maps)
    folded = Folded(Compacted(checkpoint, kept), {1: maps[1], 2: maps[4]})
    (tmp_path / "out").mkdir()
    write_folder(folded, tmp_path / "out")
    assert open_model(None, str(tmp_path / "out")).digest == folded.digest
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", attn_implementation="eager")
    ids, mask = small_batch()
    with torch.no_grad():
        found = model(input_ids=ids, attention_mask=mask).logits[mask == 1]
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)
    plain = load(Compacted(checkpoint, kept))
    start = plain.start(ids, mask)
    with torch.no_grad():
        naive = plain.logits(plain.finish(plain.through(start)))[mask == 1]
    assert (naive - expected).abs().max() > 1e-2
    # In float64 the folded weights carry the map to the last digits but those of float32 norms.
    wide = load(folded, dtype=torch.float64)
    if family != "gpt_oss" and family != "qwen3_moe":  # grouped products of experts know none
        reference = mapped_logits(load(checkpoint, dtype=torch.float64), kept, maps)
        start = wide.start(ids, mask)
        with torch.no_grad():
            exact = wide.logits(wide.finish(wide.through(start)))[mask == 1]
        torch.testing.assert_close(exact, reference, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["gemma2", "gemma3"])
def test_families_with_a_norm_after_the_mlp_are_refused_with_the_reason(family, tmp_path):
    decoder = Decoder(small_model(family))
    with pytest.raises(
        ConfigError, match=r"norm after down_proj .* compact.repair: \{type: none\}"
    ):
        fit(decoder, NextToken(decoder), batches(), KEPT, SingleWorker(tmp_path))
    source = open_model(None, str(saved(decoder.model, tmp_path / "source")))
    with pytest.raises(ConfigError, match="norm after down_proj"):
        Folded(source, {})


def test_what_cannot_be_fitted_or_folded_is_told(tmp_path):
    source = open_model(None, str(saved(small_model("qwen3"), tmp_path / "source")))
    eye = torch.eye(32, dtype=torch.float64)
    with pytest.raises(ConfigError, match=r"has no bias.*compact.repair.bias: false"):
        Folded(source, {0: LinearMap(eye, eye[0])})
    with pytest.raises(ValueError, match=r"maps must be of layers 0\.\.5, found \[6\]"):
        Folded(source, {6: LinearMap(eye)})
    worker, decoder = SingleWorker(tmp_path / "w"), deep_decoder(layers=4)
    objective = NextToken(decoder)
    with pytest.raises(ConfigError, match="no sample here"):
        fit(decoder, objective, [], (0, 3), worker)
    with torch.no_grad():
        decoder.blocks[1].mlp.down_proj.weight[0, 0] = torch.nan
    with pytest.raises(ConfigError, match="hidden states at layer 0 must be finite"):
        fit(decoder, objective, batches(), (0, 3), worker)
    with pytest.raises(ConfigError, match="the loss of the model must be finite, found nan"):
        measure(decoder, objective, batches(), (0, 1), worker)
