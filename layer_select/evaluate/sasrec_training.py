"""Training of SASRec: full-softmax cross-entropy, early stopping on validation, resumable.

Shapes: N targets of a step, D width, I items.
"""

import copy
import math
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from layer_select.evaluate.config import SasRec
from layer_select.evaluate.sasrec import SasRecNetwork, padded
from layer_select.task.ranking import rank_metrics, ranks
from rayrun.config import ConfigError, Json
from rayrun.data.sequences import PARTS, Ints, Sequences
from rayrun.ray.worker import Worker

STATE = "sasrec.pt"
WATCHED = "ndcg@10"
LOGITS_AT_ONCE = 1 << 26
"""Bounds the memory of one forward pass: targets × items."""
SCORED_AT_ONCE = 256
"""Users of one forward pass of the validation."""

Question = tuple[Ints, int]
"""A history, and the item that came next."""


def train(worker: Worker, config: SasRec, sequences: Sequences) -> tuple[SasRecNetwork, Json]:
    """Learn from the training events, and keep the weights of the best epoch.

    Adam; an epoch takes every user once, in an order of its own. After each, NDCG@10 of the
    validation events is watched (the item before the test item; with a split of its own, the likes
    of its validation part). Every epoch draws from a stream of its own, so that an interrupted
    training that goes on is the uninterrupted one. Only this worker trains.

    Returns:
        The network in evaluation mode, and `epochs`, `best_epoch`, `validation` (NDCG@10 by epoch),
        `losses`, `train_s`, `parameters`.

    Raises:
        ConfigError: no user has two training events; a loss that is not finite; or a damaged state.
    """
    histories = [items for items in sequences.training() if len(items) > 1]
    if not histories:
        raise ConfigError(
            f"SASRec learns from histories of two training events or more, but {sequences.name} "
            "has none; take more users (--set data.users=0), or leave sasrec out of evaluate.rivals"
        )
    asked = questions(sequences, "validation")[: config.validation_users]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        network = SasRecNetwork(config, len(sequences.titles)).to(worker.device)
        optimizer = torch.optim.Adam(
            network.parameters(), lr=config.lr, weight_decay=config.weight_decay
        )
        told: Json = {"epochs": 0, "best_epoch": 0, "validation": [], "losses": [], "train_s": 0.0}
        best = copy.deepcopy(network.state_dict())
        if (found := worker.latest_checkpoint()) is not None:
            best, told = _restore(found / STATE, network, optimizer)
        while told["epochs"] < config.epochs and not _spent(config, told):
            started = time.monotonic()
            told["epochs"] += 1
            loss = _epoch(network, optimizer, config, histories, told["epochs"])
            if not math.isfinite(loss):
                raise ConfigError(
                    f"the loss of SASRec must be finite, found {loss} in epoch {told['epochs']}; "
                    "lower the lr of sasrec in evaluate.rivals"
                )
            value = float(measure(network, asked)[WATCHED].mean()) if asked else -loss
            if value > max(told["validation"], default=-math.inf):
                best, told["best_epoch"] = copy.deepcopy(network.state_dict()), told["epochs"]
            told["validation"].append(value)
            told["losses"].append(loss)
            told["train_s"] += time.monotonic() - started
            worker.progress(told["epochs"], config.epochs, f"SASRec, validation {value:.4f}")
            _save(worker, network, optimizer, best, told)
    network.load_state_dict(best)
    told["parameters"] = sum(p.numel() for p in network.parameters())
    return network.eval(), told


def questions(sequences: Sequences, part: str) -> list[Question]:
    """Whole histories and what came next, of every user, in the part `validation` or `test`."""
    if sequences.rated is not None:
        rated = sequences.rated
        rows = np.flatnonzero((rated.part == PARTS.index(part)) & (rated.label == 1))
        pairs = [(rated.history[row], int(rated.item[row])) for row in rows.tolist()]
        return [(history, item) for history, item in pairs if len(history)]
    last = 1 if part == "test" else 2
    return [(items[:-last], int(items[-last])) for items in sequences.histories]


@torch.no_grad()
def measure(
    network: SasRecNetwork, asked: Sequence[Question], *, exclude_seen: bool = False
) -> dict[str, Tensor]:
    """Ranking metrics of each question over the full catalogue, ties against us.

    `exclude_seen`: items of the history do not take part in the ranking, unless they are the
    target.
    """
    network.eval()
    found: list[Tensor] = []
    order = sorted(range(len(asked)), key=lambda n: len(asked[n][0]))
    for start in range(0, len(order), SCORED_AT_ONCE):
        some = [asked[n] for n in order[start : start + SCORED_AT_ONCE]]
        scores = network.scores([history for history, _ in some])
        target = torch.tensor([item for _, item in some], device=scores.device)
        if exclude_seen:
            without_seen(scores, [history for history, _ in some], target)
        found.append(ranks(scores, target).cpu())
    rank = torch.empty(len(asked), dtype=torch.int64)
    rank[torch.tensor(order)] = torch.cat(found)
    return rank_metrics(rank)


def without_seen(scores: Tensor, histories: Sequence[Ints], target: Tensor) -> None:
    """Put the items of each history behind all others, in place; the target stays."""
    own = scores.gather(1, target[:, None])
    counts = [len(history) for history in histories]
    row = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    items = torch.from_numpy(np.concatenate([*histories, np.zeros(0, np.int64)]))
    scores[row.to(scores.device), items.to(scores.device)] = -torch.inf
    scores.scatter_(1, target[:, None], own)


def _epoch(
    network: SasRecNetwork,
    optimizer: torch.optim.Optimizer,
    config: SasRec,
    histories: Sequence[Ints],
    epoch: int,
) -> float:
    """Mean loss over the targets of one epoch."""
    network.train()
    torch.manual_seed((config.seed << 32) + epoch)  # of dropout
    order = np.random.default_rng([config.seed, epoch]).permutation(len(histories))
    num_items = network.items.num_embeddings
    total, count = 0.0, 0
    for start in range(0, len(order), config.batch_users):
        users = [
            histories[n][-config.max_length - 1 :] for n in order[start:][: config.batch_users]
        ]
        targets = sum(len(items) - 1 for items in users)
        optimizer.zero_grad(set_to_none=True)
        for some in _within(users, num_items):
            loss = _loss_sum(network, some)
            (loss / targets).backward()
            total += float(loss.detach())
        optimizer.step()
        count += targets
    return total / count


def _within(users: Sequence[Ints], num_items: int) -> list[list[Ints]]:
    """Users in portions of similar lengths, whose logits keep to the bound: little is padded."""
    portions: list[list[Ints]] = []
    used = 0
    for items in sorted(users, key=len):
        cost = (len(items) - 1) * num_items
        fits = portions and len(items) <= 4 + 1.5 * len(portions[-1][0])
        if not fits or used + cost > LOGITS_AT_ONCE:
            portions.append([])
            used = 0
        portions[-1].append(items)
        used += cost
    return portions


def _loss_sum(network: SasRecNetwork, users: Sequence[Ints]) -> Tensor:
    device = network.items.weight.device
    items, valid = padded([items[:-1] for items in users], network.config.max_length)
    target, _ = padded([items[1:] for items in users], network.config.max_length)
    states = network(items.to(device), valid.to(device))[valid.to(device)]
    logits = network.of_states(states)
    return F.cross_entropy(logits, target[valid].to(device), reduction="sum")


def _spent(config: SasRec, told: Json) -> bool:
    return told["epochs"] - told["best_epoch"] >= config.patience


def _save(
    worker: Worker,
    network: SasRecNetwork,
    optimizer: torch.optim.Optimizer,
    best: dict[str, Tensor],
    told: Json,
) -> None:
    with tempfile.TemporaryDirectory(prefix="sasrec-") as folder:
        state = {
            "network": network.state_dict(),
            "optimizer": optimizer.state_dict(),
            "best": best,
            "told": told,
        }
        torch.save(state, Path(folder) / STATE)
        worker.report({"epochs": float(told["epochs"])}, Path(folder))


def _restore(
    place: Path, network: SasRecNetwork, optimizer: torch.optim.Optimizer
) -> tuple[dict[str, Tensor], Json]:
    try:
        state = torch.load(place, map_location="cpu", weights_only=True)
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        return state["best"], state["told"]
    except Exception as error:  # torch, zipfile and pickle each raise their own
        raise ConfigError(
            f"the training state {place} is damaged or of another SASRec "
            f"({str(error).splitlines()[0]}); remove it and start again"
        ) from error
