"""Rotary parameters from GGUF metadata, and from the factors that Llama 3.1 files carry instead.

Llama 3.1 and later stretch low frequencies. Files say so by a tensor, `rope_freqs.weight`: factors
f_i with θ_i = base^(−2i/d) / f_i. `transformers` wants the rule they were made by: with
λ_i = 2π base^(2i/d), old context C, factor F, low 1 and high 4,

    f_i = 1 where λ_i < C/high    f_i = F where λ_i > C/low
    1/f_i = (1 − s)/F + s between, s = (C/λ_i − low)/(high − low)

F is the largest factor, and any factor between gives C. The rule found must reproduce the tensor;
where none does, the factors themselves are kept (as `longrope` with the same factors near and far).
"""

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from rayrun.config import ConfigError

if TYPE_CHECKING:
    from layer_select.sources.gguf_config import Metadata

LOW, HIGH, OLD_CONTEXT = 1.0, 4.0, 8192
TOLERANCE = 1e-5
"""Relative; the tensor was computed in float32."""


def rope(data: "Metadata") -> dict[str, Any]:
    """`rope_parameters` by the metadata alone.

    Raises:
        ConfigError: a kind of scaling that we do not know.
    """
    given: dict[str, Any] = {
        "rope_type": "default",
        "rope_theta": float(data.need("rope.freq_base", 10_000.0)),
    }
    kind = data.get("rope.scaling.type")
    factor = data.get("rope.scaling.factor")
    if kind is None and data.family.model_type == "gpt_oss" and factor:
        kind = "yarn"  # Ollama's converter leaves the type to the reader
    if kind in (None, "none"):
        return given
    if kind == "linear":
        return {**given, "rope_type": "linear", "factor": float(data.need("rope.scaling.factor"))}
    if kind != "yarn":
        raise ConfigError(
            f"{data.where}: {data.architecture}.rope.scaling.type must be none, linear or yarn, "
            f"found {kind!r}"
        )
    given |= {
        "rope_type": "yarn",
        "factor": float(data.need("rope.scaling.factor")),
        "original_max_position_embeddings": data.need("rope.scaling.original_context_length"),
        "beta_fast": float(data.need("rope.scaling.yarn_beta_fast", 32.0)),
        "beta_slow": float(data.need("rope.scaling.yarn_beta_slow", 1.0)),
    }
    if data.family.model_type == "gpt_oss":
        given["truncate"] = False  # of the published models; GGUF has no entry for it
    return given


def llama_factors(data: "Metadata", head: int, factors: np.ndarray) -> dict[str, Any]:
    """`rope_parameters` that reproduce `rope_freqs.weight` [head / 2].

    Raises:
        ConfigError: not as many factors as pairs, factors that are no positive numbers, or another
            scaling beside them.
    """
    theta = float(data.need("rope.freq_base", 10_000.0))
    if factors.shape != (head // 2,) or not np.all(np.isfinite(factors)) or factors.min() <= 0:
        raise ConfigError(
            f"{data.where}: rope_freqs.weight must hold {head // 2} positive factors, one for each "
            f"pair of a head, found shape {list(factors.shape)}"
        )
    if (kind := data.get("rope.scaling.type")) not in (None, "none"):
        raise ConfigError(
            f"{data.where}: rope_freqs.weight and {data.architecture}.rope.scaling.type {kind!r} "
            "are both given; one way of scaling is known at a time"
        )
    plain = {"rope_type": "default", "rope_theta": theta}
    if np.all(factors == 1):
        return plain
    factor = float(factors.max())
    for old in _old_contexts(data, theta, head, factors, factor):
        rule = {
            "factor": factor,
            "low_freq_factor": LOW,
            "high_freq_factor": HIGH,
            "original_max_position_embeddings": old,
        }
        if np.allclose(llama3_factors(theta, head, rule), factors, rtol=TOLERANCE, atol=0):
            return {**plain, "rope_type": "llama3", **rule}
    listed = [float(value) for value in factors]
    return {
        **plain,
        "rope_type": "longrope",
        "long_factor": listed,
        "short_factor": listed,
        "attention_factor": 1.0,
        "original_max_position_embeddings": data.get("context_length", OLD_CONTEXT),
    }


def llama3_factors(theta: float, head: int, rule: dict[str, Any]) -> np.ndarray:
    """f_i of the rule above, [head / 2]."""
    wavelengths = 2 * math.pi * theta ** (np.arange(0, head, 2) / head)
    old, low, high = (
        rule[name]
        for name in ("original_max_position_embeddings", "low_freq_factor", "high_freq_factor")
    )
    share = np.clip((old / wavelengths - low) / (high - low), 0, 1)
    return 1 / ((1 - share) / rule["factor"] + share)


def _old_contexts(
    data: "Metadata", theta: float, head: int, factors: np.ndarray, factor: float
) -> list[int]:
    """Candidates, the likeliest first: what the file says, what its factors say, the usual one."""
    wavelengths = 2 * math.pi * theta ** (np.arange(0, head, 2) / head)
    between = (factors > 1 + 1e-3) & (factors < factor * (1 - 1e-3))
    share = (1 / factors[between] - 1 / factor) / (1 - 1 / factor)
    implied = wavelengths[between] * (LOW + share * (HIGH - LOW))
    said = data.get("rope.scaling.original_context_length")
    guesses = [said, *(round(float(value)) for value in implied[:3]), OLD_CONTEXT]
    return [int(guess) for guess in guesses if guess]
