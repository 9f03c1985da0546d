"""A model as a run would build it, as a module by itself: for measuring, and for loops that are not ours."""

from typing import Any

from torch import Tensor, nn

from nbtune.device import choose_dtype, describe, pick, torch_dtype
from nbtune.errors import SpecError
from nbtune.models.config_facts import model_facts
from nbtune.models.cuda_graph_step import TrainStep
from nbtune.models.factory import Built, build
from nbtune.models.memory_estimate import MEMORY_POLICIES
from nbtune.models.memory_search import Setup, fit
from nbtune.models.outline_facts import counted
from nbtune.spec.placement import PlacementWish


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
        """Run forward, backward and AdamW in one call; return the loss, a scalar on the device.

        Args:
            input_ids, labels: `[B, S]`; −100 is not trained.
            lr: of this step.
            kwargs: what else the model's forward takes.
        """
        if self._step is None:
            self._step = TrainStep(self.model, self.built.patch, weight_decay=self._weight_decay)
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
    """Build a model for training with the very functions that a run uses.

    >>> nbtune.models.load_trainable("nbtune/tiny", r=4, sequence_len=64, device="cpu").model.config.hidden_size
    256

    Args:
        path: ``nbtune/tiny``, a folder, or a Hub id.
        quant: frozen weights: ``none`` (16-bit, on a CPU 32-bit), ``nf4`` or ``fp8``.
        r: rank of the LoRA on all linear layers.
        micro_batch_size, sequence_len: rows and tokens of a micro-batch, to choose what is kept in memory.
        weights: ``resident`` on the device, ``streamed`` from the host's memory, or ``auto``: streamed as far as they
            do not fit.
        activations: a memory policy, or ``auto``: the fastest one that fits into the free memory.
        seed: of the adapter's first values.
        device: ``auto``, ``cuda``, ``cpu`` or ``mps``.

    Raises:
        SpecError, HubError, PlanError: see `build`.
    """
    from nbtune.spec import AdapterSpec

    wish = PlacementWish.of_words(quant, weights)
    if activations != "auto" and activations not in MEMORY_POLICIES:
        raise SpecError(f"activations: {activations!r} is no policy", fix=f"Use auto, {', '.join(MEMORY_POLICIES)}.")
    where = pick(device)
    facts = describe(where, rates=True)
    dtype, _ = choose_dtype("auto", facts)
    adapter = AdapterSpec(r=r)
    setup = Setup(
        counted(model_facts(path), path, adapter),
        adapter,
        facts,
        wish.on_device(fp32=dtype == "fp32"),
        dtype,
        sequence_len,
    )
    best, smallest = fit(setup, [micro_batch_size], activations=activations, home=wish.home)
    way = best or smallest  # nothing fits by the estimate: the device has the last word
    built = build(
        path,
        adapter=adapter,
        dtype=torch_dtype(dtype),
        device=where,
        policy=way.activations,
        seed=seed,
        weights=way.weights,
        tokenizer=False,
    )
    built.model.train()
    return Trainable(built)
