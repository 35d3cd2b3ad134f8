"""Heterogeneous flow: proxies and task tokens read tokens of the other kinds by cross-attention.

Shapes: B rows, P_g vectors of reader g, P all readers' vectors, h heads, T tasks, D token width.
"""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from infnet.model.gated import GatedTokens
from infnet.model.proxies import Proxies
from infnet.model.tokens import Tokens


class CrossFlow(nn.Module):
    """Cross-attention CA(Q,X,X) = softmax(Q W_Q (X W_K)ᵀ / √d_k) X W_V, several readers of one X.

    Each reader has its own W_Q, W_K, W_V. There are few readers and many tokens, so the products
    are taken the cheap way round, which changes nothing but rounding: Q (W_Q W_Kᵀ) Xᵀ, and (A X)
    W_V. The tokens are never projected: the cost per reading vector and token is D, not D². Nor are
    they gated one by one, see `GatedTokens`. With h heads, d_k = D/h and the heads' results stand
    side by side (the paper has one head and no W_O). A row without a valid token reads 0.
    """

    def __init__(self, dim: int, num_readers: int, num_heads: int = 1) -> None:
        super().__init__()
        self.num_heads = num_heads
        shape = (num_readers, dim, num_heads, dim // num_heads)
        self.query, self.key, self.value = (
            nn.Parameter(_xavier(torch.empty(shape), dim)) for _ in range(3)
        )

    def forward(
        self, readers: Sequence[Float[Tensor, "B _ D"]], tokens: GatedTokens
    ) -> list[Float[Tensor, "B _ D"]]:
        """What each reader gathers."""
        scale = self.query.shape[-1] ** -0.5
        asked = torch.einsum("gdhk,gehk->gdhe", self.query, self.key) * scale
        sizes = [reader.shape[1] * self.num_heads for reader in readers]
        queries = torch.cat(
            [
                (reader @ asked[g].flatten(1)).unflatten(-1, (self.num_heads, -1)).flatten(1, 2)
                for g, reader in enumerate(readers)
            ],
            dim=1,
        )
        read = tokens.read(queries).split(sizes, dim=1)
        return [self._project(g, part) for g, part in enumerate(read)]

    def _project(self, g: int, read: Float[Tensor, "B Ph D"]) -> Float[Tensor, "B Pg D"]:
        if self.num_heads == 1:
            return read @ self.value[g, :, 0]
        heads = read.unflatten(1, (-1, self.num_heads))
        return torch.einsum("bphd,dhk->bphk", heads, self.value[g]).flatten(2)


class HeterogeneousFlow(nn.Module):
    """First half of a block: each kind's proxies read both other kinds, and so do the task tokens.

        C̃' = CA(C̃,S,S) + CA(C̃,T,T)        T̃' = CA(T̃,C,C) + CA(T̃,S,S)
        S̃' = CA(S̃,C,C) + CA(S̃,T,T)        T̂  = CA(T,C,C) + CA(T,S,S)

    with `residual` each left side also adds what it was. `kinds` are the tokens there are (without
    sequence features there is neither S nor S̃). `readers` are those built here, among
    `categorical`, `sequence` (the proxies C̃, S̃), `task_proxies` (T̃) and `task` (T): late blocks
    leave out those whose result nothing reads.
    """

    READERS_OF: Mapping[str, tuple[str, ...]] = {
        "categorical": ("sequence", "task_proxies", "task"),
        "sequence": ("categorical", "task_proxies", "task"),
        "task": ("categorical", "sequence"),
    }

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        kinds: Sequence[str],
        readers: Sequence[str],
        residual: bool,
        layer_norm: bool,
    ) -> None:
        super().__init__()
        self.readers = {
            kind: present
            for kind in kinds
            if (present := [r for r in self.READERS_OF[kind] if r in readers])
        }
        self.flows = nn.ModuleDict(
            {f"read_{kind}": CrossFlow(dim, len(r), num_heads) for kind, r in self.readers.items()}
        )
        self.residual = residual
        self.norms = nn.ModuleDict({f"norm_{r}": nn.LayerNorm(dim) for r in readers if layer_norm})

    def forward(self, tokens: Tokens, proxies: Proxies) -> tuple[Proxies, Float[Tensor, "B T D"]]:
        """C̃', S̃', T̃' and T̂; a reader that is not built here stays as it was."""
        state = {
            "categorical": proxies.categorical,
            "sequence": proxies.sequence,
            "task_proxies": proxies.task,
            "task": tokens.task.gated,
        }
        gathered: dict[str, Tensor] = {}
        for kind, readers in self.readers.items():
            source: GatedTokens = getattr(tokens, kind)
            results = self.flows[f"read_{kind}"]([state[r] for r in readers], source)
            for reader, result in zip(readers, results, strict=True):
                gathered[reader] = gathered[reader] + result if reader in gathered else result
        for reader, result in gathered.items():
            after = state[reader] + result if self.residual else result
            state[reader] = self.norms[f"norm_{reader}"](after) if self.norms else after
        after = Proxies(state["categorical"], state["sequence"], state["task_proxies"])
        return after, state["task"]


def _xavier(weight: Tensor, dim: int) -> Tensor:
    # As nn.init.xavier_uniform_ would each D × D matrix: fan in and fan out are both D.
    bound = (6 / (2 * dim)) ** 0.5
    return weight.uniform_(-bound, bound)
