"""Functions run in several processes at once, joined by torch.distributed (gloo) and nothing else.

The processes are forked from a server that has imported torch already: ten cost what one would.
"""

import datetime
import multiprocessing
import os
import pickle
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

PRELOADED = [
    "torch._dynamo",  # imported by the first optimizer, as pandas is by the first metric
    "pandas",
    "infnet.train.loop",
    "tests.infnet.train.written_dataset",
]


def together(function: Callable[..., Any], world_size: int, *arguments: Any) -> list[Any]:
    """`function(worker, *arguments)` on every worker; what each returned, in rank order.

    Fails with the traceback of the first worker that failed.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with tempfile.TemporaryDirectory(prefix="gloo-") as folder:
        processes = [
            context.Process(
                target=_entry, args=(function, rank, world_size, folder, arguments), daemon=True
            )
            for rank in range(world_size)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(timeout=300)
            if process.is_alive():
                process.kill()
        failed = [(Path(folder) / f"{rank}.error") for rank in range(world_size)]
        for error in failed:
            assert not error.exists(), error.read_text()
        assert [process.exitcode for process in processes] == [0] * world_size
        return [pickle.loads((Path(folder) / str(rank)).read_bytes()) for rank in range(world_size)]


def _entry(
    function: Callable[..., Any], rank: int, world_size: int, folder: str, arguments: Any
) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    import torch

    from rayrun.ray.process_group import ProcessGroupWorker

    torch.set_num_threads(1)
    try:
        torch.distributed.init_process_group(
            "gloo",
            init_method=f"file://{folder}/meeting",
            rank=rank,
            world_size=world_size,
            timeout=datetime.timedelta(seconds=180),
        )
        found = function(ProcessGroupWorker(Path(folder) / "checkpoints"), *arguments)
        (Path(folder) / str(rank)).write_bytes(pickle.dumps(found))
    except BaseException:
        (Path(folder) / f"{rank}.error").write_text(f"worker {rank}: {traceback.format_exc()}")
        raise
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
