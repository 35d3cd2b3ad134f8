"""Homogeneous flow: what the proxies gathered comes back to the tokens of their kind as a gate.

Shapes: B rows, P proxies, D token width.
"""

from collections.abc import Mapping, Sequence

from jaxtyping import Float
from torch import Tensor, nn

from infnet.model.gated import GatedTokens
from infnet.model.layers import MLP
from infnet.model.proxies import Proxies
from infnet.model.tokens import Tokens


class ProxyGatedUnit(nn.Module):
    """PGU(X, X̃) = X ⊙ g, g = σ(MLP(Flatten(X̃))) ∈ (0,1)^D, the same for all N tokens.

    With `residual`, X + PGU(X, X̃), which is X ⊙ (1 + g). `GatedTokens` keeps the factor apart.
    """

    def __init__(
        self,
        num_proxies: int,
        dim: int,
        *,
        hidden: Sequence[int] = (),
        dropout: float = 0.0,
        residual: bool = False,
    ) -> None:
        super().__init__()
        self.residual = residual
        self.mlp = MLP(num_proxies * dim, hidden, dim, dropout=dropout)

    def gate(self, proxies: Float[Tensor, "B P D"]) -> Float[Tensor, "B D"]:
        """σ(MLP(Flatten(X̃)))."""
        return self.mlp(proxies.flatten(1)).sigmoid()

    def forward(self, tokens: GatedTokens, proxies: Float[Tensor, "B P D"]) -> GatedTokens:
        """Gate every token channel by channel."""
        gate = self.gate(proxies)[:, None]
        return tokens.by(1 + gate if self.residual else gate)


class HomogeneousFlow(nn.Module):
    """Second half of a block: C' = PGU(C, C̃), S' = PGU(S, S̃), T' = PGU(T̂, T̃).

    With `residual` each is X + PGU(X, X̃). `num_proxies` names the kinds gated here, with how many
    proxies each has; the others pass as they are.
    """

    def __init__(
        self,
        num_proxies: Mapping[str, int],
        dim: int,
        *,
        hidden: Sequence[int],
        dropout: float,
        residual: bool,
        layer_norm: bool,
    ) -> None:
        super().__init__()
        self.gates = nn.ModuleDict(
            {
                f"gate_{kind}": ProxyGatedUnit(
                    num, dim, hidden=hidden, dropout=dropout, residual=residual
                )
                for kind, num in num_proxies.items()
            }
        )
        self.kinds = tuple(num_proxies)
        self.norms = nn.ModuleDict(
            {f"norm_{kind}": nn.LayerNorm(dim) for kind in num_proxies if layer_norm}
        )

    def forward(self, tokens: Tokens, proxies: Proxies) -> Tokens:
        """Gate the kinds that are gated here."""
        gated: dict[str, GatedTokens] = {}
        for kind in self.kinds:
            after = self.gates[f"gate_{kind}"](getattr(tokens, kind), getattr(proxies, kind))
            gated[kind] = after.map(self.norms[f"norm_{kind}"]) if self.norms else after
        return tokens._replace(**gated)
