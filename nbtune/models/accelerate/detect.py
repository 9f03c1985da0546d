"""Finds what a decoder layer is made of, by what it computes of a few tokens.

What is found here is a guess until `probe_layer` agrees with it, gradients too.
"""

import re
from collections.abc import Iterator
from typing import Any

import torch
from nbtune_kernels import ACTIVATIONS
from nbtune_kernels.activation import reference as plain_activation
from torch import Tensor, nn

from nbtune.models.accelerate.attention_fit import boosts, fit_attention, head_counts
from nbtune.models.accelerate.layer_calls import Call
from nbtune.models.accelerate.layer_spec import NO_GROUP, Layer
from nbtune.models.accelerate.layer_trace import Parts, Unit, parts_of, run, without_dropout
from nbtune.models.accelerate.linear_kinds import group_of
from nbtune.models.accelerate.lora_member import LeftAlone
from nbtune.models.accelerate.norms import Norm, find_norm, relative_error, tolerance
from nbtune.models.memory_estimate import MemoryPolicy
from nbtune.spec.placement import Placement

_DROPS = re.compile(r"drop")
_CLIPS = re.compile(r"clip")


def causal_lm(model: nn.Module) -> nn.Module:
    """Return the transformers model inside a peft wrapper, or the model itself."""
    inner: Any = getattr(model, "base_model", None)
    return inner.model if hasattr(model, "peft_config") and hasattr(inner, "model") else model


def decoder(lm: nn.Module) -> nn.Module | None:
    """Return the part of a causal language model that holds the list of layers, or None."""
    inner = getattr(lm, getattr(lm, "base_model_prefix", "") or "model", None)
    places = (inner, getattr(inner, "decoder", None))
    return next((m for m in places if isinstance(m, nn.Module) and _layer_list(m) is not None), None)


def _layer_list(inner: nn.Module) -> nn.ModuleList | None:
    """Return, whatever its name is, the list that holds the most numbers."""
    lists = [child for child in inner.children() if isinstance(child, nn.ModuleList) and len(child)]
    return max(lists, key=lambda found: sum(p.numel() for p in found.parameters()), default=None)


def decoder_layers(inner: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield (name, layer) of every decoder layer."""
    for i, layer in enumerate(_layer_list(inner) or ()):
        yield f"layers.{i}", layer


def balances_routers(lm: Any) -> bool:
    """Tell whether the model's own loss has a part for how evenly its routers choose, as its config may ask for."""
    return bool(getattr(lm.config.get_text_config(), "output_router_logits", False))


def balance_of(lm: Any) -> float | None:
    """Return how much of that its loss adds; None: nothing is said of it."""
    factor = getattr(lm.config.get_text_config(), "router_aux_loss_coef", None)
    return float(factor) if balances_routers(lm) and isinstance(factor, int | float) else None


def find_layer(
    layer: nn.Module, policy: MemoryPolicy, weights: Placement, call: Call, x: Tensor, window: int | None
) -> Layer:
    """Read a decoder layer: one attention, one MLP, and norms around them.

    Args:
        layer: a module of the model's list of layers.
        policy: what it keeps for its backward.
        weights: its own placement (`Placement.of_layer`).
        call: how its decoder calls it; x: hidden states to try it with.
        window: how many tokens each sees.

    Raises:
        LeftAlone: it is something else, with the reason.
    """
    _refuse_what_is_hidden(layer)
    with without_dropout(layer):
        parts = parts_of(layer, layer.forward, call, x)
        mlp = _whole_mlp(parts, weights)
        act, up, gated = _activation(layer, parts) if mlp is None else ("", [], False)
        heads, kv_heads, dim = shape = head_counts(parts)
        qkv, out = (group_of([u.module for u in units], weights) for units in (parts.qkv, [parts.out]))
        gate_up, down = (
            NO_GROUP if mlp is not None else group_of([u.module for u in units], weights)
            for units in (up, [parts.down])
        )
        found = Layer(
            qkv=qkv,
            out=out,
            gate_up=gate_up,
            down=down,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=dim,
            scale=1.0,
            act=act,
            window=window,
            gated=gated,
            mlp=mlp,
            pre1=_norm(parts.pre1),
            post1=_norm(parts.post1),
            pre2=_norm(parts.pre2),
            post2=_norm(parts.post2),
            parallel=parts.parallel,
            residual=parts.residual,
            policy=policy,
            sharded=weights.shards,
            as_tuple=parts.as_tuple,
        )
        if parts.pre2 is parts.pre1:
            found.pre2 = found.pre1
        if parts.q_norm is not None or parts.k_norm is not None:
            found.q_norm, found.k_norm = _norm(parts.q_norm), _norm(parts.k_norm)
        units, _ = run(layer, layer.forward, call, x, boosts(parts, shape))
        fit = fit_attention(found, units, parts, call)
    found.scale, found.cap, found.rotary, found.by_groups = fit.scale, fit.cap, fit.rotary, fit.by_groups
    found.slopes = None if fit.slopes is None else fit.slopes.to(x.device)
    return found


def _whole_mlp(parts: Parts, weights: Placement) -> nn.Module | None:
    """Return the module that is the MLP as a whole."""
    if parts.down.kind != "mlp":
        return None
    if parts.parallel:
        raise LeftAlone("its experts read what its attention reads")
    if weights.shards:
        raise LeftAlone("its weights are parted, and its experts come together in its own forward")
    return parts.down.module


def _norm(unit: Unit | None) -> Norm | None:
    return None if unit is None else find_norm(unit.module, unit.x.shape[1], unit.x)


def _refuse_what_is_hidden(layer: nn.Module) -> None:
    """Refuse what no probe of a few tokens may show: masks of its own, and by their names dropout and clipping."""
    for name, table in layer.named_buffers():
        if table.dtype != torch.bool or table.ndim < 2:
            continue
        if not torch.equal(table, table.tril()) or not table[..., -1, :].all():
            raise LeftAlone(f"it has a mask of its own ({name})")
    for name, module in layer.named_modules():
        if "lora_dropout" in name.split("."):
            continue
        if isinstance(module, nn.Dropout) and module.p > 0:
            raise LeftAlone("it drops parts of its hidden states while training")
        for attribute, value in vars(module).items():
            if isinstance(value, float) and value > 0 and _DROPS.search(attribute) and not hasattr(module, "lora_A"):
                raise LeftAlone(f"it has dropout ({attribute} is {value:g})")
            if isinstance(value, (int, float)) and value and not isinstance(value, bool) and _CLIPS.search(attribute):
                raise LeftAlone(f"it clips numbers ({attribute} is {value:g})")


def _activation(layer: nn.Module, parts: Parts) -> tuple[str, list[Unit], bool]:
    """Return (activation, gate and up in this order, whether there is a gate)."""
    h = parts.down.x
    acts = _named_activations(layer) or list(ACTIVATIONS)
    ys = [u.y for u in parts.up]
    pairs: list[tuple[list[Unit], Tensor, Tensor | None]]
    if len(ys) == 2:
        pairs = [(parts.up, ys[0], ys[1]), (parts.up[::-1], ys[1], ys[0])]
    elif ys[0].shape[1] == 2 * h.shape[1]:
        pairs = [(parts.up, *ys[0].split(h.shape[1], dim=1))]
    else:
        pairs = [(parts.up, ys[0], None)]
    if any(gate.shape != h.shape for _, gate, _ in pairs):
        raise LeftAlone("its MLP is neither a gated nor a plain one")
    errors = {}
    for i, (_, gate, up) in enumerate(pairs):
        wide = None if up is None else up.float()
        for act in acts:
            errors[i, act] = relative_error(plain_activation(gate.float(), wide, act), h)
    (i, act), least = min(errors.items(), key=lambda item: item[1])
    if not least <= tolerance(h.dtype) / 3:
        raise LeftAlone("its MLP's activation is unknown")
    return act, pairs[i][0], pairs[i][2] is not None


def _named_activations(layer: nn.Module) -> list[str]:
    """Return what its functions that are named like one compute: near 0, in 16 bits, gelu and its approximation look
    alike."""
    x, found = torch.linspace(-6, 6, 257), []
    for module in layer.modules():
        for name, function in {**vars(module), **dict(module.named_children())}.items():
            if not _ACT.search(name) or not callable(function) or any(True for _ in _parameters(function)):
                continue
            try:
                y = function(x)
            except (TypeError, RuntimeError, ValueError, AttributeError):
                continue
            if isinstance(y, Tensor) and y.shape == x.shape:
                known = [a for a in ACTIVATIONS if torch.allclose(plain_activation(x, None, a), y, 1e-5, 1e-6)]
                found += known or ["unknown"]
    if "unknown" in found:
        raise LeftAlone("its MLP's activation is unknown")
    return list(dict.fromkeys(found))


_ACT = re.compile(r"(^|_)act|gelu|nonlinear")


def _parameters(function: Any) -> Iterator[Any]:
    return function.parameters() if isinstance(function, nn.Module) else iter(())
