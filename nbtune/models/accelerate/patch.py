"""The door of the acceleration: attach, report, remove."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from nbtune.device import empty_cache
from nbtune.models.accelerate.activation_offload import Parking
from nbtune.models.accelerate.attention import Packing, packing_of, right_padded
from nbtune.models.accelerate.cpu_offload import Streaming, Traffic, move_all_but, present, traffic_of
from nbtune.models.accelerate.detect import causal_lm, decoder, decoder_layers, find_layer, find_norm, tolerance
from nbtune.models.accelerate.fsdp_linear import Sharding
from nbtune.models.accelerate.layer_autograd import LayerFunction
from nbtune.models.accelerate.layer_spec import Lane, Layer
from nbtune.models.accelerate.lm_head import Head, NormFunction, find_head, loss_inputs
from nbtune.models.accelerate.lora_dropout import Draws
from nbtune.models.accelerate.lora_linear import LeftAlone
from nbtune.models.accelerate.lora_sync import LoraSync
from nbtune.models.accelerate.nf4_linear import Home
from nbtune.models.accelerate.self_check import Inputs, probe_inputs, probe_layer, tiny_losses
from nbtune.models.accelerate.sliding_windows import windows_of
from nbtune.models.memory_estimate import MEMORY_POLICIES, MemoryPolicy

__all__ = ["Handle", "Report", "accelerate"]


@dataclass
class Report:
    """What was taken, and what was left alone and why (name of the block → reason)."""

    taken: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """The report for people: equal reasons are counted together."""
        out = []
        for verb, entries in (("accelerated", self.taken), ("left as it is", self.left)):
            for reason in dict.fromkeys(entries.values()):
                names = [n for n, r in entries.items() if r == reason]
                what = names[0] if len(names) == 1 else f"{len(names)} blocks ({names[0]} … {names[-1]})"
                out.append(f"{verb}: {what}: {reason}")
        return out


@dataclass
class Handle:
    """The acceleration of one model; `remove` puts its stock forward back."""

    report: Report
    policy: MemoryPolicy
    layers: list[Layer] = field(default_factory=list)
    undo: list[Callable[[], None]] = field(default_factory=list)

    def set_policy(self, policy: MemoryPolicy) -> None:
        """What blocks keep from now on."""
        self.policy = policy
        devices = [layer.qkv.device for layer in self.layers]
        parks = policy == "offload" and bool(devices) and devices[0].type == "cuda"
        parking = Parking(devices[0]) if parks else None
        for layer in self.layers:
            layer.policy, layer.parking = policy, parking

    @property
    def traffic(self) -> Traffic | None:
        """The transfers of weights that live in the host's memory; None where all are on the device."""
        return traffic_of([group for layer in self.layers for group in layer.groups()])

    @property
    def draws(self) -> Draws | None:
        """What its layers' dropout is decided by; None where they drop nothing."""
        dropping = any(m.dropout for layer in self.layers for g in layer.groups() for m in g.members)
        return self.layers[0].draws if dropping else None

    def draws_all(self, model: nn.Module) -> bool:
        """Whether all that is dropped in the model, if anything, is dropped by its layers."""
        own = {id(m.module) for layer in self.layers for g in layer.groups() for m in g.members if m.dropout}
        lora = {id(d) for m in model.modules() if id(m) in own for d in m.modules() if isinstance(d, nn.Dropout)}
        return all(id(m) in lora for m in model.modules() if isinstance(m, nn.Dropout) and m.p > 0)

    def remove(self) -> None:
        """Puts the stock model back; calling it twice does no harm."""
        while self.undo:
            self.undo.pop()()
        self.layers.clear()


def accelerate(
    model: nn.Module,
    policy: MemoryPolicy = "keep",
    *,
    home: Home = "stacked",
    stream: Streaming | Sharding | None = None,
    believe: bool = False,
) -> Handle:
    """Replaces `forward` on the blocks of this very model that are understood, and only there.

    Every kind of block is compared with its stock forward first; one that disagrees is left alone: slower, never wrong.
    Generation with a cache, and whatever else the replaced blocks do not cover, goes through the stock forward.

    Args:
        model: a transformers causal language model, or peft's wrapper around one. What is trained must be decided.
        policy: what blocks keep for their backward.
        home: where frozen weights live. ``sharded``: `fully_shard` is going to be called on the layers, so that weights
            are read whenever a layer runs, and not stacked once (under DDP it isn't needed). ``eight_bit``: they are
            rounded to 8 bits.
        stream: which frozen weights stay in the host's memory, or that they are parted among devices; the model comes
            on the CPU then, and everything else goes to the device.
        believe: a block is taken although it disagrees: nothing that it computes counts.
    """
    if policy not in MEMORY_POLICIES:
        raise ValueError(f"unknown memory policy {policy!r}; known: {', '.join(MEMORY_POLICIES)}")
    handle = Handle(Report(), policy)
    lm = causal_lm(model)
    inner = decoder(lm)
    if inner is None:
        handle.report.left["model"] = "it has no list of decoder layers"
        return handle
    if stream is None:
        stock = tiny_losses(lm)
        _take_layers(inner, policy, handle, lambda *_: home, believe)
        if home == "eight_bit":  # rounding is meant: the rounded model is what the rest is compared with
            with _stock_only(handle.layers):
                stock = tiny_losses(lm)
    else:
        move_all_but(lm, list(_layers_of(inner)), stream.device)
        _take_layers(inner, policy, handle, stream.place, settle=stream.settle)
        stream.finish(inner)
        with _stock_only(handle.layers):
            stock = tiny_losses(lm)
    _take_norm(inner, handle)
    _take_head(lm, inner, handle)
    ours = tiny_losses(lm, handle.layers) if handle.undo else stock
    limit = max(tolerance(_dtype(lm)), 0.015 if home == "eight_bit" else 0.0)  # of a loss, which averages roundings
    for is_, true in zip(ours, stock, strict=True):
        if not believe and not abs(is_ - true) <= limit * max(1.0, abs(true)):
            handle.remove()
            handle.report = Report(left={"model": f"the whole disagrees: a loss of {is_:.4f}, stock {true:.4f}"})
            break
    handle.set_policy(policy)
    return handle


def _dtype(lm: nn.Module) -> torch.dtype:
    return next(p for p in lm.parameters() if p.is_floating_point()).dtype


# ---------------------------------------------------------------- layers

_MEMBERS = 4  # at least as many as one group has: each gets a stream of random numbers for itself


def _layers_of(inner: nn.Module) -> Iterator[nn.Module]:
    return (module for _, module in decoder_layers(inner))


@contextmanager
def _stock_only(layers: list[Layer]) -> Iterator[None]:
    for layer in layers:
        layer.stock_only = True
    try:
        yield
    finally:
        for layer in layers:
            layer.stock_only = False


def _take_layers(
    inner: nn.Module,
    policy: MemoryPolicy,
    handle: Handle,
    place: Callable[[int, nn.Module], Home],
    believe: bool = False,
    settle: Callable[[nn.Module], None] = lambda _: None,
) -> None:
    modules = list(decoder_layers(inner))
    inputs: Inputs | None = None
    probed: set[Any] = set()
    lane, draws = Lane(), Draws()
    shared: dict[Any, Tensor] = {}
    windows = windows_of(inner, [m for _, m in modules])
    for i, (name, module) in enumerate(modules):
        try:
            layer = find_layer(module, policy, place(i, module))
            window = windows[i]
            if isinstance(window, LeftAlone):
                raise window
            layer.window = window
            inputs = inputs or probe_inputs(inner, layer.qkv)
            for n, group in enumerate(layer.groups()):
                group.stream = 4 * _MEMBERS * i + _MEMBERS * n
                group.attach(shared)
            sync = LoraSync([p for g in layer.groups() for p in g.sync_pairs])
            kind = _kind(module, layer)
            try:
                with present(layer.groups()):
                    probe_layer(module, module.forward, layer, sync, inputs, grads=kind not in probed)
            except LeftAlone:
                if not believe:
                    for group in layer.groups():
                        group.detach()
                    raise
        except LeftAlone as e:
            handle.report.left[name] = str(e)
            settle(module)
            continue
        probed.add(kind)
        layer.lane, layer.draws = lane, draws
        _replace(module, _layer_forward(module, layer), handle)
        handle.undo.extend(group.detach for group in layer.groups())
        handle.layers.append(layer)
        handle.report.taken[name] = _describe(layer)
        settle(module)
        if i % 4 == 3:
            empty_cache(layer.qkv.device)  # the weights' old places are too small for the stacks to come
    if handle.layers:
        whole = len(handle.layers) == len(modules)
        hook = _Prepare(list(handle.layers), whole)
        removable = inner.register_forward_pre_hook(hook, with_kwargs=True)
        handle.undo.append(removable.remove)


def _kind(module: nn.Module, layer: Layer) -> Any:
    shapes = tuple((g.inputs, *g.outs, *g.ranks, g.full) for g in layer.groups())
    return (
        type(module),
        shapes,
        layer.act,
        layer.scale,
        layer.residual,
        layer.window,
        tuple(n.offset for n in layer.norms()),
    )


def _describe(layer: Layer) -> str:
    what = "trained weights" if layer.qkv.full else f"LoRA of rank {max(max(g.ranks) for g in layer.groups())}"
    shape = f"{layer.heads}/{layer.kv_heads} heads of {layer.head_dim}"
    shape += f", a window of {layer.window}" if layer.window else ""
    return f"{shape}, {layer.act} MLP of {layer.down.inputs}, {what}, stacked"


def _replace(module: nn.Module, forward: Callable[..., Any], handle: Handle, whole: bool = True) -> None:
    """Puts `forward` onto the module. torch.compile takes what is around it, and what it calls unless `whole`."""
    own = module.__dict__.get("forward")
    module.forward = torch.compiler.disable(forward, recursive=whole)

    def undo() -> None:
        if own is not None:
            module.forward = own  # type: ignore[method-assign]
        else:
            module.__dict__.pop("forward", None)

    handle.undo.append(undo)


def _layer_forward(module: nn.Module, layer: Layer) -> Callable[..., Any]:
    stock = _stock_forward(module, layer)
    attention: Any = module.self_attn
    parameters = layer.parameters()

    def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        mask = args[0] if args else kwargs.get("attention_mask")
        packing = getattr(mask, "nbtune_packing", _UNKNOWN)  # settled by `_Prepare`, which has looked at everything
        if packing is _UNKNOWN and mask is None and attention.config._attn_implementation == "sdpa":
            alone = len(args) < 2 and not (layer.window and hidden_states.shape[1] > layer.window)
            packing = None if alone and _plain_call(kwargs, hidden_states.device) and layer.intact() else _UNKNOWN
        angles = kwargs.get("position_embeddings")
        if packing is _UNKNOWN or angles is None:
            return stock(hidden_states, *args, **kwargs)
        if layer.sharded:
            layer.refresh()
        trained = layer.parameters() if layer.sharded else parameters
        out = LayerFunction.apply(layer, hidden_states, *angles, packing, *trained)
        return (out,) if layer.as_tuple else out

    return forward


def _stock_forward(module: nn.Module, layer: Layer) -> Callable[..., Any]:
    """The layer's own forward; weights that are in the host's memory come in for it."""
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
    """Neither a cache nor attention weights nor autocast: what accelerated layers do not cover."""
    if _has_cache(kwargs) or kwargs.get("use_cache") or kwargs.get("output_attentions"):
        return False
    return not torch.is_autocast_enabled(device.type)


def _has_cache(kwargs: dict[str, Any]) -> bool:
    """Keys and values of earlier tokens are handed over, under either of transformers' names."""
    return kwargs.get("past_key_values") is not None or kwargs.get("cache") is not None


_UNKNOWN = object()


class _Prepare:
    """Before each forward of the decoder: LoRA goes into its matrices, and the mask is settled once for all layers.

    Where every layer is ours, a mask with no elements stands for "causal within documents": transformers hands a 4-D
    mask through as it is, and so neither builds a `[B, 1, S, S]` one nor waits for the device to look at positions.
    """

    def __init__(self, layers: list[Layer], whole: bool):
        self.layers, self.whole = layers, whole
        self.device = layers[0].qkv.device
        self.groups = groups = [g for layer in layers for g in layer.groups()]
        self.sync, self.traffic = LoraSync([p for g in groups for p in g.sync_pairs]), traffic_of(groups)

    def __call__(self, inner: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
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
        stands_for = torch.empty((0, 0, 0, 0), dtype=torch.bool, device=tokens.device)
        packing: Packing | None = None
        if mask is None:
            packing = packing_of(kwargs.get("position_ids"), kwargs)
        stands_for.nbtune_packing = packing  # type: ignore[attr-defined]
        return args, {**kwargs, "attention_mask": stands_for}


# ---------------------------------------------------------------- norm and head


def _take_norm(inner: nn.Module, handle: Handle) -> None:
    module = getattr(inner, "norm", None)
    try:
        weight = getattr(module, "weight", None)
        norm = find_norm(module, weight.shape[0] if weight is not None else 0)
    except LeftAlone as e:
        handle.report.left["norm"] = str(e)
        return
    assert module is not None
    _replace(module, lambda hidden_states: NormFunction.apply(norm, hidden_states, module.weight), handle)
    handle.report.taken["norm"] = "RMSNorm"


def _take_head(lm: nn.Module, inner: nn.Module, handle: Handle) -> None:
    try:
        head = find_head(lm)
    except LeftAlone as e:
        handle.report.left["head"] = str(e)
        return
    _replace(lm, _lm_forward(lm, inner, head), handle, whole=False)
    handle.report.taken["head"] = "cross-entropy of trained rows in chunks, no logits"


def _lm_forward(lm: Any, inner: nn.Module, head: Head) -> Callable[..., Any]:
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
