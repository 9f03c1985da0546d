"""The forwards that stand in for transformers' own: of a decoder layer, before all layers, and of the whole model."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from nbtune.models.accelerate.attention import packing_of, right_padded
from nbtune.models.accelerate.cpu_offload import present, traffic_of
from nbtune.models.accelerate.layer_spec import UNKNOWN, Layer
from nbtune.models.accelerate.lm_head import Head, loss_inputs
from nbtune.models.accelerate.lora_sync import LoraSync
from nbtune.models.accelerate.mixture_layer import run_layer
from nbtune.models.accelerate.shared_buffers import scratches_of
from nbtune.models.accelerate.shared_tokens import SharedTokens, Together


def layer_forward(module: nn.Module, layer: Layer, config: Any) -> Callable[..., Any]:
    stock = _stock_forward(module, layer)
    parameters = layer.parameters()

    def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        mask = kwargs["attention_mask"] if "attention_mask" in kwargs else (args[0] if args else None)
        # settled by `Prepare`, which has looked at everything
        packing = getattr(mask, "nbtune_packing", layer.told.packing)
        if packing is UNKNOWN and mask is None and config._attn_implementation == "sdpa":
            alone = all(a is None for a in args[1:]) and not (layer.window and hidden_states.shape[1] > layer.window)
            packing = None if alone and _plain_call(kwargs, hidden_states.device) and layer.intact() else UNKNOWN
        angles = kwargs.get("position_embeddings") or (None, None)
        if packing is UNKNOWN or (angles[0] is None and layer.rotary != "none"):
            return stock(hidden_states, *args, **kwargs)
        if layer.sharded:
            layer.refresh()
        trained = layer.parameters() if layer.sharded else parameters
        out = run_layer(layer, hidden_states, angles, packing, trained)
        return (out, *[None] * (layer.as_tuple - 1)) if layer.as_tuple else out

    return forward


def _stock_forward(module: nn.Module, layer: Layer) -> Callable[..., Any]:
    """Return the layer's own forward; weights that are in the host's memory come in for it."""
    stock, groups = module.forward, layer.groups()
    if not any(group.away for group in groups):
        return stock

    def forward(*args: Any, **kwargs: Any) -> Any:
        if torch.is_grad_enabled() and not layer.stock_only:
            raise RuntimeError(
                "this call needs transformers' own forward with gradients (a cache, attention weights, autocast or a "
                "4-D mask), which weights in the host's memory, or in 8 bits, do not allow"
            )
        with present(groups):
            return stock(*args, **kwargs)

    return forward


def _plain_call(kwargs: dict[str, Any], device: torch.device) -> bool:
    """Return whether there is neither cache nor attention weights nor autocast, which accelerated
    layers do not cover."""
    if _has_cache(kwargs) or kwargs.get("use_cache") or kwargs.get("output_attentions"):
        return False
    return not torch.is_autocast_enabled(device.type)


def _has_cache(kwargs: dict[str, Any]) -> bool:
    """Return whether keys and values of earlier tokens are handed over, under either of transformers' names."""
    return kwargs.get("past_key_values") is not None or kwargs.get("cache") is not None


class Prepare:
    """Before each forward of the decoder: LoRA goes into its matrices, and the mask is settled once for all layers.

    Where every layer is ours, a mask with no elements stands for "causal within documents": transformers hands a 4-D
    mask through as it is, and so neither builds a `[B, 1, S, S]` one nor waits for the device to look at positions.
    Where such a mask does not come through, layers are told beside it, until `done`. A forward that is given
    `shared_tokens` has a layout of those; the decoder itself does not see them.
    """

    def __init__(self, layers: list[Layer], whole: bool, marked: bool):
        self.layers, self.whole, self.marked = layers, whole, marked
        self.device = layers[0].qkv.device
        self.groups = groups = [g for layer in layers for g in layer.groups()]
        self.sync, self.traffic = LoraSync([p for g in groups for p in g.sync_pairs]), traffic_of(groups)
        self.scratches = scratches_of(groups)

    def __call__(self, inner: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        shared: SharedTokens | None = kwargs.pop("shared_tokens", None)
        settled = self._settled(inner, args, kwargs, shared)
        if settled is None and shared is not None:
            raise RuntimeError("tokens are shared among rows, and not all layers are nbtune's in this call")
        return settled

    def _settled(
        self, inner: nn.Module, args: tuple, kwargs: dict[str, Any], shared: SharedTokens | None
    ) -> tuple[tuple, dict[str, Any]] | None:
        for scratch in self.scratches:  # what lies beside the weights is of the last step, and a replay knows no state
            scratch.holds = None
        if self.traffic is not None:
            self.traffic.begin()
        use_cache = kwargs.get("use_cache")
        use_cache = getattr(inner.config, "use_cache", False) if use_cache is None else use_cache
        if not _plain_call({**kwargs, "use_cache": use_cache}, self.device):
            return None
        self.layers[0].draws.draw(self.groups)
        self.sync()
        tokens = kwargs.get("inputs_embeds")
        tokens = tokens if tokens is not None else kwargs.get("input_ids", args[0] if args else None)
        if not self.whole or len(args) > 1 or tokens is None:
            return None
        if not all(layer.intact() for layer in self.layers):
            return None
        mask = kwargs.get("attention_mask")
        if mask is not None and not right_padded(mask):
            return None
        packing: Together | None = shared
        if mask is None and shared is None:
            packing = packing_of(kwargs.get("position_ids"), kwargs)
        if not self.marked:
            self.layers[0].told.packing = packing
            return args, {**kwargs, "attention_mask": None}
        stands_for = torch.empty((0, 0, 0, 0), dtype=torch.bool, device=tokens.device)
        stands_for.nbtune_packing = packing  # type: ignore[attr-defined]
        return args, {**kwargs, "attention_mask": stands_for}

    def done(self, *_: Any) -> None:
        """End what layers were told: it does not hold for another forward."""
        self.layers[0].told.packing = UNKNOWN


def lm_forward(lm: Any, inner: nn.Module, head: Head) -> Callable[..., Any]:
    stock = lm.forward
    inputs_of, loss_of = torch.compiler.disable(loss_inputs), torch.compiler.disable(head.loss)

    def forward(input_ids: Tensor | None = None, **kwargs: Any) -> Any:
        labels = kwargs.get("labels")
        wants_loss = labels is not None or kwargs.get("loss_labels") is not None
        only = kwargs.pop("loss_only", lm.training)
        if not (wants_loss and only) or _has_cache(kwargs):
            return stock(input_ids=input_ids, **kwargs)
        from transformers.modeling_outputs import CausalLMOutputWithPast

        rest = {k: v for k, v in kwargs.items() if k not in ("labels", "logits_to_keep", "return_dict")}
        num_items = rest.pop("num_items_in_batch", None)
        targets = inputs_of(labels, rest)
        hidden = inner(input_ids=input_ids, **{**rest, "use_cache": False, "return_dict": True}).last_hidden_state
        return CausalLMOutputWithPast(loss=loss_of(hidden, targets(), num_items))

    forward.__signature__ = inspect.signature(stock)  # type: ignore[attr-defined]  # `generate` asks for logits by it
    return forward
