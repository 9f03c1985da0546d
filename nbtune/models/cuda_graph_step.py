"""A training step with as little host work as the device allows: gradients in place, AdamW in one launch, CUDA graphs.

    step = TrainStep(built.model, built.patch)
    step.accumulate({"input_ids": ids, "labels": labels}, first=True)
    step.update(1e-4)

Where shapes repeat on a CUDA device, forward and backward of a micro-batch are one graph, and so is the update. The
first two steps of a shape run without one (kernels compile, libraries choose), as real steps; nothing runs twice.
Shapes that are rare, or come when memory is short, go on without one.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from nbtune_kernels import FusedAdamW
from torch import Tensor, nn

from nbtune.device import describe, memory_use, pinnable
from nbtune.device.streams import record, replayable, send, synchronize
from nbtune.models.accelerate.grad_sinks import Sink
from nbtune.models.experts.block import ExpertsSink
from nbtune.models.memory_search import may_record
from nbtune.models.weight_decay import decays

if TYPE_CHECKING:
    from nbtune.models.accelerate import Patch

_RUNS_BEFORE_RECORDING = 2
_MOST_RECORDINGS = 32


class TrainStep:
    """Accumulates gradients of micro-batches, clips, and updates; loss and norm stay on the device.

    Args:
        model: gives `.loss` for keyword inputs. What requires gradients is trained.
        patch: its acceleration, whose LoRA gradients are then written in place; None without one.
        betas, eps, weight_decay: AdamW's; norms and biases do not decay.
        max_grad_norm: 0 for no clipping.
        graphs: record CUDA graphs where shapes repeat.
        loss: of the model and the keyword inputs: a scalar, or `[1 + n]`, a loss and what else a step tells. None: the
            `.loss` that the model gives for them.
    """

    def __init__(
        self,
        model: nn.Module,
        patch: "Patch | None" = None,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        max_grad_norm: float = 0.0,
        graphs: bool = True,
        loss: Callable[[nn.Module, dict[str, Any]], Tensor] | None = None,
    ) -> None:
        self.model, self.max_grad_norm = model, max_grad_norm
        self._loss = loss or _own_loss
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.device = self.parameters[0].device
        # which other weights come next is not replayed, and nothing may wait meanwhile
        waits = patch is not None and (patch.traffic is not None or patch.waits)
        self._graphs = graphs and replayable(self.device) and not waits
        self._sinks, self._flat, sunk = ([], None, set()) if patch is None else _make_sinks(patch)
        self._plain = [p for p in self.parameters if id(p) not in sunk]
        for p in self._plain:
            p.grad = torch.zeros_like(p)
        grads: list[Any] = [p.grad for p in self.parameters]
        decay = decays(model, weight_decay)
        self.optimizer = FusedAdamW(self.parameters, grads, betas=betas, eps=eps, weight_decay=decay)
        self.lr = torch.zeros((), dtype=torch.float32, device=self.device)
        self._draws = None if patch is None else patch.draws
        self._seed = torch.zeros(1, dtype=torch.int64, device=self.device)
        self._seen: dict[Any, int] = {}
        self._recorded: dict[Any, tuple[Any, dict[str, Any], Any]] = {}
        self._pool: Any = None
        self._roomy: bool | None = None

    def gradients(self) -> list[Tensor]:
        """Return the buffers of the gradients that `update` works with, for who adds them up over processes."""
        return [*([] if self._flat is None else [self._flat]), *(p.grad for p in self._plain if p.grad is not None)]

    def accumulate(self, inputs: dict[str, Any], *, first: bool = True, seed: int | None = None) -> Tensor:
        """Run forward and backward of one micro-batch; return its loss (an fp32 scalar [] on the device, or what the
        step's own `loss` gives).

        Args:
            inputs: the model's keyword arguments.
            first: of an optimizer step: gradients are overwritten, not added to.
            seed: alone decides what accelerated layers drop (below 2^63); unset: torch's random state.
        """
        with self.drawing(seed):
            return self._take("accumulate" if first else "add", inputs, lambda i: self._accumulate(i, first))

    def ask(self, what: str, inputs: dict[str, Any], answer: Callable[[nn.Module, dict[str, Any]], Tensor]) -> Tensor:
        """Return what `answer` gives of the model, without gradients; recorded where shapes repeat.

        Args:
            what: is asked, by a name of its own.
        """
        with torch.no_grad():
            return self._take(what, inputs, lambda i: answer(self.model, i))

    @contextmanager
    def drawing(self, seed: int | None) -> Iterator[None]:
        """Let a seed (below 2^63) alone decide what accelerated layers drop within; None: torch's random state."""
        if self._draws is None or seed is None:
            yield
            return
        self._seed.fill_(seed)
        self._draws.given = self._seed
        try:
            yield
        finally:
            self._draws.given = None

    def _take(self, what: str, inputs: dict[str, Any], work: Any) -> Tensor:
        inputs = {k: self._sendable(v) if isinstance(v, Tensor) else v for k, v in inputs.items()}
        given: Tensor = self._run((what, *_shapes(inputs)), inputs, work)
        return given.clone()

    def _sendable(self, value: Tensor) -> Tensor:
        # a copy from pageable memory waits for all that was launched before; one from pinned memory does not
        waits = replayable(self.device) and value.device.type == "cpu" and not value.is_pinned() and pinnable()
        return value.pin_memory() if waits else value

    def forget_recordings(self) -> None:
        """Give back the memory of all recordings: shapes are going to be others, or memory was short."""
        synchronize(self.device)
        self._recorded.clear()
        self._seen.clear()
        self._pool, self._roomy = None, None

    def update(self, lr: float) -> Tensor:
        """Clip and update; return the gradient norm before clipping, fp32 [] on the device (0 without clipping)."""
        self.lr.fill_(lr)
        return self._run(("update",), {}, lambda _: self._update()).clone()

    def _accumulate(self, inputs: dict[str, Any], first: bool) -> Tensor:
        if first and self._plain:
            torch._foreach_zero_([p.grad for p in self._plain])
        for sink in self._sinks:
            sink.accumulate, sink.open = not first, True
        try:
            told = self._loss(self.model, inputs)
            (told if told.ndim == 0 else told[0]).backward()
        finally:
            for sink in self._sinks:
                sink.open = False
        return told.detach()

    def _update(self) -> Tensor:
        if not self.max_grad_norm:
            self.optimizer.step(self.lr)
            return torch.zeros((), device=self.device)
        norm = self._grad_norm()
        self.optimizer.step(self.lr, clip=self.optimizer.clip_factor(norm, self.max_grad_norm))
        return norm

    def _grad_norm(self) -> Tensor:
        parts = [] if self._flat is None else [torch.linalg.vector_norm(self._flat)]
        if self._plain:
            parts += torch._foreach_norm([p.grad for p in self._plain])
        return torch.linalg.vector_norm(torch.stack([p.float() for p in parts]))

    def _may_record(self) -> bool:
        if len(self._recorded) >= _MOST_RECORDINGS:
            return False
        if self._pool is None and self._roomy is None:
            self._roomy = may_record(describe(self.device), memory_use(self.device))
        return self._roomy is not False

    def _here(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return {k: send(v, self.device) if isinstance(v, Tensor) else v for k, v in inputs.items()}

    def _run(self, key: Any, inputs: dict[str, Any], work: Any) -> Any:
        if not self._graphs:
            return work(self._here(inputs))
        if key not in self._recorded:
            self._seen[key] = self._seen.get(key, 0) + 1
            if self._seen[key] <= _RUNS_BEFORE_RECORDING or not self._may_record():
                return work(self._here(inputs))
            still = {k: v.clone() if isinstance(v, Tensor) else v for k, v in self._here(inputs).items()}
            graph, result = record(lambda: work(still), self.device, beside=self._pool)
            self._pool = self._pool or graph
            self._recorded[key] = (graph, still, result)
        graph, still, result = self._recorded[key]
        for name, value in inputs.items():
            if isinstance(value, Tensor):
                still[name].copy_(value, non_blocking=True)
        graph.replay()
        return result


def _own_loss(model: nn.Module, inputs: dict[str, Any]) -> Tensor:
    return model(**inputs).loss  # type: ignore[no-any-return]


def _shapes(inputs: dict[str, Any]) -> tuple[Any, ...]:
    return tuple((k, tuple(v.shape), v.dtype) if isinstance(v, Tensor) else (k, v) for k, v in sorted(inputs.items()))


def _make_sinks(patch: "Patch") -> "tuple[list[Sink | ExpertsSink], Tensor | None, set[int]]":
    """Return gradient buffers of every accelerated LoRA group and of experts, as their parameters' `.grad`.

    Returns:
        The sinks, the one flat tensor that all of them lie in, and the ids of the parameters that they serve.
    """
    groups = [g for layer in patch.layers for g in layer.groups() if not g.full and g.rank]
    groups = [g for g in groups if all(p.requires_grad for p in g.parameters())]
    mixtures = [m for m in patch.experts if m.parameters() and all(p.requires_grad for p in m.parameters())]
    served = [p for g in groups for p in g.parameters()] + [p for m in mixtures for p in m.parameters()]
    if not served:
        return [], None, set()
    first = served[0]
    if any(p.dtype != first.dtype or p.device != first.device for p in served):
        return [], None, set()
    flat = torch.zeros(sum(p.numel() for p in served), dtype=first.dtype, device=first.device)
    start = 0

    def take(*shape: int) -> Tensor:
        nonlocal start
        size = shape[0] * shape[1]
        start += size
        return flat[start - size : start].view(shape)

    for group in groups:
        members = [(m.a, m.b) for m in group.members if m.a is not None and m.b is not None]
        da, dbs = take(group.rank, group.inputs), [take(*b.shape) for _, b in members]
        for (a, b), part, db in zip(members, da.split([a.shape[0] for a, _ in members]), dbs, strict=True):
            a.grad, b.grad = part, db
        group.sink = Sink(da, dbs)
    for mixture in mixtures:
        for p in mixture.parameters():
            p.grad = take(*p.shape)
        with_lora = [s for s in (mixture.up, mixture.down) if s.lora is not None]
        mixture.sink = ExpertsSink({s.name: tuple(p.grad for p in s.parameters()) for s in with_lora})  # type: ignore[misc]
    sinks = [s for s in (*(g.sink for g in groups), *(m.sink for m in mixtures)) if s is not None]
    return sinks, flat, {id(p) for p in served}
