"""A model as a run would build it, as a module by itself: for measuring, and for loops that are not ours."""

from typing import Any

import torch
from torch import Tensor, nn

from nbtune.device import DeviceFacts, choose_dtype, describe, pick, torch_dtype
from nbtune.errors import SpecError
from nbtune.models.builder import Built, build
from nbtune.models.facts import ModelFacts
from nbtune.models.policy import MEMORY_POLICIES, MemoryPolicy
from nbtune.models.step import TrainStep

__all__ = ["Trainable", "fitting_policy", "load_trainable"]


class Trainable(nn.Module):
    """A model with its adapter and acceleration.

    Called with `input_ids` and `labels` it gives an output with `.loss`, as transformers' models do.
    """

    def __init__(self, built: Built, *, weight_decay: float = 0.01) -> None:
        super().__init__()
        self.model = built.model
        self.built, self._weight_decay = built, weight_decay
        self._step: TrainStep | None = None

    @property
    def config(self) -> Any:
        return self.model.config

    def forward(self, input_ids: Tensor, labels: Tensor | None = None, **kwargs: Any) -> Any:
        return self.model(input_ids=input_ids, labels=labels, **kwargs)

    def train_step(self, *, input_ids: Tensor, labels: Tensor, lr: float, **kwargs: Any) -> Tensor:
        """Forward, backward and AdamW in one call; returns the loss, a scalar on the device.

        Args:
            input_ids, labels: `[B, S]`; −100 is not trained.
            lr: of this step.
            kwargs: what else the model's forward takes.
        """
        if self._step is None:
            self._step = TrainStep(self.model, self.built.handle, weight_decay=self._weight_decay)
        loss = self._step.accumulate({"input_ids": input_ids, "labels": labels, **kwargs})
        self._step.update(lr)
        return loss


def load_trainable(
    path: str,
    *,
    quant: str = "none",
    r: int = 16,
    micro_batch_size: int = 1,
    sequence_len: int = 2048,
    weights: str = "auto",
    activations: str = "auto",
    seed: int = 0,
    device: str = "auto",
) -> Trainable:
    """Builds a model for training with the very functions that a run uses.

    Args:
        path: ``nbtune/tiny``, a folder, or a Hub id.
        quant: frozen weights: ``none`` (16-bit, on a CPU 32-bit) or ``nf4``.
        r: rank of the LoRA on all linear layers.
        micro_batch_size, sequence_len: rows and tokens of a micro-batch, to choose what is kept in memory.
        weights: ``auto`` or ``resident``.
        activations: a memory policy, or ``auto``: the fastest one that fits into the free memory.
        seed: of the adapter's first values.
        device: ``auto``, ``cuda``, ``cpu`` or ``mps``.

    Raises:
        SpecError, HubError, PlanError: see `build`.
    """
    from nbtune.spec.model import AdapterSpec

    if weights not in ("auto", "resident"):
        raise SpecError(f"weights: {weights!r} is not known here", fix="Use auto or resident.")
    if activations != "auto" and activations not in MEMORY_POLICIES:
        raise SpecError(f"activations: {activations!r} is no policy", fix=f"Use auto, {', '.join(MEMORY_POLICIES)}.")
    place = pick(device)
    facts = describe(place)
    name, _ = choose_dtype("auto", facts)
    adapter = AdapterSpec(type="qlora" if quant == "nf4" else "lora", r=r)
    built = build(path, adapter=adapter, dtype=torch_dtype(name), device=place, seed=seed, quant=quant, tokenizer=False)
    if built.handle is not None:
        tokens = micro_batch_size * sequence_len
        policy = activations if activations != "auto" else fitting_policy(built.facts, describe(place), tokens, r)
        built.handle.set_policy(policy)  # type: ignore[arg-type]
    built.model.train()
    return Trainable(built)


def fitting_policy(model: ModelFacts, device: DeviceFacts, tokens: int, r: int) -> MemoryPolicy:
    """The fastest policy that fits beside the loaded weights, for `tokens` a micro-batch.

    Counts 16-bit activations (32-bit on a CPU), fp32 gradients and moments of the adapter, and one layer at work.
    """
    width = 4 if device.kind == "cpu" else 2
    heads = model.head_dim * (model.num_heads + 2 * model.num_kv_heads)
    attention = 2 * model.hidden_size + heads + model.head_dim * model.num_heads
    kept = {"keep": attention + 2 * model.intermediate_size, "selective": attention, "recompute": model.hidden_size}
    working = attention + 5 * model.intermediate_size
    fixed = model.lora_parameters(r) * 12 + 2**29 + tokens * width * working
    for policy in ("keep", "selective", "recompute"):
        if fixed + tokens * width * kept[policy] * model.num_layers <= 0.92 * device.free:
            return policy  # type: ignore[return-value]
    return "offload"
