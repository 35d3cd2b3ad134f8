"""Models made by several threads at once: transformers swaps torch's initialisers meanwhile."""

from concurrent.futures import ThreadPoolExecutor

import torch

from layer_select.sources import open_model
from layer_select.sources.loading import load
from tests.layer_select.families import small_model


def test_threads_that_load_models_leave_torch_as_it_was(tmp_path):
    small_model("llama").save_pretrained(tmp_path)
    before = {name: getattr(torch.nn.init, name) for name in ("normal_", "zeros_", "ones_")}
    checkpoints = [open_model(None, str(tmp_path)) for _ in range(4)]
    for _ in range(5):
        with ThreadPoolExecutor(4) as pool:
            decoders = list(pool.map(load, checkpoints))
        assert {name: getattr(torch.nn.init, name) for name in before} == before
    for decoder in decoders:
        assert all(torch.isfinite(p).all() for p in decoder.model.parameters())
    assert bool(torch.isfinite(small_model("qwen3").lm_head.weight).all())
