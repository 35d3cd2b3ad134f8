"""Keys and values of prompts that were computed, for prompts that go on where they end.

A user who returns with one more item sends the same titles and one after them: only its tokens
need computing. Prompts are compared by their tokens, so nothing is known of users, and whoever has
the same history gains. A prompt that dropped its oldest title, because it grew too long, begins
otherwise and finds nothing.

Shapes: H key/value heads, P tokens of the prefix, E head width.
"""

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Prompt:
    """The tokens of a prompt, and where a longer one may go on."""

    ids: Sequence[int]
    ends: Sequence[int]
    """Number of tokens up to the end of each title, ascending."""

    def keys(self) -> list[bytes]:
        """128 bits of BLAKE2b of the tokens up to each end."""
        content = hashlib.blake2b(digest_size=16)
        keys: list[bytes] = []
        start = 0
        for end in self.ends:
            content.update(array("q", self.ids[start:end]).tobytes())
            keys.append(content.copy().digest())
            start = end
        return keys


Pair = tuple[Float[Tensor, "H P E"], Float[Tensor, "H P E"]]
"""Keys and values of a layer."""


@dataclass(frozen=True)
class Prefix:
    """What attention needs of the first P tokens of a prompt."""

    key: bytes
    layers: Sequence[Pair]
    """Of lazy layers fewer tokens, see `lazy_prefix`."""
    length: int
    """P."""
    lazy: frozenset[int] = frozenset()
    """Layers that do not hold all tokens."""

    @property
    def size_bytes(self) -> int:
        """Of all its tensors."""
        return sum(t.numel() * t.element_size() for pair in self.layers for t in pair)


class PrefixCache:
    """Prefixes within a bound of bytes; the one unused for longest goes first."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._entries: OrderedDict[bytes, Prefix] = OrderedDict()
        self.size_bytes = 0
        """Held now; never above the limit."""
        self.hits = self.misses = 0
        """Prompts that went on from a prefix, and that did not."""

    def __len__(self) -> int:
        return len(self._entries)

    def longest(self, prompt: Prompt) -> Prefix | None:
        """The longest prefix of the prompt that is held."""
        for key in reversed(prompt.keys() if self._entries else []):
            if key in self._entries:
                self._entries.move_to_end(key)
                self.hits += 1
                return self._entries[key]
        self.misses += 1
        return None

    def put(self, prefix: Prefix, continues: Prefix | None = None) -> None:
        """Hold a prefix in the place of the one it continues; one above the limit is not held."""
        for key in {prefix.key, continues.key if continues else prefix.key}:
            self._drop(key)
        if prefix.size_bytes > self._limit:
            return
        self._entries[prefix.key] = prefix
        self.size_bytes += prefix.size_bytes
        while self.size_bytes > self._limit:
            self._drop(next(iter(self._entries)))

    def _drop(self, key: bytes) -> None:
        if (gone := self._entries.pop(key, None)) is not None:
            self.size_bytes -= gone.size_bytes
