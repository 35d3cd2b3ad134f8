"""Row-wise optimizers of the embedding tables: a step reads and writes the rows of the batch,
nothing else.

A step costs time in the number of distinct ids of the batch; the number of rows of a table does not
enter. A table that is not split is held by every worker. Per step the workers exchange the touched
rows (ids and summed gradients), add them in rank order, and make the same update: replicas stay
equal to the last bit. Of a split table (`infnet.train.shards`) a worker updates the rows it holds,
with the gradients that were taken back to it; the state of its rows lies beside them.

Shapes: V rows of a table, D its width, R distinct rows touched by the global batch.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from infnet.config import EmbeddingOptimizer
from infnet.train.touched import Touched, added, coalesced
from rayrun.ray.worker import Worker

BETA1, BETA2 = 0.9, 0.999
EPSILON = {"adam": 1e-8, "adagrad": 1e-10, "rowwise_adagrad": 1e-10}


class RowOptimizer:
    """Updates the touched rows of every table.

    * `adam`: Adam (Kingma & Ba 2015) whose moments move only when their row is touched; the bias
      correction counts all steps. This is `torch.optim.SparseAdam`.
    * `adagrad`: θ ← θ − lr·g/(√Σg² + ε) (Duchi et al. 2011), as `torch.optim.Adagrad` with sparse
      gradients.
    * `rowwise_adagrad`: one accumulator per row, the running sum of mean_D(g²): D times less state.

    `l2` adds the gradient l2·θ (of the penalty ½·l2·‖θ‖²) to the touched rows, once per step
    however often and on however many workers a row occurs. Rows not in the batch do not decay.
    """

    def __init__(self, tables: nn.Module, config: EmbeddingOptimizer) -> None:
        """State is made at once, so that no later step pays for it."""
        self.config = config
        self.steps = 0
        self.weights: dict[str, nn.Parameter] = dict(tables.named_parameters())
        width = {"adam": 2, "adagrad": 1}
        self.state: dict[str, Tensor] = {
            # Adam's two moments of a row lie side by side: one look-up instead of two.
            name: torch.zeros(
                weight.shape[0],
                1 if config.type == "rowwise_adagrad" else weight.shape[1] * width[config.type],
                device=weight.device,
            )
            for name, weight in self.weights.items()
        }

    @torch.no_grad()
    def step(
        self,
        worker: Worker,
        taken: Mapping[str, Touched] | None = None,
        *,
        loss_scale: float = 1.0,
        rate: float = 1.0,
    ) -> None:
        """One update from the gradients that are there; they are removed. A collective.

        `taken` are the gradients of split tables, by parameter; `loss_scale` is what the loss was
        multiplied by before the backward pass; `rate` multiplies the learning rate.
        """
        self.steps += 1
        taken = taken or {}
        for name, touched in {**self._touched(worker, without=taken), **taken}.items():
            if len(touched.rows):
                self._update(name, touched, loss_scale, self.config.lr * rate)
        for weight in self.weights.values():
            weight.grad = None

    def _touched(self, worker: Worker, without: Mapping[str, Touched]) -> dict[str, Touched]:
        whole = {name: weight for name, weight in self.weights.items() if name not in without}
        mine = {name: coalesced(name, weight) for name, weight in whole.items()}
        return mine if worker.world_size == 1 else exchange(mine, worker)

    def _update(self, name: str, touched: Touched, loss_scale: float, lr: float) -> None:
        table, state = self.weights[name].data, self.state[name]
        rows, gradient = touched.rows, touched.gradients
        if loss_scale != 1.0:
            gradient = gradient / loss_scale
        if self.config.l2:
            gradient = gradient + self.config.l2 * table.index_select(0, rows)
        epsilon = EPSILON[self.config.type]
        if self.config.type == "adam":
            moments = state.index_select(0, rows)
            mean, square = moments.chunk(2, dim=1)
            mean.lerp_(gradient, 1 - BETA1)
            square.lerp_(gradient * gradient, 1 - BETA2)
            state.index_copy_(0, rows, moments)
            corrected = (1 - BETA2**self.steps) ** 0.5 / (1 - BETA1**self.steps)
            change = mean.div(square.sqrt_().add_(epsilon)).mul_(-lr * corrected)
        else:
            squares = gradient * gradient
            if self.config.type == "rowwise_adagrad":
                squares = squares.mean(dim=1, keepdim=True)
            total = state.index_select(0, rows).add_(squares)
            state.index_copy_(0, rows, total)
            change = gradient.div(total.sqrt().add_(epsilon)).mul_(-lr)
        table.index_add_(0, rows, change)

    def state_dict(self) -> dict[str, Tensor]:
        """The state as named tensors."""
        return {"steps": torch.tensor(self.steps), **self.state}


def exchange(mine: Mapping[str, Touched], worker: Worker) -> dict[str, Touched]:
    """The touched rows of all workers: three messages for all tables together, the same on every
    worker.
    """
    some = next(iter(mine.values()), None)
    if some is None:
        return {}
    counts = torch.tensor([len(touched.rows) for touched in mine.values()], device=some.rows.device)
    all_counts = worker.gather_rows(counts)
    all_rows = worker.gather_rows(torch.cat([t.rows for t in mine.values()]))
    all_values = worker.gather_rows(torch.cat([t.gradients.reshape(-1) for t in mine.values()]))
    row_at, value_at = [0] * worker.world_size, [0] * worker.world_size
    merged: dict[str, Touched] = {}
    for table, (name, touched) in enumerate(mine.items()):
        width = touched.gradients.shape[1]
        rows, gradients = [], []
        for rank in range(worker.world_size):
            count = int(all_counts[rank][table])
            rows.append(all_rows[rank][row_at[rank] : row_at[rank] + count])
            values = all_values[rank][value_at[rank] : value_at[rank] + count * width]
            gradients.append(values.view(count, width))
            row_at[rank] += count
            value_at[rank] += count * width
        merged[name] = added(torch.cat(rows), torch.cat(gradients))
    return merged
