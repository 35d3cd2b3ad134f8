"""A checkpoint made of raw tensors, whatever their names and layout in the files."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from layer_select.sources.checkpoint import Checkpoint, Info
from layer_select.sources.deciding import deciding_entries
from layer_select.sources.reading import reading
from layer_select.sources.skeleton import skeleton, tied_names
from rayrun.config import ConfigError


class RawInfo(NamedTuple):
    """One tensor as a file holds it; `dtype` is what it dequantises to."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    quantised: str | None = None


@runtime_checkable
class RawTensors(Protocol):
    """Tensors by the names of the files, read one at a time."""

    @property
    def infos(self) -> Mapping[str, RawInfo]:
        """What there is."""
        ...

    def read(self, name: str, dtype: torch.dtype | None) -> Tensor:
        """One tensor, dequantised, in memory of its own."""
        ...

    def blocks(self, name: str) -> bytes:
        """The bytes of a quantised tensor as they stand in the file."""
        ...


def _same(tensor: Tensor) -> Tensor:
    return tensor


@dataclass(frozen=True)
class Recipe:
    """How one tensor of the state dict is made of raw ones.

    `build` runs on meta tensors too: that is how shapes are checked before anything is read.
    """

    sources: tuple[str, ...]
    build: Callable[..., Tensor] = _same
    moves_only: bool = True
    """Elements are moved, not computed with: converting them before or after is the same."""


class Mapped(Checkpoint):
    """A `Checkpoint` of a configuration, raw tensors and a recipe for every expected name."""

    def __init__(
        self,
        config: Any,
        where: str,
        raw: RawTensors,
        recipe: Callable[[str], Recipe],
        *,
        ignored: Iterable[str] = (),
    ) -> None:
        """Check names and shapes.

        Args:
            config: of the text decoder.
            where: how messages call the model.
            raw: what the files hold.
            recipe: of a name of the state dict; its sources need not exist.
            ignored: raw tensors that the model does without.

        Raises:
            ConfigError: tensors are missing, left over, or of another shape than the configuration
                says.
        """
        self.config = config
        self.where = where
        self._raw = raw
        model = skeleton(config)
        self._tied = tied_names(model)
        expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        self._recipes = {name: recipe(name) for name in expected if name not in self._tied}
        self._check_names(set(ignored))
        self._shapes = self._checked_shapes(expected)

    @property
    def shapes(self) -> Mapping[str, Info]:
        """See `Checkpoint`."""
        return self._shapes

    @property
    def quantised(self) -> str | None:
        """Types of the quantised tensors, sorted; None if there are none."""
        types = {
            self._raw.infos[source].quantised
            for recipe in self._recipes.values()
            for source in recipe.sources
        } - {None}
        return ", ".join(sorted(str(name) for name in types)) or None

    def tensor(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """One tensor of the state dict; see `Checkpoint`."""
        recipe = self._recipes[self._tied.get(name, name)]
        early = dtype if recipe.moves_only else None
        built = recipe.build(*(self._raw.read(source, early) for source in recipe.sources))
        return built.to(dtype or built.dtype).contiguous()

    @property
    def digest(self) -> str:
        """See `Checkpoint`."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        total = hashlib.sha256()
        entries = deciding_entries(self.config)
        total.update(json.dumps(entries, sort_keys=True, separators=(",", ":")).encode())
        count = len(self._recipes)
        with reading(f"digest of {self.where}", self.shapes.values(), count) as bar:
            for name in sorted(self._recipes):
                self._digest_one(name, total)
                bar.advance()
        return "sha256:" + total.hexdigest()

    def _digest_one(self, name: str, total: Any) -> None:
        sources = self._recipes[name].sources
        if any(self._raw.infos[source].quantised for source in sources):
            for source in sources:
                shape, dtype, quantised = self._raw.infos[source]
                total.update(f"\n{name}\0{quantised or dtype}\0{shape}\0".encode())
                total.update(
                    self._raw.blocks(source) if quantised else memory(self._raw.read(source, None))
                )
            return
        hash_tensor(total, name, self.tensor(name))

    def _check_names(self, ignored: set[str]) -> None:
        needed = {source for recipe in self._recipes.values() for source in recipe.sources}
        there = set(self._raw.infos)
        kind = self.config.model_type
        if missing := sorted(needed - there):
            raise ConfigError(
                f"{self.where}: a {kind} model of {self.config.num_hidden_layers} layers needs "
                f"tensors that are missing: {_listed(missing)}; the files are incomplete, or the "
                "configuration is another model's: copy the model again"
            )
        if extra := sorted(there - needed - ignored):
            raise ConfigError(
                f"{self.where}: a {kind} model of {self.config.num_hidden_layers} layers has no "
                f"tensors {_listed(extra)}, and the files hold them; the configuration is another "
                "model's, or this is more than a language model"
            )

    def _checked_shapes(self, expected: Mapping[str, tuple[int, ...]]) -> dict[str, Info]:
        shapes: dict[str, Info] = {}
        for name, shape in expected.items():
            recipe = self._recipes[self._tied.get(name, name)]
            infos = [self._raw.infos[source] for source in recipe.sources]
            parts = [torch.empty(i.shape, dtype=i.dtype, device="meta") for i in infos]
            try:
                built = recipe.build(*parts)
                found = tuple(built.shape)
            except (RuntimeError, IndexError):  # parts that do not go together
                built, found = parts[0], None
            if found != shape:
                held = ", ".join(
                    f"{source} {list(info.shape)}"
                    for source, info in zip(recipe.sources, infos, strict=True)
                )
                raise ConfigError(
                    f"{self.where}: {name} must have the shape {list(shape)} by the "
                    f"configuration; the files hold {_short(held)}: weights and configuration "
                    "belong to different models"
                )
            if not built.dtype.is_floating_point:
                raise ConfigError(
                    f"{self.where}: {name} must hold floating-point numbers, found {built.dtype}: "
                    "save the model unquantised, or as GGUF"
                )
            shapes[name] = Info(shape, built.dtype)
        return shapes


def hash_tensor(total: Any, name: str, tensor: Tensor) -> None:
    """Add one tensor that is not quantised to the digest of a model."""
    total.update(f"\n{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
    total.update(memory(tensor))


def memory(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous tensor on the CPU."""
    array: Any = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
    return memoryview(array)


def _listed(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _short(text: str, limit: int = 200) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
