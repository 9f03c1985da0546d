"""Rotary scaling, as a GGUF file's keys and tensors of factors tell of it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from nbtune.models.gguf_file.header import GgufHeader, refused
from nbtune.models.gguf_file.numbers import values

_FACTORS = "rope_freqs.weight"
_LONG, _SHORT = "rope_factors_long.weight", "rope_factors_short.weight"
TENSORS = {_FACTORS, _LONG, _SHORT}
_ATTENTION = "rope.scaling.attn_factor"
_USUAL = ((1.0, 4.0),)  # where Llama 3.1's scaling begins and ends
_NEAR = 1e-3
_BASE = 10000.0  # where a file says none, as llama.cpp has it
_SHORTEST = 8  # tokens that yarn may have been made of: of fewer, its ends cross
_STILL = 1e15  # what is divided by more turns nothing
_NO_SCALING = "its rotary factors are of no scaling that transformers has"


def rope_parameters(header: GgufHeader, head_dim: int, context: int) -> dict[str, Any]:
    """Return transformers' rotary parameters.

    Args:
        header: of the file.
        head_dim: width of a head.
        context: tokens that the model was made for.

    Raises:
        SpecError: a scaling that transformers has no equal for.
    """
    arch = header.arch
    theta, turned = header.real(f"{arch}.rope.freq_base", _BASE), header.whole(f"{arch}.rope.dimension_count", 0)
    out: dict[str, Any] = {"rope_type": "default", "rope_theta": theta}
    if turned > head_dim:
        raise refused(
            header.place, f"its keys do not fit its weights: {turned:,} numbers of a head turn, of {head_dim:,}"
        )
    if turned:  # also where it is all of a head: for some families' configs a part is the default
        out["partial_rotary_factor"] = turned / max(head_dim, 1)
    turned = turned or head_dim
    kind = header.text(f"{arch}.rope.scaling.type", "linear")
    factor = header.real(f"{arch}.rope.scaling.factor", header.real(f"{arch}.rope.scale_linear", 1.0)) or 1.0
    factor = 1.0 if kind == "none" else factor  # so does llama.cpp: what is not said is linear
    original = header.whole(f"{arch}.rope.scaling.original_context_length", context) or context
    if beside := next((name for name in (_FACTORS, _LONG) if name in header.tensors), ""):
        _refuse_more(header, beside, kind, factor)
    if _FACTORS in header.tensors:
        found = _factors(header, _FACTORS, turned)
        return {**out, **(_proportional(header, found) if found.max() > _STILL else _llama3(header, found, theta))}
    if _LONG in header.tensors and _SHORT in header.tensors:
        return {**out, **_longrope(header, turned, original, context)}
    if kind in ("none", "linear", "longrope"):
        if (attention := header.real(f"{arch}.{_ATTENTION}", 1.0)) != 1.0:
            raise refused(header.place, f"its {arch}.{_ATTENTION} is {attention:g}, which is read with yarn only")
        return out if factor == 1.0 else {**out, "rope_type": "linear", "factor": factor}
    if kind == "yarn":
        if original < _SHORTEST:
            said = f"{arch}.rope.scaling.original_context_length"
            raise refused(header.place, f"its {said} is {original} tokens")
        own = {**out, "rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}
        return {**own, **_yarn(header, factor)}
    raise refused(header.place, f"its {arch}.rope.scaling.type {kind[:40]!r} is not known")


def refuse_half_scaled(header: GgufHeader) -> None:
    """See that a file does not scale angles and say that it does not: llama.cpp then scales those in windows only.

    Raises:
        SpecError: it does.
    """
    keys = ("rope.scaling.factor", "rope.scale_linear")
    factor = next((key for key in keys if f"{header.arch}.{key}" in header.metadata), "")
    if factor and header.text(f"{header.arch}.rope.scaling.type") == "none":
        cause = f"its {header.arch}.rope.scaling.type is none, and it has {header.arch}.{factor}, too"
        raise refused(header.place, cause, "Name its Hub id.")


def _refuse_more(header: GgufHeader, beside: str, kind: str, factor: float) -> None:
    """See that a file with factors scales its angles by nothing else."""
    attention = header.real(f"{header.arch}.{_ATTENTION}", 1.0)
    odd = {
        "rope.scaling.type": kind if kind in ("yarn", "linear") and factor != 1 else None,
        "rope.scaling.factor": factor if factor != 1 else None,
        _ATTENTION: attention if beside == _FACTORS and attention != 1 else None,
    }
    if key := next((key for key, value in odd.items() if value is not None), None):
        raise refused(
            header.place, f"its {header.arch}.{key} is {odd[key]}, and it has {beside}, too", "Name its Hub id."
        )


def check_turned(header: GgufHeader, outline: Any) -> None:
    """See that a model turns as many of a head's numbers as its file says: many classes turn all, whatever is said.

    Args:
        header: of the file.
        outline: its model, whose weights are not looked at.

    Raises:
        SpecError: it turns more, or fewer.
    """
    key = f"{header.arch}.rope.dimension_count"
    made = {2 * angles.shape[-1] for name, angles in outline.named_buffers() if name.endswith("inv_freq")}
    for module in outline.modules():
        made &= _usual(module) or made
    if key in header.metadata and made and (said := header.whole(key)) not in made:
        turned = " or ".join(map(str, sorted(made)))
        kind = outline.config.model_type
        raise refused(header.place, f"its {key} is {said}: numbers of a head that turn, of which a {kind} has {turned}")


def _usual(module: Any) -> set[int]:
    """Return how many numbers of a head a module turns where nothing is scaled; {}: it turns none, or does not say.

    Where angles are scaled, transformers computes as many as a config says, and not as many as a model turns.
    """
    usual, kinds = getattr(module, "compute_default_rope_parameters", None), getattr(module, "rope_type", None)
    if usual is None or kinds in (None, "default") or isinstance(kinds, dict):
        return set()
    return {2 * len(usual(module.config)[0])}


def _yarn(header: GgufHeader, factor: float) -> dict[str, Any]:
    """Return by what a file's yarn scales attention beyond the usual."""
    attention = header.real(f"{header.arch}.{_ATTENTION}", 1.0)
    usual = 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0
    return {} if attention == 1.0 else {"attention_factor": attention * usual}


def _longrope(header: GgufHeader, turned: int, original: int, context: int) -> dict[str, Any]:
    long, short = (_factors(header, name, turned).tolist() for name in (_LONG, _SHORT))
    return {
        "rope_type": "longrope",
        "long_factor": long,
        "short_factor": short,
        "factor": context / max(original, 1),
        "original_max_position_embeddings": original,
        "attention_factor": header.real(f"{header.arch}.{_ATTENTION}", 1.0),  # llama.cpp computes none
    }


def _proportional(header: GgufHeader, found: Any) -> dict[str, Any]:
    """Return which part of the frequencies is turned at all, as Gemma 4's are."""
    turned = int((found < _STILL).sum())
    if not turned or not (found[:turned] == found[0]).all():
        raise refused(header.place, _NO_SCALING, "Name its Hub id.")
    factor = {} if found[0] == 1.0 else {"factor": float(found[0])}
    return {"rope_type": "proportional", "partial_rotary_factor": turned / len(found), **factor}


def _llama3(header: GgufHeader, found: Any, theta: float) -> dict[str, Any]:
    """Find the numbers of Llama 3.1's scaling by the divisors that they make."""
    factor, turned = float(found.max()), 2 * len(found)
    for low, high in _USUAL:
        for original in (2**power for power in range(4, 21)):
            made = llama3_divisors(theta, turned, factor, (low, high), original)
            if np.abs(made / found - 1).max() < _NEAR:
                if factor == 1.0:
                    return {}
                ends = {"low_freq_factor": low, "high_freq_factor": high}
                return {
                    "rope_type": "llama3", "factor": factor, "original_max_position_embeddings": original, **ends,
                }  # fmt: skip
    beside = f"at a base of {theta:g} ({header.arch}.rope.freq_base)"
    raise refused(header.place, f"{_NO_SCALING} {beside}", "Name its Hub id.")


def llama3_divisors(theta: float, dim: int, factor: float, ends: tuple[float, float], original: int) -> Any:
    """Return by what Llama 3.1's scaling divides each frequency, (dim / 2,)."""
    low, high = ends
    waves = 2 * math.pi * theta ** (np.arange(0, dim, 2, dtype=np.float64) / dim)
    blend = np.clip((original / waves - low) / (high - low), 0, 1)
    return 1 / ((1 - blend) / factor + blend)


def _factors(header: GgufHeader, name: str, turned: int) -> Any:
    stored = header.tensors[name]
    if stored.shape != (turned // 2,):
        raise refused(header.place, f"{name} has the shape {list(stored.shape)} where {turned // 2} factors belong")
    found = values(stored).reshape(-1).astype(np.float64)
    if not (found > 0).all():
        raise refused(header.place, f"{name} holds factors that are not above 0")
    return found
