"""How long a micro-batch takes, by a device's rates: arithmetic, memory that is read and written, launches, the link.

A token's way through a layer is its products, its attention, and what is read and written between them; each kernel
costs a moment of its own, which is what small models consist of. The constants were found on H200s
(docs/bench, `tests/models/test_step_time.py`); of other cards the rates are known, and these taken to be alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nbtune.models.memory_estimate import MLP_ROWS, PACKED, MemoryPolicy, block_bytes, packs, sent_bytes

if TYPE_CHECKING:
    from nbtune.device import DeviceFacts
    from nbtune.models.config_facts import ModelFacts
    from nbtune.spec.placement import Placement

_RATES = {"cpu": 3e10, "mps": 3e12, "cuda": 3.5e14}  # achieved FLOP/s where nothing was measured
_LINK = 45e9  # bytes a second from pinned memory, where that was not measured; 52e9 were on an H200
_SHARE = 0.85  # of a step's rate (`DeviceFacts.flops`) to that of its products
_INTENSITY = 133.0  # FLOP/s for each byte a second that a card copies: 110 to 140 of an A100, H100, H200, RTX 4090
_EIGHT_BIT = 1.6  # times as fast are products in 8 bits
_KERNEL = 3.3e-6  # seconds of a kernel that has nearly nothing to do, and to the next one
_DECODED = 7  # kernels more, where weights are decoded first
_KERNELS = (20, 32)  # of a layer, forth and back
_LAUNCH = 26e-6  # seconds of `DeviceFacts.launch`, where that was not measured
_LAUNCHED = 130  # times that, in which a host launches a layer's work both ways, where it is not recorded
_LAUNCHED_MORE = {"keep": 1.0, "selective": 1.1, "recompute": 1.2, "offload": 1.2}
_SENT = 0.8  # of that more, where it sends the layer's weights, too
_STOCK, _STOCK_LAUNCHED = 2.0, 0.65  # times as long a layer takes that is transformers' own, and its launches
_NORMED = (22, 38)  # bytes, forth and back, of each number that a norm of heads, or behind a half, takes
_NARROW_PRODUCTS = 2.0  # times as long as others of as many numbers are LoRA's
_BACK = 2.5  # times as much arithmetic attention's backward is
_NARROW = 128  # a head: attention on narrower ones is bound by exponentials
_ADAMW, _OF_WEIGHTS = 36, 56  # bytes that an update moves for each trained number, of a LoRA and of 16-bit weights
_TRAVELS = 1.02  # a step is longer where any weights travel
_UNHIDDEN = 0.06  # of the shorter of two that run beside each other
_PLAIN: dict[MemoryPolicy, float] = {"keep": 1.0, "selective": 1.2, "recompute": 1.32, "offload": 1.33}  # no GPU


@dataclass(frozen=True)
class Work:
    """What is to be done with a micro-batch.

    Args:
        tokens: all of them.
        length: of a sequence.
        full: the weights themselves are trained.
        own_layers: share of the layers that are nbtune's own.
        references: forwards beside that which is trained, as a reference's.
        recorded: there is room for CUDA graphs of whole steps.
        wide: numbers of a layer's LoRA beyond those of the usual rank, whose share is in all constants here.
    """

    tokens: int
    length: int
    full: bool = False
    own_layers: float = 1.0
    references: int = 0
    recorded: bool = True
    wide: float = 0.0


USUAL_RANK = 16


def seconds_of(
    model: ModelFacts, device: DeviceFacts, weights: Placement, activations: MemoryPolicy, work: Work
) -> float:
    """Return the seconds of a micro-batch on one device, forward and backward: reckoned, until steps are measured.

    They are those of the device or of its host, whoever has more to do.
    """
    args = model, device, weights, activations, work
    return max(device_seconds(*args), host_seconds(*args))


def host_seconds(
    model: ModelFacts, device: DeviceFacts, weights: Placement, activations: MemoryPolicy, work: Work
) -> float:
    """Return the seconds in which a host launches a GPU's work, one kernel after the other; 0 where it is recorded."""
    if device.kind != "cuda" or (weights.resident is None and work.own_layers > 0 and work.recorded):
        return 0.0
    launched = _LAUNCHED * (device.launch or _LAUNCH)
    launched *= _LAUNCHED_MORE[activations] + (0.0 if weights.resident is None else _SENT)
    launched *= work.own_layers + (1 - work.own_layers) * _STOCK_LAUNCHED
    return launched * model.num_layers * (1 + 0.3 * work.references)


def device_seconds(
    model: ModelFacts, device: DeviceFacts, weights: Placement, activations: MemoryPolicy, work: Work
) -> float:
    """Return the seconds of the device's own work, and of what it waits for from the host's memory."""
    if device.kind != "cuda":
        return _without_a_gpu(model, device, activations, work)
    forward, backward = _passes(model, device, weights, activations, work)
    if weights.resident is None:
        return (1 + work.references) * forward + backward
    link = device.link or _LINK
    layers = max(0, model.num_layers - weights.resident - weights.places)  # the last ones are there still
    dtype = "bf16" if device.bf16 else "fp16"
    sent = layers * sent_bytes(model, weights, dtype) / link
    if packs(weights, dtype):  # what has come is unpacked: three quarters are read, and all is written
        rate = (device.flops or _RATES["cuda"]) / _INTENSITY
        unpacked = layers * (1 + PACKED) * block_bytes(model, weights) / rate
        forward, backward = forward + unpacked, backward + unpacked
    kept = 2 * work.tokens * model.hidden_size * model.num_layers * (1 + model.norms_behind)
    inputs = kept / link if activations == "offload" else 0.0
    waits = (1 + work.references) * _beside(forward, sent) + _beside(backward, sent + inputs)
    return _TRAVELS * waits


def update_seconds(device: DeviceFacts, trained: int, *, full: bool = False) -> float:
    """Return the seconds of an optimizer's update; `full`: of weights that it has fp32 copies of."""
    rate, each = device.flops or _RATES[device.kind], _OF_WEIGHTS if full else _ADAMW
    return trained * each / (rate / _INTENSITY) if device.kind == "cuda" else 0.0


def _without_a_gpu(model: ModelFacts, device: DeviceFacts, activations: MemoryPolicy, work: Work) -> float:
    launches = 1 + 0.15 / (work.tokens / 512)  # small micro-batches waste launches
    whole = 4 * model.active_parameters * work.tokens * launches / (device.flops or _RATES[device.kind])
    return (_PLAIN[activations] + 0.5 * work.full + 0.5 * work.references) * whole


def _passes(
    model: ModelFacts, device: DeviceFacts, weights: Placement, activations: MemoryPolicy, work: Work
) -> tuple[float, float]:
    """Return the seconds of the forward and of the backward, as if all weights were there."""
    flops = device.flops or _RATES["cuda"]
    rate, copies = flops / _SHARE, flops / _INTENSITY
    hidden, inner, tokens = model.hidden_size, model.intermediate_size, work.tokens
    heads, layers = model.head_dim * (model.num_heads + 2 * model.num_kv_heads), max(1, model.num_layers)
    table = model.vocab_size * hidden
    each = max(0, model.active_parameters - table * (1 if model.tied else 2)) / layers
    faster = _EIGHT_BIT if weights.eight_bit else 1.0
    products = 2 * tokens * each / (rate * faster)
    width = model.num_heads * model.head_dim
    attention = 2 * tokens * work.length * width / rate * max(1.0, _NARROW / max(1, model.head_dim))
    moved = 2 * tokens / copies  # a number of each token
    forth = products + attention + moved * (4 * inner + 9 * hidden + 2 * heads) + _KERNELS[0] * _KERNEL
    back = products * (2 if work.full else 1) + _BACK * attention
    back += moved * (9 * inner + 14 * hidden + 3 * heads) + _KERNELS[1] * _KERNEL
    normed = (
        model.head_dim * (model.num_heads + model.num_kv_heads) * model.head_norms + 2 * hidden * model.norms_behind
    )
    lora = 2 * tokens * work.wide / rate * _NARROW_PRODUCTS
    forth += tokens * normed * _NORMED[0] / copies + lora
    back += tokens * normed * _NORMED[1] / copies + 2 * lora
    if weights.eight_bit:  # what is multiplied with is rounded first, and LoRA added in a pass of its own
        forth += moved * (3 * inner + 8 * hidden)
        back += moved * (6 * inner + 10 * hidden) + each / copies
    decoded = model.block_parameters if weights.four_bit else 0
    decoded += model.stacked // layers if weights.quantised and weights.experts else 0  # in 8 bits, too
    seconds = decoded * (2 + weights.bytes_a_weight) * 1.2 / copies + (_DECODED * _KERNEL if decoded else 0)
    forth, back = forth + seconds, back + seconds
    one = 2 * tokens * hidden * inner / (rate * faster)  # of gate, up and down
    again = {"keep": 0.0, "selective": 2 * one}.get(activations, forth - one)  # down's output is not needed again
    # but where a norm reads it: parts of all rows go through twice
    if model.norms_behind and activations == "recompute":
        again = forth + (2 * one if tokens > MLP_ROWS else 0.0)
    slow = work.own_layers + (1 - work.own_layers) * _STOCK
    head = 2 * tokens * table / rate
    forward = slow * layers * forth + head
    return forward, slow * layers * (back + again) + head * (2 if work.full else 1)


def _beside(work: float, sent: float) -> float:
    """Return the seconds of two that run beside each other."""
    return max(work, sent) + _UNHIDDEN * min(work, sent)
