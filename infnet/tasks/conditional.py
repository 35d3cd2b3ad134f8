"""Conditional task: it can only happen after another one did (convert after click)."""

from collections.abc import Mapping
from typing import Literal

from jaxtyping import Float

from infnet.tasks.base import BaseTask
from infnet.tasks.binary import BinaryTask
from infnet.tasks.tensor import Tensor


class ConditionalTask(BinaryTask):
    """P(both) = P(parent) · P(this | parent), as in ESMM (Ma et al. 2018, arXiv:1804.07931).

    Label, loss, prediction and metrics are those of "both" on every row; the head learns the
    conditional part. The product is formed on logits without loss of digits: with parent logit a
    and own logit b, logit(σ(a) σ(b)) = −ln(e^{−a} + e^{−b} + e^{−a−b}).
    """

    type: Literal["conditional"] = "conditional"  # pyright: ignore[reportIncompatibleVariableOverride]
    given: str
    """The parent: a binary task, or another conditional one."""

    @property
    def parent(self) -> str:
        """The task named by `given`."""
        return self.given

    def compose(
        self, own: Float[Tensor, "B O"], parent: Float[Tensor, "B _"]
    ) -> Float[Tensor, "B O"]:
        """Logit of the product of both probabilities."""
        import torch

        return -torch.logsumexp(torch.stack([-own, -parent, -own - parent]), dim=0)


def parents_first(tasks: Mapping[str, BaseTask]) -> list[str]:
    """Task names in an order where every parent comes before its children.

    Raises:
        ValueError: a parent that does not exist, is not binary, or is its own descendant.
    """
    order: list[str] = []

    def place(name: str, children: tuple[str, ...]) -> None:
        if name in children:
            raise ValueError(
                f"tasks.{name}.given: the chain {' → '.join((*children, name))} is a circle; "
                "one of them must be a plain binary task"
            )
        if parent := tasks[name].parent:
            if parent not in tasks:
                raise ValueError(
                    f"tasks.{name}.given must name one of {sorted(tasks)}, found {parent!r}"
                )
            if not isinstance(tasks[parent], BinaryTask):
                raise ValueError(
                    f"tasks.{name}.given must name a binary or conditional task, found {parent!r}, "
                    "which predicts an amount"
                )
            place(parent, (*children, name))
        if name not in order:
            order.append(name)

    for name in tasks:
        place(name, ())
    return order
