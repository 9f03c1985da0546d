"""The fastest way to hold a model in training that fits: what blocks keep, and which weights stay in the host's memory.

Free memory is there to be spent: of the ways that fit the one is taken that is reckoned the fastest, by this machine's
rates. Weights that travel do so once for the forward and once for the backward of a micro-batch, beside the arithmetic:
large micro-batches hide them, small ones wait. As many layers as there is room for stay.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

from nbtune.errors import PlanError
from nbtune.models.memory_estimate import (
    CUDA_CONTEXT,
    PYTHON,
    MemoryPlan,
    MemoryPolicy,
    embedding_bytes,
    estimate,
    packs,
    sent_bytes,
    trainable_parameters,
    trained_here,
    travelling_bytes,
)
from nbtune.models.step_time import USUAL_RANK, Work, device_seconds, host_seconds, seconds_of, update_seconds
from nbtune.spec.placement import BY_FORMAT, Home, Placement, PlacementWish

if TYPE_CHECKING:
    from nbtune.device import DeviceFacts, MemoryUse
    from nbtune.models.config_facts import ModelFacts
    from nbtune.spec import AdapterSpec

SPENDABLE = 0.92  # of what is free; the rest is for fragmentation and the user's own work
_CAPPED = 0.97  # of what a limit leaves: nobody else takes of it, and torch gives back what lies idle before it fails
_HARD = 0.9  # of a limit of RAM: a process that passes a container's is killed
RECORDING_ROOM = 2.1
"""How many times a micro-batch's memory there is: a recording keeps its own, and a shape that is not recorded needs as
much beside it."""
_PINNED = 1.25  # of the weights' size: pinned memory comes in powers of two
_PINNED_PACKED = 1.45  # of 12 bits a weight, which hit a power of two worse: of an 8B Llama's layer 480 MiB for 333


def available(device: DeviceFacts) -> int:
    """Return the bytes that a run may have: what is free, and what this process has already of what any process takes
    (`estimate` counts that whole)."""
    return max(device.free, min(device.total, device.free + min(device.held, PYTHON)))


def room(device: DeviceFacts) -> float:
    """Return the bytes that a plan spends at most."""
    if device.cap and device.kind == "cuda":
        return available(device) * (_CAPPED if device.free >= 0.9 * device.cap else SPENDABLE)
    most = available(device) * SPENDABLE
    return min(most, device.cap * _HARD) if device.cap else most


def may_record(device: DeviceFacts, use: MemoryUse) -> bool:
    """Return whether a card has room for the recordings of a run that is at work on it.

    Args:
        device: as it is described now: of a limit, what torch's allocator does not hold is free, and the CUDA context
            of this process, which lies beside that, has some of it.
        use: of the allocator; at most it held a micro-batch's memory beside what stays.
    """
    beside = CUDA_CONTEXT if device.cap else 0
    room = device.free - beside + use.reserved - use.allocated
    return room >= RECORDING_ROOM * (use.peak - use.allocated)


BY_NUMBER = ("adamw", "lion", "paged_adamw", "paged_lion")
"""Optimizers that look at each number by itself, so that a part of a weight is as good as all of it."""


@dataclass(frozen=True)
class Setup:
    """What does not change from one way to another.

    Args:
        weights: their format; where they are is what is searched for.
        dtype: ``bf16``, ``fp16`` or ``fp32``.
        own_layers, own_head: what is nbtune's own, see `estimate`.
        devices: how many such devices share each step.
        starting_weights, optimizer, averaged: see `estimate`.
        sequences: that a row has, of `sequence_len` tokens together.
        references: forwards beside that which is trained.
        rows: of a step, on each device; 0: not known.
        in_backward: weights are updated as soon as their gradients are there, see `estimate`.
        once: see `estimate`.
    """

    model: ModelFacts
    adapter: AdapterSpec
    device: DeviceFacts
    weights: Placement
    dtype: str
    sequence_len: int
    own_layers: float = 1.0
    own_head: bool = True
    devices: int = 1
    starting_weights: bool = False
    optimizer: str = "adamw"
    averaged: bool = False
    sequences: int = 1
    references: int = 0
    rows: int = 0
    in_backward: bool = False
    once: int = 0

    def way(self, policy: MemoryPolicy, micro_batch_size: int, weights: Placement | None = None) -> Fit:
        """Return one way, with the bytes that it needs on each device."""
        weights = self.weights.on_device() if weights is None else weights
        memory = estimate(
            self.model,
            self.adapter,
            weights=weights,
            activations=policy,
            micro_batch_size=micro_batch_size,
            sequence_len=self.sequence_len,
            dtype=self.dtype,
            device=self.device.kind,
            own_layers=self.own_layers,
            own_head=self.own_head,
            starting_weights=self.starting_weights,
            optimizer=self.optimizer,
            averaged=self.averaged,
            accumulates=not 0 < self.rows <= micro_batch_size,
            in_backward=self.in_backward,
            once=self.once,
        )
        return Fit(policy, micro_batch_size, memory, weights)

    def seconds(self, way: Fit) -> float:
        """Return the seconds that a token takes, but for the update."""
        work = self._work(way)
        return seconds_of(self.model, self.device, way.weights, way.activations, work) / work.tokens

    def step_seconds(self, way: Fit, tokens: float) -> float:
        """Return the seconds of a step of so many tokens, the update with it, which a slower host hides."""
        work = self._work(way)
        given = self.model, self.device, way.weights, way.activations, work
        batches = tokens / work.tokens
        updated = batches * device_seconds(*given) + self.update_seconds(way.weights)
        return max(updated, batches * host_seconds(*given))

    def _work(self, way: Fit) -> Work:
        tokens, length = way.micro_batch_size * self.sequence_len, self.sequence_len // self.sequences
        full, recorded = self.adapter.type == "full", self._recorded(way)
        return Work(tokens, length, full, self.own_layers, self.references, recorded, self._wide())

    def _recorded(self, way: Fit) -> bool:
        """Return whether steps are recorded (`nbtune.models.cuda_graph_step`), for which there must be room."""
        work = way.memory.activations + way.memory.head
        roomy = available(self.device) - (way.memory.total - work) >= RECORDING_ROOM * work
        plain = self.optimizer == "adamw" and not self.in_backward
        return roomy and plain and (self.adapter.type != "full" or self.dtype == "fp32")

    def update_seconds(self, weights: Placement) -> float:
        """Return the seconds of an update, once a step."""
        full = self.adapter.type == "full" and self.dtype != "fp32" and not self.in_backward
        return update_seconds(self.device, trained_here(self.model, self.adapter, weights), full=full)

    def _wide(self) -> float:
        """Return what a layer's LoRA has beyond the usual rank."""
        if self.adapter.type == "full" or self.adapter.r <= USUAL_RANK:
            return 0.0
        trained = trainable_parameters(self.model, self.adapter) * (1 - USUAL_RANK / self.adapter.r)
        return trained / max(1, self.model.num_layers)


@dataclass(frozen=True)
class Fit:
    """One way, and what it needs."""

    activations: MemoryPolicy
    micro_batch_size: int
    memory: MemoryPlan
    weights: Placement


def fit(
    setup: Setup,
    micro_batch_sizes: Iterable[int],
    *,
    activations: str = "auto",
    home: Home | None = None,
) -> tuple[Fit | None, Fit]:
    """Return the fastest way that fits, or None; and the one that needs least.

    Args:
        setup: model, adapter, device.
        micro_batch_sizes: that may be tried.
        activations: a policy, or ``auto``.
        home: where frozen weights are: on each device, parted among them, or all in the host's memory; unset: in this
            order, by the memory there is, and where they travel as many as there is room for stay.
    """
    policies: tuple[MemoryPolicy, ...] = get_args(MemoryPolicy)
    if setup.device.kind != "cuda" or setup.device.unified:  # there is no other memory to which inputs could go
        policies = tuple(policy for policy in policies if policy != "offload")
    policies = policies if activations == "auto" else (activations,)  # type: ignore[assignment]
    sizes = list(micro_batch_sizes)
    every = [(p, m) for p in policies for m in sizes]
    both = [way for way in every if _host_holds(setup, *way)] or every
    most = room(setup.device)
    ways = [setup.way(p, m) for p, m in both] if home in (None, Home.DEVICE) else []
    if home is None and setup.devices == 1 and _may_travel(setup):
        ways += [_travelling(setup, p, m, most, forced=False) for p, m in both if _host_holds(setup, p, m, beside=True)]
    fitting = [way for way in ways if way.memory.total <= most]
    if not fitting and home in (None, Home.SHARDED) and _may_be_parted(setup):
        parted = [setup.way(p, m, setup.weights.parted(setup.devices)) for p, m in both]
        fitting = [way for way in parted if way.memory.total <= most]
        ways += parted
    if not fitting and home in (None, Home.STREAMED) and _may_travel(setup):
        travelling = [_travelling(setup, p, m, most, forced=home is Home.STREAMED) for p, m in both]
        fitting = [way for way in travelling if way.memory.total <= most]
        ways += travelling
    best = min(fitting, key=setup.seconds, default=None)
    return best, min(ways or [setup.way(p, m) for p, m in both], key=_bytes)


def _host_holds(setup: Setup, policy: MemoryPolicy, micro: int, *, beside: bool = False) -> bool:
    """Return whether the host has room for the blocks' inputs that wait there.

    Args:
        beside: the weights wait there, too.
    """
    model, ram = setup.model, setup.device.ram
    if policy != "offload" or not ram:
        return True
    width = 4 if setup.dtype == "fp32" else 2
    inputs = width * micro * setup.sequence_len * model.hidden_size * model.num_layers * (1 + model.norms_behind)
    return (inputs * _PINNED + beside * _travels(setup)) * setup.devices <= ram


def _travels(setup: Setup) -> float:
    """Return the bytes of the host's memory that all weights take which may travel."""
    whole = travelling_bytes(setup.model, setup.weights)
    sent = sent_bytes(setup.model, setup.weights, setup.dtype)
    blocks = setup.model.num_layers * sent * (_PINNED_PACKED if sent < whole else _PINNED)
    return blocks + embedding_bytes(setup.model, 2) * _PINNED


def _bytes(way: Fit) -> int:
    return way.memory.total


def _may_be_parted(setup: Setup) -> bool:
    """Return whether weights of whole numbers are to be parted among several devices."""
    return setup.devices > 1 and not setup.weights.quantised and not_parted(setup) is None


def not_parted(setup: Setup) -> PlanError | None:
    """Return why weights are not to be parted among devices, where that is so."""
    if PlacementWish.of_spec("auto", setup.adapter.type).on_device().four_bit:
        return PlanError("4-bit weights are not parted among GPUs", fix="write `adapter: lora`, or drop `weights`")
    if setup.adapter.type != "full":
        return None
    if setup.optimizer not in BY_NUMBER:
        cause = f"`optim: {setup.optimizer}` looks at more than one number at a time, of which each GPU has a part"
        return PlanError(cause, fix=f"write `optim: {BY_NUMBER[0]}`, or drop `weights: sharded`")
    if setup.averaged:
        cause = "an average of weights that are parted among GPUs is not kept"
        return PlanError(cause, fix="drop `optim_args.ema_decay`, or `weights: sharded`")
    if setup.dtype == "fp16":
        return PlanError(
            "full training in fp16 is not parted among GPUs", fix="write `dtype: bf16`, or `adapter: lora`"
        )
    return None


def _may_travel(setup: Setup) -> bool:
    """Return whether they may: weights travel into nbtune's blocks on a GPU with memory of its own: frozen whole
    numbers that fit in RAM."""
    device = setup.device
    on_gpu = device.kind == "cuda" and not device.unified and setup.own_layers > 0
    needed = _travels(setup) * setup.devices
    return on_gpu and not setup.weights.eight_bit and setup.adapter.type in BY_FORMAT and needed <= device.ram


def _travelling(setup: Setup, policy: MemoryPolicy, micro: int, most: float, *, forced: bool) -> Fit:
    """Return the way with as many resident layers as there is room for."""
    least = setup.way(policy, micro, setup.weights.streamed())
    spare = int((most - least.memory.total) // travelling_bytes(setup.model, setup.weights))
    unpacked = setup.model.stacked or not packs(least.weights, setup.dtype)  # a place more, once any layer stays
    more = setup.weights.streamed(1).places - least.weights.places if unpacked else 0
    resident = 0 if forced else max(0, min(spare - more, setup.model.num_layers))
    return setup.way(policy, micro, setup.weights.streamed(resident))
