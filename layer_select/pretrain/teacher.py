"""Is the trained decoder a teacher? Its next-item ranking against popularity, paired over users."""

import numpy as np
import torch
from torch import Tensor

from layer_select.decoder import Decoder
from layer_select.evaluate.bootstrap import Bootstrap
from layer_select.task.ranking import rank_metrics, ranks
from layer_select.task.run import RecommendationTask
from layer_select.task.samples import Part
from rayrun.config import Json
from rayrun.ray.worker import Worker

WATCHED = "ndcg@10"


def compare(
    worker: Worker, decoder: Decoder, task: RecommendationTask, *, replicates: int, seed: int
) -> Json:
    """Metrics of the decoder and of popularity on the same samples, and their difference.

    Popularity ranks items by their training events; its ties too are broken against it. The part is
    test, or validation where the set keeps its test to itself. Every worker ranks its share.

    Returns:
        `part`, `samples`, `metrics`, `popularity`, and `difference`: for each metric the value and
        the ends of the 95 % interval of (model − popularity) by the user bootstrap.
    """
    part: Part = "test" if task.samples["test"] else "validation"
    events = np.concatenate(task.sequences.training())
    counted = torch.from_numpy(np.bincount(events, minlength=len(task.sequences.titles))).double()
    objective = task.objective(decoder)
    rows: list[Tensor] = []
    names: list[str] = []
    for number, batch in enumerate(task.batches(part)):
        if number % worker.world_size != worker.rank:
            continue
        with torch.no_grad():
            hidden = decoder.through(decoder.start(batch.ids, batch.mask))
            own = objective.metrics(decoder.finish(hidden), batch)
        popular = rank_metrics(ranks(counted.expand(batch.size, -1), batch.target))
        names = sorted(own)
        columns = [batch.sample.double(), *(own[n].cpu() for n in names)]
        rows.append(torch.stack([*columns, *(popular[n] for n in names)], dim=1))
    names = names or sorted(rank_metrics(torch.ones(1, dtype=torch.int64)))
    mine = torch.cat(rows) if rows else torch.zeros(0, 1 + 2 * len(names), dtype=torch.float64)
    table = torch.cat(worker.gather_rows(mine.to(worker.device))).cpu().numpy()
    table = table[np.argsort(table[:, 0])]
    users = np.array([sample.user for sample in task.samples[part]])
    model, popularity = table[:, 1 : 1 + len(names)], table[:, 1 + len(names) :]
    found: Json = {
        "part": part,
        "samples": len(table),
        "metrics": dict(zip(names, model.mean(0).tolist(), strict=True)),
        "popularity": dict(zip(names, popularity.mean(0).tolist(), strict=True)),
        "difference": {},
    }
    bootstrap = Bootstrap(users, replicates, seed)
    for name, values in zip(names, (model - popularity).T, strict=True):
        interval = bootstrap.interval(torch.from_numpy(values.copy()))
        found["difference"][name] = {
            "value": interval["mean"],
            "low": interval["low"],
            "high": interval["high"],
        }
    return found
