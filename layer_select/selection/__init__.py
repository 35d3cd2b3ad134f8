"""Selection: which layers stay. One file for each strategy; all see the same `Search`."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from layer_select.selection.baselines import EveryNth, FirstK, Random
from layer_select.selection.beam import Beam
from layer_select.selection.block import Block
from layer_select.selection.budget import Budget, LayerBudget, ParameterBudget, TimeBudget
from layer_select.selection.distributed import Distributed
from layer_select.selection.exhaustive import Exhaustive
from layer_select.selection.greedy import GreedyBackward, GreedyForward, Hybrid, Incremental
from layer_select.selection.strategic import Strategic
from layer_select.selection.top_k import TopK
from rayrun.config import Config

__all__ = [
    "AnyStrategy",
    "Budget",
    "LayerBudget",
    "ParameterBudget",
    "Select",
    "Strategy",
    "TimeBudget",
]

AnyStrategy = (
    TopK
    | Distributed
    | Strategic
    | Hybrid
    | Block
    | Incremental
    | GreedyBackward
    | GreedyForward
    | Beam
    | Exhaustive
    | FirstK
    | EveryNth
    | Random
)
Strategy = Annotated[AnyStrategy, Field(discriminator="type")]


class Select(Config):
    """Which layers stay, and how the choice is made and checked."""

    strategy: Strategy = GreedyBackward()
    budget: Budget = LayerBudget(share=0.5)
    protect: tuple[int, ...] = (0, -1)
    """Layers that always stay; negative ones count from the end."""
    portable: bool = True
    """Keep only sets that other runtimes compute exactly, where a family gives a layer its kind by
    its index. false: only Hugging Face's code will run the model."""
    refine: Literal["none", "swap"] = "none"
    """Exchange single layers after the search, while the calibration loss falls."""
    refine_rounds: PositiveInt = 10
    random_baselines: PositiveInt = 5
    """Random sets of the same size that the choice is compared with on the test samples."""
    optimum: bool = False
    """Also find the best set by trying all, for models of at most 12 layers."""
    bootstrap: NonNegativeInt = 1000
    """Replicates over the test samples behind each 95 % interval; 0: no intervals."""
    cache_bytes: NonNegativeInt = 1 << 30
    """Memory for hidden states that sets of layers share; what does not fit is computed again."""
    seed: int = 0
    """Of random sets, replicates and the shuffled targets of the check for a signal."""
