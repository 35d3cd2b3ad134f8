"""One INFNet block: heterogeneous flow, then homogeneous flow."""

from typing import Literal

from torch import nn

from infnet.model.flow import HeterogeneousFlow
from infnet.model.gated import GatedTokens
from infnet.model.pgu import HomogeneousFlow
from infnet.model.proxies import Proxies
from infnet.model.tokens import Tokens

PguSource = Literal["post", "pre"]


class Block(nn.Module):
    """Tokens and proxies in, tokens and proxies out, of the same shapes.

    The formula of the paper gates with the proxies from before the attention (`pre`, X̃^l); its
    text says "proxy tokens from the heterogeneous stage" (`post`, X̃^{l+1}, our default).
    """

    def __init__(
        self,
        heterogeneous: HeterogeneousFlow,
        homogeneous: HomogeneousFlow,
        *,
        pgu_source: PguSource = "post",
    ) -> None:
        super().__init__()
        self.heterogeneous = heterogeneous
        self.homogeneous = homogeneous
        self.pgu_source: PguSource = pgu_source

    def forward(self, tokens: Tokens, proxies: Proxies) -> tuple[Tokens, Proxies]:
        """Kinds exchange through their proxies; the proxies gate their kind."""
        after, task = self.heterogeneous(tokens, proxies)
        gating = after if self.pgu_source == "post" else proxies
        return self.homogeneous(tokens._replace(task=GatedTokens(task)), gating), after
