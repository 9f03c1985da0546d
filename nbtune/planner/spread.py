"""What a step costs on several GPUs, of one machine or of many: arithmetic, what is sent, and what is waited for.

Whole weights: gradients are summed once, after the last backward, and everybody waits for it. Parted weights: each
layer's are put together for its forward and for its backward, a layer ahead; in full training a layer's gradients are
summed and parted in its backward. Measured on H200, products beside a transfer are slower by about as long as it takes
(they share the GPU's multiprocessors and memory), so it is counted in full.

A ring of all GPUs sends over the links within a machine and between machines at once: the slower one counts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from nbtune.models.memory_estimate import block_bytes
from nbtune.models.step_time import Work, seconds_of, update_seconds

if TYPE_CHECKING:
    from nbtune.device import DeviceFacts
    from nbtune.models.config_facts import ModelFacts
    from nbtune.planner.plan import Plan

ACHIEVED = 0.6  # of what makers promise of a link: layers put together on four H200, 269 of 450 GB/s
_OF_NETWORK = 0.75  # likewise, of network adapters: never measured
_INSIDE, _BETWEEN = 2e-5, 4e-5  # seconds until a message begins, within a machine and between two
_AGREE = 2e-3  # seconds, measured, in which the hosts say how many tokens they have, and what is wished
_GRADIENT = 4  # bytes


@dataclass(frozen=True)
class Links:
    """How GPUs reach each other.

    Args:
        gpus: of a machine.
        machines: how many.
        inside, between: bytes a second that a GPU sends to others of its machine, and to other machines.
    """

    gpus: int
    machines: int
    inside: float
    between: float

    @classmethod
    def of(cls, device: DeviceFacts, gpus: int) -> Links:
        """Return those of a machine that is known; `gpus` of it are used."""
        return cls(gpus, device.nodes, device.peer * ACHIEVED, device.network * _OF_NETWORK)

    @property
    def count(self) -> int:
        return self.gpus * self.machines

    def ring(self, size: float) -> float:
        """Return the seconds in which each GPU passes so many bytes once around: it gets all others' parts of them."""
        within = size * (self.count - 1) / self.count / self.inside if self.gpus > 1 else 0.0
        across = size * (self.machines - 1) / self.machines / (self.between * self.gpus)
        steps = _INSIDE * math.log2(max(1, self.gpus)) + _BETWEEN * math.log2(self.machines)
        return max(within, across) + steps


class Spread(BaseModel):
    """A step of a plan on several GPUs, reckoned. Seconds and bytes of each GPU.

    `computing` is arithmetic, `waiting` what is waited for besides, `sent` what a GPU sends, `tokens` are those of all,
    `alone` what a single GPU does a second.
    """

    model_config = ConfigDict(frozen=True)

    machines: int
    gpus: int
    inside: float
    between: float
    computing: float
    waiting: float
    sent: float
    tokens: float
    alone: float

    @property
    def seconds(self) -> float:
        """Of a step."""
        return self.computing + self.waiting

    @property
    def tokens_per_second(self) -> float:
        """Of all GPUs together."""
        return self.tokens / self.seconds

    @property
    def share(self) -> float:
        """The speed of one of them beside that of one alone, 0..1; rows that cannot be shared out evenly count."""
        return self.tokens_per_second / (self.machines * self.gpus) / self.alone

    def rows(self, name: str) -> list[tuple[str, str]]:
        """Return (what, value) pairs for people.

        Args:
            name: of a GPU.
        """
        links = f"{self.inside / 1e9:,.0f} GB/s to the others of its machine" if self.gpus > 1 else ""
        if self.machines > 1:
            links += f"{', ' * bool(links)}{self.between / 1e9:,.1f} GB/s to other machines"
        where = f"{self.machines} × " * (self.machines > 1) + f"{self.gpus} × {name}"
        speed = f"{self.tokens_per_second:,.0f} tokens/s, {self.share:.0%} of as many single GPUs"
        parts = f"{_seconds(self.computing)} of arithmetic, {_seconds(self.waiting)} of waiting"
        return [
            ("links", f"{where}; each sends {links} (reckoned, not measured)"),
            ("a step", f"{_seconds(self.seconds)}: {parts}; each sends {_bytes(self.sent)}; {speed}"),
        ]


def spread(plan: Plan, model: ModelFacts, device: DeviceFacts, links: Links) -> Spread:
    """Return what a step of the plan costs on so many GPUs.

    >>> plan = nbtune.plan(data=[{"text": "Ahoy!"}] * 64, steps=2, machine="4xh200", nodes=2)
    >>> plan.spread.machines, plan.spread.gpus
    (2, 4)

    Args:
        plan: of `links.count` devices.
        model, device: plain facts.
    """
    full = plan.trainable_parameters == model.parameters
    at_once = plan.micro_batch_size * plan.sequence_len
    work = Work(at_once, plan.sequence_len, full)
    a_token = seconds_of(model, device, plan.weights, plan.activations, work) / at_once
    rows, computing = plan.micro_batch_size * plan.gradient_accumulation_steps, plan.seconds / plan.total_steps
    mine = plan.trainable_parameters
    if full and plan.weights.shards:  # each updates its part
        mine -= int(model.block_parameters * model.num_layers * (1 - 1 / plan.weights.parts))
    updating = update_seconds(device, mine, full=full and plan.dtype != "fp32")
    own = (computing - updating) / a_token  # tokens
    passes = math.ceil(plan.gradient_accumulation_steps / links.count)
    layers, block = model.num_layers, block_bytes(model, plan.weights)
    trained = plan.trainable_parameters
    waiting, sent = _AGREE, 0.0
    if plan.weights.shards:
        fetched = links.ring(block)  # for the forward and for the backward
        back = links.ring(block * _GRADIENT / 2) if full else 0.0
        waiting += passes * layers * (2 * fetched + back)
        sent += passes * layers * block * (4 if full else 2) * (links.count - 1) / links.count
        trained = trained - model.block_parameters * layers if full else trained
    summed = max(0, trained) * _GRADIENT
    waiting += 2 * links.ring(summed)
    sent += 2 * summed * (links.count - 1) / links.count
    return Spread(
        machines=links.machines,
        gpus=links.gpus,
        inside=links.inside,
        between=links.between,
        computing=computing,
        waiting=waiting,
        sent=sent,
        tokens=own * rows / math.ceil(rows / links.count),
        alone=1 / a_token,
    )


def _seconds(count: float) -> str:
    return f"{count:,.0f} s" if count >= 10 else f"{count:.2g} s" if count >= 1 else f"{count * 1e3:.2g} ms"


def _bytes(count: float) -> str:
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 / 10 else f"{count / 2**20:,.1f} MiB"
