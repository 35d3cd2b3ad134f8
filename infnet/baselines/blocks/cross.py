"""Cross networks of DCNv2: products of features, one degree more with each layer.

Shapes: B rows, D width of the input, E experts, r rank.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class CrossNetwork(nn.Module):
    """x_{l+1} = x_0 ⊙ (W_l x_l + b_l) + x_l (Wang et al. 2021, arXiv:2008.13535, eq. 1)."""

    def __init__(self, dim: int, num_layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(dim, dim) for _ in range(num_layers))

    def forward(self, x0: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """The last layer's output, polynomials of degree up to `num_layers` + 1."""
        x = x0
        for layer in self.layers:
            x = x0 * layer(x) + x
        return x


class LowRankCrossNetwork(nn.Module):
    """x_{l+1} = Σ_i G_i(x_l) · x_0 ⊙ (U_i tanh(C_i tanh(V_iᵀ x_l)) + b) + x_l (same paper, eq. 4).

    G = softmax over experts of a linear gate, shared by all layers, as in the authors' code and
    FuxiCTR.
    """

    def __init__(self, dim: int, num_layers: int, *, rank: int, num_experts: int) -> None:
        super().__init__()

        def matrices(rows: int, columns: int) -> nn.Parameter:
            stacked = torch.empty(num_layers, num_experts, rows, columns)
            return nn.Parameter(stacked.normal_(std=(2 / (rows + columns)) ** 0.5))

        self.v, self.c, self.u = matrices(dim, rank), matrices(rank, rank), matrices(rank, dim)
        self.bias = nn.Parameter(torch.zeros(num_layers, dim))
        self.gate = nn.Linear(dim, num_experts, bias=False)

    def forward(self, x0: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """The last layer's output."""
        x = x0
        for v, c, u, bias in zip(self.v, self.c, self.u, self.bias, strict=True):
            inner = torch.einsum("bd,edr->ber", x, v).tanh()
            inner = torch.einsum("ber,ers->bes", inner, c).tanh()
            shares = self.gate(x).softmax(dim=-1)
            # The gates sum to 1, so b comes out of the sum over experts.
            mixed = torch.einsum("be,bes,esd->bd", shares, inner, u)
            x = x0 * (mixed + bias) + x
        return x
