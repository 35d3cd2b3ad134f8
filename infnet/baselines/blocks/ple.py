"""Progressive layered extraction: experts of each task, shared experts, and gates that mix them.

Shapes: B rows, D width in, H width of an expert, T tasks.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from infnet.model.layers import MLP


class CustomizedGateControl(nn.Module):
    """One CGC layer (Tang et al. 2020, RecSys, doi:10.1145/3383313.3412236).

    Task k mixes its own and the shared experts: y_k = Σ_i softmax(W_k x_k)_i f_i. The shared branch
    mixes *all* experts, as the paper says (FuxiCTR and STEM mix only the shared ones). The last
    layer of a PLE has no shared branch: nothing would read it.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_tasks: int,
        num_specific: int,
        num_shared: int,
        hidden: Sequence[int],
        last: bool,
    ) -> None:
        super().__init__()
        self.counts = [num_specific] * num_tasks + [num_shared]
        self.experts = nn.ModuleList(
            nn.ModuleList(
                nn.Sequential(MLP(dim, hidden[:-1], hidden[-1]), nn.ReLU()) for _ in range(count)
            )
            for count in self.counts
        )
        self.gates = nn.ModuleList(
            nn.Linear(dim, num_specific + num_shared) for _ in range(num_tasks)
        )
        self.shared_gate = None if last else nn.Linear(dim, sum(self.counts))

    def forward(self, inputs: Sequence[Float[Tensor, "B D"]]) -> list[Float[Tensor, "B H"]]:
        """One output per task; then, unless last, the shared one, with which `inputs` ends too."""
        outputs = [
            torch.stack([expert(x) for expert in experts], dim=1)  # pyright: ignore[reportGeneralTypeIssues]
            for experts, x in zip(self.experts, inputs, strict=True)
        ]
        mixed = [
            _mix(gate(x), torch.cat([own, outputs[-1]], dim=1))
            for gate, x, own in zip(self.gates, inputs, outputs, strict=False)
        ]
        if self.shared_gate is not None:
            mixed.append(_mix(self.shared_gate(inputs[-1]), torch.cat(outputs, dim=1)))
        return mixed


class ProgressiveLayeredExtraction(nn.Module):
    """PLE: CGC layers one above the other; all branches of the first read the same input."""

    def __init__(
        self,
        dim: int,
        *,
        num_tasks: int,
        num_layers: int,
        num_specific: int,
        num_shared: int,
        hidden: Sequence[int],
    ) -> None:
        super().__init__()
        self.num_tasks = num_tasks
        self.layers = nn.ModuleList(
            CustomizedGateControl(
                hidden[-1] if index else dim,
                num_tasks=num_tasks,
                num_specific=num_specific,
                num_shared=num_shared,
                hidden=hidden,
                last=index == num_layers - 1,
            )
            for index in range(num_layers)
        )

    def forward(self, x: Float[Tensor, "B D"]) -> list[Float[Tensor, "B H"]]:
        """One representation per task."""
        branches = [x] * (self.num_tasks + 1)
        for layer in self.layers:
            branches = layer(branches)
        return branches


def _mix(logits: Float[Tensor, "B E"], experts: Float[Tensor, "B E H"]) -> Float[Tensor, "B H"]:
    return (logits.softmax(dim=-1)[:, None] @ experts)[:, 0]
