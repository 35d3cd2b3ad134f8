"""Repair of gaps against a plain twin in float64, and what folding does to the weights."""

import threading
from typing import Any

import pytest
import torch
from torch import Tensor

from layer_select.compact.folded import LinearMap, carries_bias
from layer_select.compact.repair import fit, gaps_of, measure, passes
from layer_select.decoder import Decoder
from rayrun.ray.worker import SingleWorker
from tests.layer_select.families import small_model
from tests.layer_select.selection.small_task import NextToken, batches, deep_decoder

FOLDABLE = ("llama", "mistral", "qwen2", "qwen3", "qwen3_moe", "gpt_oss")
KEPT = (0, 1, 4)
FLOAT32 = 1e-4
"""Norms and softmax of transformers are float32 in a float64 model, so padding moves states by some
1e-7, and the products of small outputs magnify it; a wrong map is off by 1e-1."""


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

    def work(rank: int) -> None:
        decoder = make()
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
