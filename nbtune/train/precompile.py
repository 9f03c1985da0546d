"""The first step's kernels, compiled by a process beside the run while it loads its weights.

    with Rehearsal.begin(spec) as rehearsal:   # a child process starts importing
        rehearsal.perform(plan)                # it builds one layer of the model and compiles what a step needs
        ...                                    # the run loads, and finds its kernels in Triton's cache
        rehearsal.end(done=True)               # after the first step

The child writes nothing but Triton's cache, says nothing, computes nothing that counts, and dies with the run: its
standard input is a pipe, and the end of that is its end. Where all of it was compiled before, none is started.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from nbtune import device as machine
from nbtune.child_process import ChildDied, ChildProcess, ParentProcess
from nbtune.disk import home_folder
from nbtune.methods import METHODS

if TYPE_CHECKING:
    import torch

    from nbtune.data.batching.collate import Batch
    from nbtune.models import Built
    from nbtune.planner import Plan
    from nbtune.spec import RunSpec

_RAM = 6 * 2**30  # bytes that a second process with torch on a GPU may need, and the run beside it
_TOKENS = 2048  # of a micro-batch, at most: kernels do not depend on more
_ROWS = 256  # trained rows are padded to multiples of it
# What decides which kernels a step needs, of a spec.
_FIELDS = (
    "model", "adapter", "method", "dtype", "device", "weights", "activations", "optim", "packing", "accelerate",
    "sequence_len", "batch_size", "micro_batch_size", "gradient_accumulation_steps", "max_grad_norm",
)  # fmt: skip


class Rehearsal:
    """The child process of one run; every method is safe to call at any time, and none raises.

    Args:
        spec: of the run.
        process: the child, or None where none is needed.
    """

    def __init__(self, spec: RunSpec, process: ChildProcess | None = None) -> None:
        self.process, self._spec = process, spec

    @classmethod
    def begin(cls, spec: RunSpec) -> Rehearsal:
        """Start the child, where there is a GPU, a run on it compiles kernels, and that was not done before."""
        wanted = spec.device in ("auto", "cuda") and spec.accelerate and machine.gpu_present()
        if not wanted or find_spec("triton") is None or _mark(spec).exists():
            return cls(spec)
        if machine.cpu_count() < 2 or machine.ram_available() < _RAM:
            return cls(spec)
        return cls(spec, _start())

    def perform(self, plan: Plan) -> None:
        """Tell the child what to build, if the device has room for it beside what the run is going to need."""
        if self.process is None:
            return
        if plan.device != "cuda" or plan.available_bytes - plan.peak_bytes < _needed(self._spec, plan):
            self.end()
            return
        order = {"spec": self._spec.model_dump(mode="json"), "plan": plan.model_dump(mode="json")}
        with contextlib.suppress(ChildDied):
            self.process.say(order)

    def end(self, *, done: bool = False) -> None:
        """End the child; `done`: the run has made a step, so that nothing is left to compile next time."""
        process, self.process = self.process, None
        if process is None:
            return
        process.stop(0.0)
        if done:
            mark = _mark(self._spec)
            with contextlib.suppress(OSError):
                if mark.parent.is_dir():
                    mark.touch()

    def __enter__(self) -> Rehearsal:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()


def _start() -> ChildProcess | None:
    with contextlib.suppress(OSError):
        return ChildProcess(["-m", "nbtune.train.precompile"], environment={"NBTUNE_COMPILE_AHEAD": "1"}, output="none")
    return None


def _mark(spec: RunSpec) -> Path:
    """Return an empty file in Triton's cache: a run like this one has compiled its kernels into it."""
    home = Path(os.environ.get("TRITON_HOME") or home_folder())
    cache = Path(os.environ.get("TRITON_CACHE_DIR") or home / ".triton" / "cache")
    settings = spec.model_dump(mode="json")
    versions = [_version(name) for name in ("nbtune", "triton", "torch")]
    text = json.dumps([versions, {name: settings.get(name) for name in _FIELDS}], sort_keys=True)
    return cache / f"nbtune-{hashlib.sha256(text.encode()).hexdigest()[:32]}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _needed(spec: RunSpec, plan: Plan) -> int:
    """Return the bytes of a model of one layer: its weights twice (as they come, and stacked), and a step of it."""
    from dataclasses import replace

    from nbtune.models import model_facts
    from nbtune.models.memory_estimate import block_bytes, estimate
    from nbtune.spec.placement import PLAIN

    facts = model_facts(spec.model)
    rest = facts.parameters - facts.block_parameters * facts.num_layers
    single = replace(facts, num_layers=1, parameters=rest + facts.block_parameters)
    rows, tokens = _shape(spec, plan)
    needs = estimate(
        single, spec.adapter, weights=PLAIN, activations="keep", micro_batch_size=rows, sequence_len=tokens,
        dtype=plan.dtype, device="cuda",
    )  # fmt: skip
    return needs.total + 3 * block_bytes(facts, PLAIN)


def _shape(spec: RunSpec, plan: Plan) -> tuple[int, int]:
    """Return rows, and tokens of each: those of the plan, but no more tokens than make a difference to the kernels."""
    group = METHODS[spec.method].group
    rows = plan.micro_batch_size * (1 if plan.packing else group)
    length = plan.sequence_len * (group if plan.packing else 1)
    enough = -(-_TOKENS // rows // 64) * 64
    return rows, min(-(-length // 64) * 64, enough)


# ---------------------------------------------------------------- the child


def rehearse(spec: RunSpec, plan: Plan) -> None:
    """Run one step of a model of one layer, by the functions that the run uses."""
    device = machine.pick(spec.device)
    built = _sketch(spec, plan, device)
    built.model.train()
    batch = _batch(spec, plan, built.facts.vocab_size)
    method, head = METHODS[spec.method], built.patch is not None and "head" in built.patch.report.taken
    if head or not method.by_tokens:
        _step(built, spec, plan, batch, device)


def _sketch(spec: RunSpec, plan: Plan, device: torch.device) -> Built:
    from nbtune.models.factory import sketch

    return sketch(
        spec.model,
        adapter=spec.adapter,
        dtype=machine.torch_dtype(plan.dtype),
        device=device,
        policy=plan.activations,
        trust_remote_code=spec.trust_remote_code,
        weights=plan.weights,
    )


def _step(built: Built, spec: RunSpec, plan: Plan, batch: Batch, device: torch.device) -> None:
    from nbtune.train.cuda_graph_stepper import FusedStepper, records, suits
    from nbtune.train.loss import AnswerLoss, loss_of

    loss = loss_of(METHODS[spec.method], fused=True)
    answers = loss if isinstance(loss, AnswerLoss) else None
    if not suits(built, spec, plan.dtype, device) or (answers is not None and not records(built, answers)):
        loss(built.model, batch, denominator=1, device=device).loss.backward()
        return
    stepper = FusedStepper(
        built,
        weight_decay=spec.weight_decay,
        max_grad_norm=spec.max_grad_norm,
        seed=spec.seed,
        device=device,
        loss=answers,
    )
    for micro_step in range(min(2, plan.gradient_accumulation_steps)):
        stepper.accumulate(batch, denominator=1, step=0, micro_step=micro_step)
    stepper.update(plan.learning_rate)


def _batch(spec: RunSpec, plan: Plan, vocabulary: int) -> Batch:
    """Return a full micro-batch of the plan's shape, as the collator would make it."""
    import torch

    from nbtune.data.batching.collate import Batch

    rows, tokens = _shape(spec, plan)
    ids = (torch.arange(rows * tokens) % vocabulary).view(rows, tokens)
    trained = torch.arange(max(_ROWS, rows * tokens // _ROWS * _ROWS)) % (rows * tokens)
    half = tokens // 2
    bounds = torch.arange(0, rows * tokens + 1, half, dtype=torch.int32) if plan.packing else None
    positions = torch.arange(tokens).expand(rows, -1)
    answers = rows if bounds is None else len(bounds) - 1
    return Batch(
        input_ids=ids,
        labels=ids,
        attention_mask=None,
        position_ids=positions if bounds is None else positions % half,
        cu_seqlens=bounds,
        max_seqlen=None if bounds is None else half,
        num_tokens=rows * tokens,
        num_trained=len(trained),
        trained_rows=trained,
        trained_labels=ids.flatten()[trained],
        examples=tuple(range(answers)),
        values=torch.arange(answers).add(1).remainder(2).float(),
    )


def main() -> None:
    """Do what the child is for."""
    orders = ParentProcess().messages()
    import peft  # noqa: F401 — imported while the run prepares its data
    import transformers  # noqa: F401

    from nbtune.models import accelerate  # noqa: F401
    from nbtune.planner import Plan
    from nbtune.spec import RunSpec

    order = next(orders)
    try:
        rehearse(RunSpec.model_validate(order["spec"]), Plan.model_validate(order["plan"]))
    finally:
        from nbtune_kernels.ahead import finish

        finish()
    os._exit(0)  # nothing is to be tidied up


if __name__ == "__main__":
    main()
