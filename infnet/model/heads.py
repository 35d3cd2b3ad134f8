"""Heads: one tower per task, same architecture, weights of its own.

Shapes: B rows, T tasks, D width of a task's representation, O_i logits of task i.
"""

from collections.abc import Mapping, Sequence

from jaxtyping import Float
from torch import Tensor, nn

from infnet.model.layers import MLP
from infnet.tasks import BaseTask, parents_first


class Heads(nn.Module):
    """logits_i = MLP_i(x_i). With no hidden layer each head is one Linear.

    A task that is conditional on a parent then has its logits composed with the parent's
    (`BaseTask.compose`); here, so that it holds for every network.
    """

    def __init__(
        self,
        tasks: Mapping[str, BaseTask],
        width: int,
        *,
        hidden: Sequence[int] = (),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.tasks = dict(tasks)
        self.order = parents_first(tasks)
        self.towers = nn.ModuleList(
            MLP(width, hidden, task.num_logits, dropout=dropout) for task in tasks.values()
        )

    def forward(self, representations: Sequence[Float[Tensor, "B D"]]) -> dict[str, Tensor]:
        """Logits by task name, from one representation per task in the order of the tasks."""
        towers = dict(zip(self.tasks, self.towers, strict=True))
        inputs = dict(zip(self.tasks, representations, strict=True))
        logits: dict[str, Tensor] = {}
        for name in self.order:
            logits[name] = towers[name](inputs[name])
            if parent := self.tasks[name].parent:
                logits[name] = self.tasks[name].compose(logits[name], logits[parent])
        return {name: logits[name] for name in self.tasks}
