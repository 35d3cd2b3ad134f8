"""Ray Data as prepare uses it: quiet, in blocks of bounded size, with progress and our own errors.

A step is a list of block references in, a list out. `stream` runs a Ray Data plan and counts rows
as they arrive; `each` runs one task per block, a few at a time.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray
import ray.data
from ray.data.context import DataContext, ShuffleStrategy
from ray.exceptions import RayError

from rayrun.config import ConfigError

MIN_BLOCK_BYTES = 1 << 20
MAX_BLOCK_BYTES = 32 << 20
"""A worker holds a few blocks at a time, whatever the size of the log."""
RETRY_ADVICE = "\nFailed to apply UDF transform after"
"""How the lines begin that Ray Data appends to the message of any error of a task."""


def block_bytes(log_bytes: int, cpus: int) -> int:
    """Block size for a log of about `log_bytes` in memory: a small log has a few per CPU."""
    return min(MAX_BLOCK_BYTES, max(MIN_BLOCK_BYTES, log_bytes // (2 * cpus)))


@contextlib.contextmanager
def ray_data(target_block_bytes: int) -> Iterator[None]:
    """Settings of Ray Data inside the block; they are put back after it."""
    context = DataContext.get_current()
    settings: dict[str, Any] = {
        "target_max_block_size": target_block_bytes,
        "target_min_block_size": min(MIN_BLOCK_BYTES, target_block_bytes),
        "enable_progress_bars": False,
        "enable_operator_progress_bars": False,
        "print_on_execution_start": False,
        "raise_original_map_exception": True,
        "shuffle_strategy": ShuffleStrategy.SORT_SHUFFLE_PULL_BASED,
    }
    before = {name: getattr(context, name) for name in settings}
    ordered = context.execution_options.preserve_order
    logger = logging.getLogger("ray.data")
    level = logger.level
    for name, value in settings.items():
        setattr(context, name, value)
    context.execution_options.preserve_order = True
    logger.setLevel(logging.CRITICAL)  # it would show the traceback of what is raised here anyway
    try:
        yield
    except RayError as error:
        if (found := config_error(error)) is not None:
            raise found from None
        raise
    finally:
        for name, value in before.items():
            setattr(context, name, value)
        context.execution_options.preserve_order = ordered
        logger.setLevel(level)


def config_error(error: BaseException | None) -> ConfigError | None:
    """The bad input behind a failed task, if that is what failed it."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, ConfigError):
            return ConfigError(str(error.args[0]).partition(RETRY_ADVICE)[0])
        error = getattr(error, "cause", None) or error.__cause__ or error.__context__
    return None


Refs = list[Any]
"""References of blocks (Arrow tables) in Ray's object store."""


def stream(dataset: ray.data.Dataset, advance: Callable[[int], None]) -> Refs:
    """Run a plan: references of its blocks with rows, in order; `advance` gets their counts."""
    refs: Refs = []
    try:
        for bundle in dataset.iter_internal_ref_bundles():
            for entry in bundle.blocks:
                if entry.metadata.num_rows:
                    refs.append(entry.ref)
                    advance(entry.metadata.num_rows)
    except Exception as error:
        if (found := config_error(error)) is not None:
            raise found from None
        raise
    return refs


def dataset(refs: Refs) -> ray.data.Dataset:
    """Blocks as a Ray Data set."""
    return ray.data.from_arrow_refs(refs)


def map_blocks(
    data: ray.data.Dataset, function: Callable[..., Any], *arguments: Any
) -> ray.data.Dataset:
    """A plan that calls `function(block, *arguments)` on every block; it gives or yields tables."""
    return data.map_batches(
        function, batch_size=None, batch_format="pyarrow", fn_args=list(arguments)
    )


def each(
    task: Callable[..., Any],
    arguments: Sequence[tuple[Any, ...]],
    *,
    at_once: int,
    num_returns: int = 1,
) -> Iterator[Any]:
    """Results of `task(*arguments)`, in order, at most `at_once` tasks ahead of the consumer.

    With `num_returns` above 1 the first result is fetched, the others stay references.
    """
    remote = ray.remote(num_cpus=1, num_returns=num_returns)(task)
    waiting: list[Any] = []
    following = iter(arguments)
    for item in following:
        waiting.append(remote.remote(*item))
        if len(waiting) >= at_once:
            break
    while waiting:
        first = waiting.pop(0)
        yield ray.get(first) if num_returns == 1 else (ray.get(first[0]), *first[1:])
        del first
        for item in following:
            waiting.append(remote.remote(*item))
            break
