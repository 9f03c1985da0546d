"""The door of the acceleration: apply, report, remove."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from nbtune_kernels.grouped import runs_grouped
from torch import Tensor, nn

from nbtune.device import empty_cache
from nbtune.models.accelerate.activation_offload import ActivationOffload
from nbtune.models.accelerate.cpu_offload import Traffic, present, traffic_for, traffic_of
from nbtune.models.accelerate.detect import balances_routers, causal_lm, decoder, decoder_layers, find_layer
from nbtune.models.accelerate.experts import Found, Probe, send_experts_away, take_experts
from nbtune.models.accelerate.forwards import Prepare, layer_forward, lm_forward
from nbtune.models.accelerate.host_embedding import keep_in_host, stays
from nbtune.models.accelerate.layer_calls import Call, calls_of, marked
from nbtune.models.accelerate.layer_placement import Mover, move_all_but, mover_of
from nbtune.models.accelerate.layer_spec import Lane, Layer, Told
from nbtune.models.accelerate.lm_head import NormFunction, find_head
from nbtune.models.accelerate.lora_dropout import Draws
from nbtune.models.accelerate.lora_member import LeftAlone
from nbtune.models.accelerate.lora_sync import LoraSync
from nbtune.models.accelerate.mixture_layer import draws_noise
from nbtune.models.accelerate.norms import find_norm, tolerance
from nbtune.models.accelerate.self_check import Inputs, probe_inputs, probe_layer, tiny_losses
from nbtune.models.accelerate.sliding_windows import has_windows, shortened, window_of
from nbtune.models.experts.block import Experts
from nbtune.models.experts.stacks import round_stacks
from nbtune.models.memory_estimate import MEMORY_POLICIES, MemoryPolicy
from nbtune.spec.placement import PLAIN, Placement

_MEMBERS = 4  # at least as many as one group has: each gets a stream of random numbers for itself
_ROUNDED_LOSS = 0.015  # how far rounding to 8 bits may move a loss, which averages roundings


@dataclass
class Report:
    """What was taken, and what was left alone and why (name of the block → reason)."""

    taken: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """Return the report for people: equal reasons are counted together."""
        out = []
        for verb, entries in (("accelerated", self.taken), ("left as it is", self.left)):
            for reason in dict.fromkeys(entries.values()):
                names = [n for n, r in entries.items() if r == reason]
                blocks = names[0] if len(names) == 1 else f"{len(names)} blocks ({names[0]} … {names[-1]})"
                out.append(f"{verb}: {blocks}: {reason}")
        return out


@dataclass
class Patch:
    """The acceleration of one model; `remove` puts its stock forward back."""

    report: Report
    policy: MemoryPolicy
    layers: list[Layer] = field(default_factory=list)
    experts: list[Experts] = field(default_factory=list)
    undo: list[Callable[[], None]] = field(default_factory=list)
    whole: bool = False  # every layer of the decoder is ours
    fetches: bool = False  # rows of its embedding, from memory that the device does not read itself

    def set_policy(self, policy: MemoryPolicy) -> None:
        """Set what blocks keep from now on."""
        self.policy = policy
        devices = [layer.qkv.device for layer in self.layers]
        parks = policy == "offload" and bool(devices) and devices[0].type == "cuda"
        offload = ActivationOffload(devices[0]) if parks else None
        for layer in self.layers:
            layer.policy, layer.offload = policy, offload
        for experts in self.experts:
            experts.again = experts.lean and policy != "keep"

    def reset(self, policy: MemoryPolicy) -> None:
        """Forget what a forward and backward that were broken off have left behind, and set what blocks keep."""
        if self.traffic is not None:
            self.traffic.reset()
        for layer in self.layers:
            layer.lane.last = None
        self.set_policy(policy)

    @property
    def traffic(self) -> Traffic | None:
        """The transfers of weights that live in the host's memory; None where all are on the device."""
        return traffic_of([group for layer in self.layers for group in layer.groups()])

    @property
    def waits(self) -> bool:
        """Whether a step waits for the device, or for random numbers of other code's: it cannot be recorded."""
        if self.fetches:
            return True
        fast = [one.up.module for one in self.experts if runs_grouped(one.up.weight, one.up.weight.dtype)]
        known = {id(module) for module in fast}
        mlps = [layer.mlp for layer in self.layers if layer.mlp is not None]
        return any(draws_noise(m) or not any(id(part) in known for part in m.modules()) for m in mlps)

    @property
    def draws(self) -> Draws | None:
        """What its layers' dropout is decided by; None where they drop nothing."""
        dropping = any(m.dropout for layer in self.layers for g in layer.groups() for m in g.members)
        return self.layers[0].draws if dropping else None

    def draws_all(self, model: nn.Module) -> bool:
        """Return whether all that is dropped in the model, if anything, is dropped by its layers."""
        own = {id(m.module) for layer in self.layers for g in layer.groups() for m in g.members if m.dropout}
        lora = {id(d) for m in model.modules() if id(m) in own for d in m.modules() if isinstance(d, nn.Dropout)}
        return all(id(m) in lora for m in model.modules() if isinstance(m, nn.Dropout) and m.p > 0)

    def replace(self, module: nn.Module, forward: Callable[..., Any], *, whole: bool = True) -> None:
        """Put `forward` onto the module. torch.compile takes what is around it, and what it calls unless `whole`."""
        own = module.__dict__.get("forward")
        module.forward = torch.compiler.disable(forward, recursive=whole)

        def undo() -> None:
            if own is not None:
                module.forward = own  # type: ignore[method-assign]
            else:
                module.__dict__.pop("forward", None)

        self.undo.append(undo)

    def remove(self) -> None:
        """Put the stock model back; calling it twice does no harm."""
        while self.undo:
            self.undo.pop()()
        self.layers.clear()
        self.experts.clear()
        self.whole = False


def apply(
    model: nn.Module,
    policy: MemoryPolicy = "keep",
    *,
    weights: Placement = PLAIN,
    device: torch.device | None = None,
    believe: bool = False,
) -> Patch:
    """Replace `forward` on the blocks of this very model that are understood, and only there.

    >>> model = nbtune.models.load_model("nbtune/tiny", dtype=torch.float32, device="cpu")
    >>> apply(model).report.lines()[1]
    'accelerated: norm: RMSNorm'

    Every kind of block is compared with its stock forward first; one that disagrees is left alone: slower, never wrong.
    Generation with a cache, and whatever else the replaced blocks do not cover, goes through the stock forward.

    Args:
        model: a transformers causal language model, or peft's wrapper around one. What is trained must be decided.
        policy: what blocks keep for their backward.
        weights: format and home of frozen weights. 4-bit ones were rounded when they were loaded, fp8 are here.
        device: where the work is done, for a model that comes on the CPU because its weights are streamed or parted.
            Unset, parted weights are the caller's to part: `fully_shard` is going to be called on the layers, so that
            weights are read whenever a layer runs, and not stacked once (under DDP it isn't needed).
        believe: a block is taken although it disagrees: nothing that it computes counts.

    Raises:
        ValueError: an unknown policy, or streamed weights without a device.
        PlanError: nothing could be parted.
    """
    if policy not in MEMORY_POLICIES:
        raise ValueError(f"unknown memory policy {policy!r}; known: {', '.join(MEMORY_POLICIES)}")
    mover = mover_of(weights, device, model)
    patch = Patch(Report(), policy)
    lm = causal_lm(model)
    inner = decoder(lm)
    if inner is None:
        patch.report.left["model"] = "it has no list of decoder layers"
        if mover is not None:
            mover.finish(model)
        return patch
    stock = tiny_losses(lm) if mover is None else None  # what is still on its way has none yet
    if mover is not None:
        if weights.streams and (table := stays(lm)) is not None:
            keep_in_host(table, mover.device, patch)
        move_all_but(lm, list(_layers_of(inner)), mover.device)
    if weights.eight_bit and weights.experts:
        round_stacks(lm, weights.format)
    layers = _Layers(patch, weights, mover, believe)
    layers.take(inner)
    if mover is not None:
        mover.finish(inner)
    if stock is None or weights.eight_bit:  # rounding is meant: the rounded model is what the rest is compared with
        with _stock_only(patch.layers):
            stock = tiny_losses(lm)
    _take_norm(inner, patch)
    _take_head(lm, inner, patch)
    if not weights.shards:
        take_experts(inner, patch, believe, layers.away)
    ours = tiny_losses(lm, patch.layers) if patch.undo else stock
    limit = max(tolerance(_dtype(lm)), _ROUNDED_LOSS if weights.eight_bit else 0.0)
    for is_, true in zip(ours, stock, strict=True):
        if not believe and not abs(is_ - true) <= limit * max(1.0, abs(true)):
            patch.remove()
            patch.report = Report(left={"model": f"the whole disagrees: a loss of {is_:.4f}, stock {true:.4f}"})
            break
    patch.set_policy(policy)
    return patch


def _dtype(lm: nn.Module) -> torch.dtype:
    return next(p for p in lm.parameters() if p.is_floating_point()).dtype


# ---------------------------------------------------------------- layers


def _layers_of(inner: nn.Module) -> Iterator[nn.Module]:
    return (module for _, module in decoder_layers(inner))


@contextmanager
def _stock_only(layers: Iterable[Layer]) -> Iterator[None]:
    for layer in layers:
        layer.stock_only = True
    try:
        yield
    finally:
        for layer in layers:
            layer.stock_only = False


class _Layers:
    """Takes the layers of a model one after the other; arguments as of `apply`."""

    def __init__(self, patch: Patch, weights: Placement, mover: Mover | None, believe: bool) -> None:
        self.patch, self.weights, self.mover, self.believe = patch, weights, mover, believe
        self.lane, self.draws, self.told = Lane(), Draws(), Told()
        self.shared: dict[Any, Tensor] = {}
        if weights.streams and mover is not None:
            traffic_for(mover.device, self.shared).each = weights.places
        self.probed: set[Any] = set()
        self.inputs: dict[Any, Inputs] = {}
        self.experts, self.away = Probe(), dict[str, Found]()  # of layers whose experts have left the device

    def take(self, inner: nn.Module) -> None:
        """Put our forward onto every layer that is understood, and what comes before them onto the decoder."""
        names, modules = zip(*decoder_layers(inner), strict=True)
        calls = calls_of(inner, list(modules))
        short = calls
        if has_windows(inner):
            with shortened(inner):
                short = calls_of(inner, list(modules))
        # asked before any layer is parted: a layer that runs before the decoder around it is parted would be a model
        masks_pass = marked(inner, list(modules), "nbtune_packing")
        for i, (name, module) in enumerate(zip(names, modules, strict=True)):
            if self.mover is not None:
                self.mover.bring(module)
            try:
                window = window_of(inner, short.get(i) if i in calls else None)
                pair = (calls[i], short[i])
                inputs = self._inputs_like(calls[i].hidden)
                placed = self.weights.of_layer(i, len(modules))
                layer = find_layer(module, self.patch.policy, placed, calls[i], inputs.x, window)
                self._check(module, layer, pair, inputs, i)
            except LeftAlone as e:
                self.patch.report.left[name] = str(e)
            else:
                self._take(name, module, layer, inner.config)
                if self.mover is not None and placed.streams and layer.mlp is not None:
                    traffic = traffic_for(self.mover.device, self.shared)
                    self.away[name] = send_experts_away(module, self.experts, self.believe, traffic)
            if self.mover is not None:
                self.mover.settle(module)
            if i % 4 == 3 and name in self.patch.report.taken:
                empty_cache(layer.qkv.device)  # the weights' old places are too small for the stacks to come
        self._before(inner, len(self.patch.layers) == len(modules), masks_pass)

    def _before(self, inner: nn.Module, whole: bool, masks_pass: bool) -> None:
        """Prepare what comes before the layers of each forward."""
        layers = self.patch.layers
        if not layers:
            return
        if not whole and getattr(inner.config, "_attn_implementation", None) != "sdpa":
            self.patch.remove()  # the masks that its decoder makes would lead every call to the stock layers
            self.patch.report.left.update(dict.fromkeys(self.patch.report.taken, "some other layers are left alone"))
            self.patch.report.taken.clear()
            return
        self.patch.whole = whole
        hook = Prepare(list(layers), whole, whole and masks_pass)
        self.patch.undo.append(inner.register_forward_pre_hook(hook, with_kwargs=True).remove)
        self.patch.undo.append(inner.register_forward_hook(hook.done, always_call=True).remove)

    def _inputs_like(self, hidden: Tensor) -> Inputs:
        key = (hidden.shape[-1], hidden.dtype, hidden.device)
        if key not in self.inputs:
            self.inputs[key] = probe_inputs(*key)
        return self.inputs[key]

    def _check(self, module: nn.Module, layer: Layer, calls: tuple[Call, Call], inputs: Inputs, index: int) -> None:
        """Build the layer's matrices, and compare it with its stock forward."""
        for n, group in enumerate(layer.groups()):
            group.stream = 4 * _MEMBERS * index + _MEMBERS * n
            group.attach(self.shared)
        sync = LoraSync([p for g in layer.groups() for p in g.sync_pairs])
        try:
            with present(layer.groups()):
                grads = _kind(module, layer) not in self.probed
                probe_layer(module, module.forward, layer, sync, inputs, calls, grads)
        except LeftAlone:
            if not self.believe:
                for group in layer.groups():
                    group.detach()
                raise

    def _take(self, name: str, module: nn.Module, layer: Layer, config: Any) -> None:
        self.probed.add(_kind(module, layer))
        layer.lane, layer.draws, layer.told = self.lane, self.draws, self.told
        self.patch.replace(module, layer_forward(module, layer, config))
        self.patch.undo.extend(group.detach for group in layer.groups())
        self.patch.layers.append(layer)
        self.patch.report.taken[name] = _describe(layer)


def _kind(module: nn.Module, layer: Layer) -> Any:
    shapes = tuple((g.inputs, *g.outs, *g.ranks, g.full) for g in layer.groups())
    norms = (layer.pre1, layer.post1, layer.pre2, layer.post2, layer.q_norm, layer.k_norm)
    return (
        type(module),
        shapes,
        (layer.act, layer.scale, layer.cap, layer.residual, layer.window, layer.rotary, layer.slopes is None),
        tuple(n if n is None else (n.offset, n.centred) for n in norms),
    )


def _describe(layer: Layer) -> str:
    trained = "trained weights" if layer.qkv.full else f"LoRA of rank {max(max(g.ranks) for g in layer.groups())}"
    shape = f"{layer.heads}/{layer.kv_heads} heads of {layer.head_dim}"
    shape += f", a window of {layer.window}" if layer.window else ""
    shape += f", scores capped at {layer.cap:g}" if layer.cap else ""
    shape += ", ALiBi" if layer.slopes is not None else ""
    if layer.mlp is not None:
        return f"{shape}, its own {type(layer.mlp).__name__}, {trained}, stacked"
    kind = "" if layer.gated else "plain "
    side = " beside it" if layer.parallel else ""
    return f"{shape}, {kind}{layer.act} MLP of {layer.down.inputs}{side}, {trained}, stacked"


# ---------------------------------------------------------------- norm and head


def _take_norm(inner: nn.Module, patch: Patch) -> None:
    module: Any = next((m for n in _LAST_NORMS if isinstance(m := getattr(inner, n, None), nn.Module)), None)
    try:
        weight = getattr(module, "weight", None)
        norm = find_norm(module, weight.shape[0] if weight is not None else 0)
    except LeftAlone as e:
        patch.report.left["norm"] = str(e)
        return

    def forward(hidden_states: Tensor) -> Tensor:
        norm.refresh()
        trained = [p for p in (norm.weight, norm.bias) if p is not None]
        return NormFunction.apply(norm, hidden_states, *trained)

    patch.replace(module, forward)
    patch.report.taken["norm"] = "LayerNorm" if norm.centred else "RMSNorm"


_LAST_NORMS = (
    "norm", "final_layernorm", "final_layer_norm", "ln_f", "norm_f", "layer_norm", "embedding_norm", "final_norm",
)  # fmt: skip


def _take_head(lm: nn.Module, inner: nn.Module, patch: Patch) -> None:
    try:
        head = find_head(lm)
    except LeftAlone as e:
        patch.report.left["head"] = str(e)
        return
    if balances_routers(lm):
        patch.report.left["head"] = "its config's `output_router_logits` adds to the loss how evenly experts are chosen"
        return
    patch.replace(lm, lm_forward(lm, inner, head), whole=False)
    patch.report.taken["head"] = "cross-entropy of trained rows in chunks, no logits"
