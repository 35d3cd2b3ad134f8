"""What a task that starts Ray hands on of its own settings."""

from kfp.dsl import TaskConfigField, TaskConfigPassthrough

PASSTHROUGHS = [
    TaskConfigField.RESOURCES,
    TaskConfigField.KUBERNETES_NODE_SELECTOR,
    TaskConfigField.KUBERNETES_TOLERATIONS,
    TaskConfigField.KUBERNETES_AFFINITY,
    TaskConfigPassthrough(field=TaskConfigField.ENV, apply_to_task=True),
    TaskConfigPassthrough(field=TaskConfigField.KUBERNETES_VOLUMES, apply_to_task=True),
]
"""Where and with how much is a matter of the pods that compute, which the step's own pod only
waits for; environment and volumes hold credentials and data, which both need.

A component that takes a `dsl.TaskConfig` must declare them: of a task of such a component KFP
compiles no setting that is not in this list. KFP's local runners have nothing to hand on and fill
in a `TaskConfig` of Nones, and so does a backend for a task without settings.
"""
