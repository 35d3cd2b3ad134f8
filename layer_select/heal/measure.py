"""What a recommender reaches on the samples of the task, sample by sample.

Shapes: N samples of a part, K metrics.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from layer_select.decoder import Decoder
from layer_select.evaluate.bootstrap import Bootstrap, around
from layer_select.task.run import RecommendationTask
from layer_select.task.samples import Part
from rayrun.config import Json
from rayrun.data.sequences import Ints
from rayrun.ray.worker import Worker

PARTS: tuple[Part, ...] = ("validation", "test")


@dataclass(frozen=True)
class Reached:
    """Values of one recommender on one part."""

    names: tuple[str, ...]
    values: Float64[Tensor, "N K"]
    """In the order of the samples."""

    def means(self) -> dict[str, float]:
        """Of each metric; of ratings RMSE and MAE."""
        return {n: float(v[0]) for n, v in _metrics(self.names, self.values.mean(0)[None]).items()}


@torch.no_grad()
def reached(worker: Worker, decoder: Decoder, task: RecommendationTask) -> dict[Part, Reached]:
    """Of every part that has samples. A collective: every worker takes its share of the batches."""
    found: dict[Part, Reached] = {}
    objective = task.objective(decoder)
    for part in PARTS:
        if not task.samples[part]:
            continue
        batches = task.batches(part)
        names: list[str] = []
        rows: list[Tensor] = []
        for number, batch in enumerate(batches):
            if names and number % worker.world_size != worker.rank:
                continue
            normed = decoder.finish(decoder.through(decoder.start(batch.ids, batch.mask)))
            metrics = objective.metrics(normed, batch)
            metrics["loss"] = objective.loss(normed, batch)
            names = sorted(metrics)
            if number % worker.world_size == worker.rank:
                columns = [batch.sample.double(), *(metrics[n].double().cpu() for n in names)]
                rows.append(torch.stack(columns, dim=1))
        empty = torch.zeros(0, 1 + len(names), dtype=torch.float64)
        mine = torch.cat([empty, *rows]).to(worker.device)
        table = torch.cat(worker.gather_rows(mine)).cpu()
        table = table[table[:, 0].argsort()]
        found[part] = Reached(tuple(names), table[:, 1:])
    return found


def retained(
    student: Reached, teacher: Reached, users: Ints, *, replicates: int, seed: int
) -> Json:
    """Ratio of the means student / teacher of each metric, with its 95 % interval: users are drawn
    with replacement, the same for both. A metric that is 0 for the teacher is left out.
    """
    bootstrap = Bootstrap(users, replicates, seed)
    own, other = (_metrics(of.names, bootstrap.means(of.values)) for of in (student, teacher))
    means, whole, found = student.means(), teacher.means(), Json()
    for name in own:
        ratio = means[name] / whole[name] if whole[name] else math.nan
        if math.isfinite(ratio):
            found[name] = around(ratio, own[name] / other[name])
    return found


def _metrics(names: tuple[str, ...], means: Float64[Tensor, "R K"]) -> dict[str, Tensor]:
    """By name; of ratings the root of the mean square."""
    found = dict(zip(names, means.T, strict=True))
    if "squared_error" in found:
        found["rmse"] = found.pop("squared_error").sqrt()
        found["mae"] = found.pop("absolute_error")
    return found
