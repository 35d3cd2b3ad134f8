"""How every pipeline names its steps, and what it does about a step that fails."""

from kfp import dsl

RETRIES = 2
BACKOFF = "60s"
BACKOFF_FACTOR = 2.0
"""A node that is taken away and a store that is out of reach are most often back within minutes."""


def act(name: str, task: dsl.PipelineTask) -> dsl.PipelineTask:
    """A task that does something once (deploy, finish), under its name in the views.

    KFP's cache, which knows names only, is off.
    """
    return task.set_display_name(name).set_caching_options(False)


def step(name: str, task: dsl.PipelineTask) -> dsl.PipelineTask:
    """A task that makes something, under its name in the views; a backend repeats it if it fails.

    It goes on where it stopped, for its work is kept under a key that the content decides. A local
    run repeats nothing (`pipelines.local`).
    """
    return act(name, task).set_retry(
        num_retries=RETRIES, backoff_duration=BACKOFF, backoff_factor=BACKOFF_FACTOR
    )
