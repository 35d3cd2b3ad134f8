"""SASRec by itself on a registered set, beside the figures that others publish.

    INFNET_DATA=DIR python bench/layers/sasrec_check.py amazon_beauty2014_seq --state DIR [--seed 0]

Leave-one-out, full catalogue, ties against the model; with and without the items of the user's own
history in the ranking. A run that was interrupted is continued by the same call.
"""

import argparse
from pathlib import Path

import torch

from layer_select.evaluate.config import SasRec
from layer_select.evaluate.sasrec_training import measure, questions, train
from layer_select.task.config import SequenceData
from rayrun.config import validate
from rayrun.data.sequences import open_sequences
from rayrun.ray.worker import SingleWorker

METRICS = ("hr@5", "ndcg@5", "hr@10", "ndcg@10", "mrr")


class _Shown(SingleWorker):
    """One process that says how far it is."""

    def progress(self, done: int, total: int, note: str = "") -> None:
        """One line for each epoch."""
        print(f"epoch {done} of {total} at most: {note}", flush=True)


def main() -> None:
    """Train to the end and print two rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=SasRec().epochs)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    data = validate(SequenceData, {"source": given.name}, where="the command line")
    sequences = open_sequences(data)
    section = SasRec(seed=given.seed, epochs=given.epochs)
    network, told = train(_Shown(given.state), section, sequences)
    print(f"best epoch {told['best_epoch']} of {told['epochs']}, {told['train_s']:.0f} s")
    asked = questions(sequences, "test")
    print(" ".join(f"{name:>9}" for name in ("", *METRICS)))
    for exclude in (False, True):
        found = measure(network, asked, exclude_seen=exclude)
        values = " ".join(f"{float(found[name].mean()):>9.4f}" for name in METRICS)
        print(f"{'unseen' if exclude else 'all':>9} {values}")


if __name__ == "__main__":
    main()
