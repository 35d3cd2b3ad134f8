"""How the numbers of one parameter lie in a GGUF file, in both directions.

`read` makes the parameter of the file's tensors and runs on meta tensors too; `write` is its
inverse. All but `PlusOne` only move numbers.
"""

from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor


@runtime_checkable
class Layout(Protocol):
    """One way a parameter is laid out."""

    moves_only: ClassVar[bool]

    def read(self, *parts: Tensor) -> Tensor:
        """The parameter of the file's tensors."""
        ...

    def write(self, whole: Tensor) -> tuple[Tensor, ...]:
        """The file's tensors of the parameter."""
        ...


@dataclass(frozen=True)
class Same:
    """As it is."""

    moves_only: ClassVar[bool] = True

    def read(self, *parts: Tensor) -> Tensor:
        """The one tensor."""
        return parts[0]

    def write(self, whole: Tensor) -> tuple[Tensor, ...]:
        """The one tensor."""
        return (whole,)


@dataclass(frozen=True)
class PlusOne:
    """Gemma's norms scale by 1 + w; GGUF holds 1 + w.

    w comes back as (1 + w) − 1 in float32: exactly where w has no more bits than fit beside the one
    (bfloat16 weights above 2⁻¹⁶), else rounded, while 1 + w, which is what the model computes with,
    is the same number in every case.
    """

    moves_only: ClassVar[bool] = False

    def read(self, *parts: Tensor) -> Tensor:
        """W in float32."""
        return parts[0].float() - 1

    def write(self, whole: Tensor) -> tuple[Tensor, ...]:
        """1 + w in float32."""
        return (whole.float() + 1,)


@dataclass(frozen=True)
class RotaryPairs:
    """Rows of q and k for llama: rotated pairs are halves in `transformers`, neighbours in GGUF."""

    heads: int
    moves_only: ClassVar[bool] = True

    def read(self, *parts: Tensor) -> Tensor:
        """Neighbours to halves, head by head."""
        rows, *rest = parts[0].shape
        pairs = parts[0].reshape(self.heads, rows // self.heads // 2, 2, *rest)
        return pairs.transpose(1, 2).reshape(rows, *rest)

    def write(self, whole: Tensor) -> tuple[Tensor, ...]:
        """Halves to neighbours, head by head."""
        rows, *rest = whole.shape
        halves = whole.reshape(self.heads, 2, rows // self.heads // 2, *rest)
        return (halves.transpose(1, 2).reshape(rows, *rest),)


@dataclass(frozen=True)
class Halves:
    """Gate above up: [E, 2 I, H] of two [E, I, H]."""

    moves_only: ClassVar[bool] = True

    def read(self, *parts: Tensor) -> Tensor:
        """Both, one above the other."""
        return torch.cat(parts, dim=1)

    def write(self, whole: Tensor) -> tuple[Tensor, ...]:
        """Gate and up."""
        return tuple(whole.chunk(2, dim=1))


@dataclass(frozen=True)
class Interleaved:
    """Gate and up by turns (gpt-oss): [E, H, 2 I] of two [E, I, H], or [E, 2 I] of two [E, I]."""

    turned: bool
    moves_only: ClassVar[bool] = True

    def read(self, *parts: Tensor) -> Tensor:
        """Gate in the even places, up in the odd ones."""
        both = torch.stack(parts, dim=2).flatten(1, 2)
        return both.transpose(1, 2) if self.turned else both

    def write(self, whole: Tensor) -> tuple[Tensor, ...]:
        """Even places and odd ones."""
        rows = whole.transpose(1, 2) if self.turned else whole
        return rows[:, 0::2], rows[:, 1::2]


@dataclass(frozen=True)
class Transposed:
    """[E, in, out] of [E, out, in]."""

    moves_only: ClassVar[bool] = True

    def read(self, *parts: Tensor) -> Tensor:
        """The other way round."""
        return parts[0].transpose(1, 2)

    def write(self, whole: Tensor) -> tuple[Tensor, ...]:
        """The other way round."""
        return (whole.transpose(1, 2),)


@dataclass(frozen=True)
class Rows:
    """Some rows of a tensor that several parameters share; read only."""

    start: int
    stop: int
    moves_only: ClassVar[bool] = True

    def read(self, *parts: Tensor) -> Tensor:
        """Rows [start, stop)."""
        return parts[0][self.start : self.stop]

    def write(self, whole: Tensor) -> tuple[Tensor, ...]:
        """Never: the file's tensor is more than this."""
        raise AssertionError("a shared tensor is not written by parts")
