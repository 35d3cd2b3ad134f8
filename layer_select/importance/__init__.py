"""Which layers matter: the methods of importance. The union is the registry.

A method that watches the pass gives an observer, one that removes layers asks `Coalitions`, and one
that combines reads what was found before it (`layer_select.importance.method`).
"""

from typing import Annotated

from pydantic import Field

from layer_select.importance.angular import Angular
from layer_select.importance.attention_concentration import AttentionConcentration
from layer_select.importance.block_influence import BlockInfluence
from layer_select.importance.cka import Cka
from layer_select.importance.fisher import Fisher
from layer_select.importance.gate_taylor import GateTaylor
from layer_select.importance.gradient_norm import GradientNorm
from layer_select.importance.hybrid import Hybrid
from layer_select.importance.kernel_shap import KernelShap
from layer_select.importance.leave_one_out import LeaveOneOut
from layer_select.importance.method import Found
from layer_select.importance.random import Random
from layer_select.importance.shapley import Shapley
from layer_select.importance.taylor import Taylor

Method = Annotated[
    Fisher
    | GradientNorm
    | Taylor
    | GateTaylor
    | AttentionConcentration
    | BlockInfluence
    | Angular
    | Cka
    | LeaveOneOut
    | Shapley
    | KernelShap
    | Random
    | Hybrid,
    Field(discriminator="type"),
]

__all__ = [
    "Angular",
    "AttentionConcentration",
    "BlockInfluence",
    "Cka",
    "Fisher",
    "Found",
    "GateTaylor",
    "GradientNorm",
    "Hybrid",
    "KernelShap",
    "LeaveOneOut",
    "Method",
    "Random",
    "Shapley",
    "Taylor",
]
