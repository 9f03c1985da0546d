"""Finds what a decoder layer is made of, by the children that it has and the shapes of their weights.

Names lie (post-norm models have Llama's child names): what is found here is only a guess until `probe` agrees with it.
"""

import re
from collections.abc import Iterator
from typing import Any

import torch
from nbtune_kernels import ACTIVATIONS, act_mul
from nbtune_kernels.rms_norm import reference as plain_rms_norm
from torch import Tensor, nn

from nbtune.models.accelerate.layer_spec import Layer, Norm
from nbtune.models.accelerate.linear_kinds import group_of
from nbtune.models.accelerate.lora_linear import LeftAlone, LinearGroup
from nbtune.models.memory_estimate import MemoryPolicy
from nbtune.spec.placement import Placement

_CAP = re.compile(r"att.*(soft_?cap|logits?_cap)|^soft_?cap")


def causal_lm(model: nn.Module) -> nn.Module:
    """Return the transformers model inside a peft wrapper, or the model itself."""
    inner: Any = getattr(model, "base_model", None)
    return inner.model if hasattr(model, "peft_config") and hasattr(inner, "model") else model


def decoder(lm: nn.Module) -> nn.Module | None:
    """Return the part of a causal language model that holds the list of layers, or None."""
    inner = getattr(lm, getattr(lm, "base_model_prefix", "") or "model", None)
    return inner if isinstance(inner, nn.Module) and isinstance(_layer_list(inner), nn.ModuleList) else None


def _layer_list(inner: nn.Module) -> Any:
    return getattr(inner, "layers", None)


def decoder_layers(inner: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield (name, layer) of every decoder layer."""
    for i, layer in enumerate(_layer_list(inner)):
        yield f"layers.{i}", layer


def tolerance(dtype: torch.dtype) -> float:
    """Return the relative error under which two ways to compute a block count as equal."""
    return {torch.float32: 2e-4, torch.float64: 1e-5, torch.float16: 6e-3}.get(dtype, 3e-2)


def find_norm(module: nn.Module | None, width: int) -> Norm:
    """Return an RMSNorm, with the arithmetic that agrees with the module's own.

    Raises:
        LeftAlone: it is no RMSNorm over `width` numbers, or an unknown kind of one.
    """
    weight = getattr(module, "weight", None)
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if module is None or weight is None or eps is None or getattr(module, "bias", None) is not None:
        raise LeftAlone("it has a norm that is no RMSNorm")
    if tuple(weight.shape) != (width,):
        raise LeftAlone("one of its norms has another width than what it would be put on")
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(8, width, generator=generator) * 2).to(weight.device, weight.dtype)
    with torch.no_grad():
        truth = module(x)
        errors = {}
        for offset in (0.0, 1.0):
            for cast in (True, False):
                y = plain_rms_norm(x, weight, float(eps), offset, cast)  # three of four kernels would not be used again
                errors[offset, cast] = relative_error(y, truth)
    best = min(errors, key=lambda k: errors[k])
    if not errors[best] < tolerance(weight.dtype) / 3:
        raise LeftAlone("one of its norms does not agree with any RMSNorm that is known")
    return Norm(weight, float(eps), best[0], best[1], module)


def relative_error(x: Tensor, truth: Tensor) -> float:
    """Return `|x - truth| / |truth|`, infinite where either is not finite."""
    x, truth = x.detach().double(), truth.detach().double()
    error = ((x - truth).norm() / truth.norm().clamp(min=1e-30)).item()
    return error if error == error else float("inf")


def find_layer(layer: nn.Module, policy: MemoryPolicy, weights: Placement) -> Layer:
    """Read a pre-norm decoder layer: RMSNorm, rotary attention, RMSNorm, gated MLP.

    Args:
        layer: a module of the model's list of layers.
        policy: what it keeps for its backward.
        weights: its own placement (`Placement.of_layer`).

    Raises:
        LeftAlone: it is something else, with the reason.
    """
    attention, mlp = getattr(layer, "self_attn", None), getattr(layer, "mlp", None)
    if attention is None or mlp is None:
        raise LeftAlone("it has no attention and MLP side by side")
    norms = [n for n, child in layer.named_children() if getattr(child, "weight", None) is not None]
    if norms != ["input_layernorm", "post_attention_layernorm"]:
        raise LeftAlone(f"its norms are {', '.join(norms) or 'not there'}: not one before each half")
    qkv = _children(attention, ("q_proj", "k_proj", "v_proj"), ("qkv_proj",))
    gate_up = _children(mlp, ("gate_proj", "up_proj"), ("gate_up_proj",))
    qkv_group, out = group_of(qkv, weights), group_of(_children(attention, ("o_proj",)), weights)
    gu_group, down = group_of(gate_up, weights), group_of(_children(mlp, ("down_proj",)), weights)
    if _has_dropout(layer):
        raise LeftAlone("it drops parts of its hidden states while training")
    heads, kv_heads, dim = _head_counts(attention, qkv_group, out)
    if gu_group.outputs != 2 * down.inputs:
        raise LeftAlone("its MLP is not a gated one")
    hidden = qkv_group.inputs
    q_norm = k_norm = None
    if getattr(attention, "q_norm", None) is not None or getattr(attention, "k_norm", None) is not None:
        q_norm, k_norm = find_norm(attention.q_norm, dim), find_norm(attention.k_norm, dim)
    if getattr(attention, "sinks", None) is not None:
        raise LeftAlone("its attention has sinks")
    if float(getattr(attention, "attention_dropout", 0.0) or 0.0) > 0:
        raise LeftAlone("its attention has dropout")
    if _caps_scores(attention):
        raise LeftAlone("its attention caps its scores")
    return Layer(
        norm1=find_norm(layer.input_layernorm, hidden),  # type: ignore[arg-type]
        qkv=qkv_group,
        out=out,
        norm2=find_norm(layer.post_attention_layernorm, hidden),  # type: ignore[arg-type]
        gate_up=gu_group,
        down=down,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=dim,
        scale=float(getattr(attention, "scaling", dim**-0.5)),
        act=_activation(mlp),
        residual=float(getattr(layer, "residual_multiplier", 1.0)),
        q_norm=q_norm,
        k_norm=k_norm,
        policy=policy,
        sharded=weights.shards,
    )


def _caps_scores(attention: nn.Module) -> bool:
    """Return whether it does, by its name: a cap far above the scores of a probe's random weights
    would not show in it."""
    held = {**vars(getattr(attention, "config", None) or nn.Module()), **vars(attention)}
    return any(value and isinstance(value, (int, float)) and _CAP.search(name) for name, value in held.items())


def _has_dropout(layer: nn.Module) -> bool:
    return any(
        isinstance(m, nn.Dropout) and m.p > 0 and "lora_dropout" not in n.split(".") for n, m in layer.named_modules()
    )


def _children(parent: nn.Module, *choices: tuple[str, ...]) -> list[nn.Module]:
    for names in choices:
        children = [getattr(parent, n, None) for n in names]
        if all(isinstance(m, nn.Module) for m in children):
            return children  # type: ignore[return-value]
    raise LeftAlone(f"its {type(parent).__name__} has no {', '.join(choices[0])}")


def _head_counts(attention: nn.Module, qkv: LinearGroup, out: LinearGroup) -> tuple[int, int, int]:
    dim = getattr(attention, "head_dim", None)
    if not isinstance(dim, int) or out.inputs % dim:
        raise LeftAlone("its attention does not tell the size of a head")
    heads = out.inputs // dim
    rest = qkv.outputs - heads * dim
    if rest <= 0 or rest % (2 * dim) or heads % (rest // (2 * dim)):
        raise LeftAlone("its query, key and value widths do not make heads")
    if len(qkv.members) == 3 and qkv.outs != [heads * dim, rest // 2, rest // 2]:
        raise LeftAlone("its query, key and value widths do not make heads")
    return heads, rest // (2 * dim), dim


def _activation(mlp: nn.Module) -> str:
    function: Any = getattr(mlp, "act_fn", getattr(mlp, "activation_fn", None))
    if function is None:
        raise LeftAlone("its MLP does not tell its activation")
    x = torch.linspace(-6, 6, 257)
    with torch.no_grad():
        truth = function(x)
        for name in ACTIVATIONS:
            if torch.allclose(act_mul(x, torch.ones_like(x), act=name), truth, atol=1e-6, rtol=1e-5):
                return name
    raise LeftAlone(f"its activation {type(function).__name__} is unknown")
