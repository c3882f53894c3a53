"""Rotary positions of a GGUF file: base, width, scaling, and factors stored as tensors."""

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from frenet._errors import UsageError
from frenet.network.checkpoints.gguf_file import AGAIN
from frenet.network.checkpoints.gguf_keys import Settings

FREQUENCIES = "rope_freqs.weight"
SHORT, LONG = "rope_factors_short.weight", "rope_factors_long.weight"
# llama.cpp's default base, and its base of local attention.
_BASE = 10000.0
# Relative difference below which two frequencies are equal in float32.
_SAME = 1e-5


class Rope(NamedTuple):
    """The rotary positions of a file.

    Attributes:
        tensors: names of the tensors with factors of frequencies.
        dimensions: number of rotated dimensions of a head.
        frequencies: frequencies of the pairs, in radians per position; None for YaRN, which is not
            computed here.
    """

    tensors: frozenset[str]
    dimensions: int
    frequencies: np.ndarray | None


def carry_rope(settings: Settings) -> Rope | None:
    """Set the rotary positions of a configuration from a file; None if it has none.

    Settings that it cannot express stay in ``settings.left``.

    Raises:
        ValueError: the configuration cannot express factors in a tensor, or of the attention.
    """
    config, file = settings.config, settings.file
    parameters = getattr(config, "rope_parameters", None)
    if parameters is None:
        return None
    local = [kind for kind, each in parameters.items() if isinstance(each, dict)]
    if local and set(local) != {"full_attention", "sliding_attention"}:
        return None
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    turned = int(settings.take("rope.dimension_count", width))
    rope: dict[str, Any] = {"rope_theta": float(settings.take("rope.freq_base", _BASE))}
    if turned != width or "partial_rotary_factor" in parameters:
        rope["partial_rotary_factor"] = turned / width
    stored = {name: file.values(name) for name in (FREQUENCIES, SHORT, LONG)}
    factors = {name: values for name, values in stored.items() if values is not None}
    rope |= _factors(settings, factors, rope["rope_theta"], turned) or _stretched(settings)
    rope.setdefault("rope_type", "default")
    if local:
        base = settings.take("rope.freq_base_swa", _BASE)
        near = {"rope_type": "default", "rope_theta": base}
        config.rope_parameters = {"full_attention": rope, "sliding_attention": near}
    else:
        config.rope_parameters = rope
    return Rope(frozenset(factors), turned, _frequencies(rope, factors, turned))


def require_turned(name: str, model: nn.Module, rope: Rope) -> None:
    """Check that a model has the frequencies of its file.

    Raises:
        ValueError: it has others, for example because its class ignores a setting.
    """
    for where, module in model.named_modules():
        for prefix in ("", "full_attention_"):
            frequencies = getattr(module, f"{prefix}inv_freq", None)
            if not isinstance(frequencies, torch.Tensor):
                continue
            values, expected = frequencies.double().numpy(), rope.frequencies
            right = 2 * len(values) == rope.dimensions
            if right and expected is not None:
                right = np.allclose(values, expected, rtol=10 * _SAME, atol=0)
            if not right:
                raise UsageError(
                    f"{name} rotates {rope.dimensions} dimensions of a head with frequencies that "
                    f"{where} of transformers does not have; load the folder in Hugging Face "
                    "format that the file was made from"
                )


def _frequencies(
    rope: dict[str, Any], factors: dict[str, np.ndarray], turned: int
) -> np.ndarray | None:
    r"""$\omega_i = \theta^{-2i/d} / f_i$, with the factors of short texts."""
    if rope["rope_type"] == "yarn":
        return None
    divided: Any = factors.get(FREQUENCIES, factors.get(SHORT, 1.0))
    plain = rope["rope_theta"] ** -(np.arange(0, turned, 2) / turned)
    return np.asarray(plain / divided / (rope.get("factor", 1.0) if not factors else 1.0))


def _stretched(settings: Settings) -> dict[str, Any]:
    """Scaling by a factor: linear, or YaRN."""
    left = settings.left
    factor = float(left.get("rope.scaling.factor", left.get("rope.scale_linear", 0.0)) or 1.0)
    kind = left.get("rope.scaling.type", "linear")
    original = left.get("rope.scaling.original_context_length")
    length = getattr(settings.config, "max_position_embeddings", 0)
    attention = float(left.get("rope.scaling.attn_factor", 1.0))
    if kind == "none" or factor == 1 or kind == "linear":
        if attention != 1:
            raise settings.refuse("rope.scaling.attn_factor", attention)
        plain = kind == "none" or factor == 1
        rope = {"rope_type": "default"} if plain else {"rope_type": "linear", "factor": factor}
        _drop(settings, "yarn_beta_fast", "yarn_beta_slow", "yarn_ext_factor", "yarn_attn_factor")
        _drop(settings, "yarn_log_multiplier")
    elif kind == "yarn":
        rope = {
            "rope_type": "yarn",
            "factor": factor,
            "original_max_position_embeddings": original or length,
            "beta_fast": settings.take("rope.scaling.yarn_beta_fast", 32.0),
            "beta_slow": settings.take("rope.scaling.yarn_beta_slow", 1.0),
            "attention_factor": attention * (1 + 0.1 * math.log(factor)),
        }
        for name in ("yarn_ext_factor", "yarn_attn_factor"):
            if left.get(f"rope.scaling.{name}") == 1:
                _drop(settings, name)
    else:
        return {"rope_type": "default"}
    settings.take("rope.scale_linear")
    _drop(settings, "type", "factor", "original_context_length", "attn_factor")
    return rope


def _drop(settings: Settings, *names: str) -> None:
    """Mark keys of the scaling as done."""
    for name in names:
        settings.take(f"rope.scaling.{name}")


def _factors(
    settings: Settings, factors: dict[str, np.ndarray], base: float, turned: int
) -> dict[str, Any]:
    """Settings for factors of single frequencies; empty if the file has none."""
    if not factors or all((values == 1).all() for values in factors.values()):
        return {}
    left, file, config = settings.left, settings.file, settings.config
    for name, values in factors.items():
        if values.shape != (turned // 2,) or not (values > 0).all():
            raise UsageError(
                f"{file.name} is damaged: {name} has {values.size} factors, which should be "
                f"{turned // 2} numbers above 0; {AGAIN}"
            )
    if (factor := left.get("rope.scaling.factor", 1.0)) not in (0.0, 1.0):
        raise settings.refuse("rope.scaling.factor", f"{factor} with {', '.join(factors)}")
    # For a tensor of frequencies only ratios to a length matter; Llama 3.1 has 8,192.
    length = getattr(config, "max_position_embeddings", 0)
    usual = min(8192, length) if FREQUENCIES in factors else length
    original = settings.take("rope.scaling.original_context_length") or usual
    attention = float(settings.take("rope.scaling.attn_factor", 1.0))
    _drop(settings, "type", "factor")
    if FREQUENCIES in factors:
        if attention == 1 and (rope := _llama3(factors[FREQUENCIES], base, turned, original)):
            return rope
        short = long = factors[FREQUENCIES]
    elif {SHORT, LONG} <= set(factors):
        short, long = factors[SHORT], factors[LONG]
    else:
        raise UsageError(f"{file.name} has {next(iter(factors))} without its counterpart")
    if settings.has("original_max_position_embeddings"):
        settings.set("original_max_position_embeddings", original)
    return {
        "rope_type": "longrope", "short_factor": short.tolist(), "long_factor": long.tolist(),
        "attention_factor": attention, "original_max_position_embeddings": original,
    }  # fmt: skip


def _llama3(factors: np.ndarray, base: float, turned: int, length: int) -> dict[str, Any] | None:
    r"""The settings of Llama 3.1 that give these factors, or None.

    $$\frac{1}{f_i} = \frac{1 - s_i}{F} + s_i, \qquad
      s_i = \mathrm{clip}\Big(\frac{L \omega_i / 2\pi - l}{h - l}, 0, 1\Big)$$

    F is the largest factor, $\omega_i$ the original frequency. Between 0 and 1, s is linear in
    $\omega$, and its two ends give l and h for a length L; only l / L and h / L matter.
    """
    omega = base ** -(np.arange(0, turned, 2) / turned) / (2 * math.pi)
    factor = float(factors.max())
    if factors.shape != omega.shape or not factor > 1:
        return None
    share = (1 / factors - 1 / factor) / (1 - 1 / factor)
    between = (share > _SAME) & (share < 1 - _SAME)
    if between.sum() > 1:
        slope, start = np.polyfit(omega[between].astype(float), share[between].astype(float), 1)
        low, high = -start / slope, (1 - start) / slope
    else:
        # Without frequencies in between, any ends that separate the two groups will do.
        zero, one = omega[share <= _SAME], omega[share >= 1 - _SAME]
        if not (zero.size and one.size) or between.any():
            return None
        low, high = zero.max() * 1.001, one.min() * 0.999
    smooth = np.clip((omega - low) / (high - low), 0, 1)
    made = 1 / ((1 - smooth) / factor + smooth)
    if not (0 < low < high) or not np.allclose(made, factors, rtol=_SAME, atol=0):
        return None
    return {
        "rope_type": "llama3", "factor": factor, "original_max_position_embeddings": length,
        "low_freq_factor": float(low * length), "high_freq_factor": float(high * length),
    }  # fmt: skip
