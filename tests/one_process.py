"""What the verbs do on workers of Ray Train, done in this process: starting Ray Train takes longer
than the training of a small model.
"""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from rayrun.ray.worker import SingleWorker, Worker


def in_this_process(
    function: Callable[[Worker, dict], dict],
    argument: dict,
    *,
    storage_path: str,
    name: str,
    **_: object,
) -> dict:
    """Takes the place of `rayrun.ray.train.run` for tests of something else than Ray."""
    threads = torch.get_num_threads()
    try:
        return function(SingleWorker(Path(storage_path) / name), argument)
    finally:
        torch.set_num_threads(threads)


def without_ray_train(patch: pytest.MonkeyPatch, *modules: ModuleType) -> None:
    """Verbs of these modules, each the `run.py` of its room, train in this process."""
    for module in modules:
        patch.setattr(module, "run_on_ray", in_this_process)
