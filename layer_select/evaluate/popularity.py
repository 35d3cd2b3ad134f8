"""Popularity: items by their number of training events, the floor of every table."""

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from rayrun.data.sequences import Sequences


def popularity(sequences: Sequences) -> Float64[Tensor, " I"]:
    """Training events of each item of the catalogue; events held out for validation and test are
    not counted.
    """
    events = np.concatenate([*sequences.training(), np.zeros(0, np.int64)])
    return torch.from_numpy(np.bincount(events, minlength=len(sequences.titles))).double()
