"""What the families of decoders differ in, as far as files and the choice of layers go.

A block computes by its weights and by what the model says about its *index*: which attention
window, which kind of MLP. Hugging Face writes that down layer by layer (`layer_types`), other
runtimes (llama.cpp, Ollama, vLLM) compute it from the index: sliding where `index % period` says
so. When layers are removed the indices move, so a selection is exact everywhere only if every kept
layer has the same index modulo the period before and after.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from rayrun.config import ConfigError


@dataclass(frozen=True)
class Family:
    """One architecture: its name in config.json, and in GGUF files."""

    model_type: str
    gguf: tuple[str, ...]
    """Spellings of `general.architecture`; the first is the one to write."""
    period: int = 1
    """Of what runtimes compute from a layer's index; 1: nothing."""


FAMILIES = (
    Family("llama", ("llama",)),
    Family("mistral", ("llama",)),
    Family("qwen2", ("qwen2",)),
    Family("qwen3", ("qwen3",)),
    Family("qwen3_moe", ("qwen3moe",)),
    Family("gpt_oss", ("gpt-oss", "gptoss"), period=2),
    Family("gemma2", ("gemma2",), period=2),
    Family("gemma3_text", ("gemma3",), period=6),
)


def family_of(config: Any) -> Family:
    """The family of a configuration of `transformers`.

    Raises:
        ConfigError: none of ours; the known ones are listed.
    """
    return by_model_type(str(getattr(config, "model_type", None)), "the model")


def by_model_type(model_type: str, where: str) -> Family:
    """The family by the `model_type` of config.json.

    Raises:
        ConfigError: none of ours; the known ones are listed.
    """
    for family in FAMILIES:
        if family.model_type == model_type:
            return family
    known = ", ".join(family.model_type for family in FAMILIES)
    raise ConfigError(f"{where}: model_type must be one of {known}; found {model_type!r}")


def by_gguf(architecture: str, where: str) -> Family:
    """The family by the `general.architecture` of a GGUF file; of two that share one, the first.

    Raises:
        ConfigError: none of ours; the known ones are listed.
    """
    for family in FAMILIES:
        if architecture in family.gguf:
            return family
    known = ", ".join(dict.fromkeys(name for family in FAMILIES for name in family.gguf))
    raise ConfigError(
        f"{where}: general.architecture must be one of {known}; found {architecture!r}"
    )


@dataclass(frozen=True)
class Constraint:
    """A kept layer's new index must equal its old one modulo `period`."""

    model_type: str
    period: int

    def allows(self, kept: Iterable[int]) -> bool:
        """Whether runtimes that go by the index compute the compacted model exactly."""
        return all(new % self.period == old % self.period for new, old in enumerate(sorted(kept)))

    def explain(self, kept: Iterable[int] = ()) -> str:
        """The rule, and the first of `kept` that breaks it."""
        rule = (
            f"{self.model_type} layers differ by their index modulo {self.period} (attention "
            f"window), so a kept layer's new index must equal its old one modulo {self.period}"
        )
        for new, old in enumerate(sorted(kept)):
            if new % self.period != old % self.period:
                return (
                    f"{rule}; layer {old} would become layer {new}: keep or remove one more layer "
                    f"before it, or choose layers in whole groups of {self.period}"
                )
        return rule


def constraints(config: Any) -> Constraint | None:
    """What a selection must respect to be exact in other runtimes too; None: any choice is.

    A model whose `layer_types` no longer follow its family's period (compacted before, for
    Hugging Face alone) is free as well: no other runtime computes it in any case.

    Raises:
        ConfigError: an unknown family, or a mixture of experts in which some layers have no
            experts: what a layer is then depends on lists of indices, which we do not renumber.
    """
    family = family_of(config)
    step = getattr(config, "decoder_sparse_step", 1)
    dense = list(getattr(config, "mlp_only_layers", None) or ())
    if step != 1 or dense:
        raise ConfigError(
            "layers can be chosen from a mixture of experts only if every layer has experts "
            f"(decoder_sparse_step 1, mlp_only_layers []); found decoder_sparse_step {step}, "
            f"mlp_only_layers {dense}"
        )
    if family.period == 1 or not follows_period(config, family.period):
        return None
    return Constraint(family.model_type, family.period)


def follows_period(config: Any, period: int) -> bool:
    """Whether the layers' types are those that runtimes compute from the index."""
    expected = (
        ["full_attention" if (i + 1) % period == 0 else "sliding_attention" for i in range(period)]
        if period > 1
        else ["full_attention"]
    )
    types = list(getattr(config, "layer_types", None) or ())
    return all(kind == expected[index % period] for index, kind in enumerate(types))


def per_layer_entries(config: Any) -> dict[str, list[Any]]:
    """The configuration's lists with one entry for each layer, by key: cut them with the layers.

    A list that merely happens to be as long as the model is deep is not among them.
    """
    return {
        name: list(value)
        for name in ("layer_types", "mlp_layer_types", "no_rope_layers")
        if isinstance(value := getattr(config, name, None), list | tuple)
        and len(value) == config.num_hidden_layers
    }
