"""From what was asked and the plain facts to a plan: the fastest way that fits.

Free memory is there to be spent: of all ways (what blocks keep, which weights travel, rows of a micro-batch) it is the
fastest that fits. If nothing fits, the error names the nearest change that would.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from nbtune.device import DeviceFacts, choose_dtype
from nbtune.errors import PlanError
from nbtune.methods import METHODS
from nbtune.models.abilities import Abilities, Claim, leaks, needs_own_blocks
from nbtune.models.memory_estimate import frozen_bytes, state_bytes, trainable_parameters
from nbtune.models.memory_search import Fit, Setup, available, fit, not_parted
from nbtune.planner.done_once import once_of, said_of_once
from nbtune.planner.idle import idle
from nbtune.planner.in_backward import fit_first, said, setups
from nbtune.planner.learning_rate import rate_of
from nbtune.planner.online import check_online
from nbtune.planner.optimizers import check_optimizer, check_warmup
from nbtune.planner.plan import Plan
from nbtune.planner.run_length import epochs_of, said_of
from nbtune.planner.ways import reckon
from nbtune.spec.loss_options import takes_logits
from nbtune.spec.parts import UNPACKED_ORDERS
from nbtune.spec.placement import BY_FORMAT, FORMATS, Home, Placement
from nbtune.spec.usual import unusual

if TYPE_CHECKING:
    from nbtune.data.prepare.stats import DataFacts
    from nbtune.models.config_facts import ModelFacts
    from nbtune.spec import RunSpec

_DEFAULT_BATCH = 8


def make_plan(
    spec: RunSpec,
    model: ModelFacts,
    data: DataFacts,
    device: DeviceFacts,
    *,
    abilities: Abilities | None = None,
    download_bytes: int = 0,
    devices: int = 1,
) -> Plan:
    """Return the plan of a run.

    >>> rows = [{"prompt": "Hi", "completion": "Ahoy!"}] * 16
    >>> plan = nbtune.plan(data=rows, device="cpu", epochs=1)  # gathers the facts, and calls this
    >>> plan.total_steps
    2

    Args:
        spec: what was asked for.
        model, data, device: plain facts; nothing is loaded to plan.
        abilities: what was found of the model (`nbtune.engine.abilities`).
        download_bytes: what must still be fetched.
        devices: how many devices as this one, or processes, share each step.
    Raises:
        PlanError: nothing fits, or this device cannot do what was asked for.
    """
    dtype, reason = choose_dtype(spec.dtype, device)
    if spec.activations == "offload" and device.unified:
        raise PlanError(
            f"activations go from a GPU's own memory into RAM, and {device.name} has none of its own",
            fix="write `activations: recompute`, or leave it out",
        )
    reasons: list[str] = []
    abilities = abilities or Abilities()
    weights = _weights(spec, device, dtype, abilities, reasons)
    sequence_len = _sequence_len(spec, model, data, reasons)
    batch, micros = _batch(spec, devices)
    # of a row: a better and a worse answer are two sequences, a prompt's answers are many
    tokens = sequence_len * (spec.rewards.answers if METHODS[spec.method].online else METHODS[spec.method].group)
    if METHODS[spec.method].online:
        reasons += _of_answers(spec, data)
    if model.turns_at is not None and min(sequence_len, data.longest) > model.turns_at:
        abilities, micros = _apart(spec, model.turns_at, abilities, micros, reasons)
    packing = _packing(spec, abilities, model.architecture, reasons)
    check_online(spec, model)
    check_optimizer(spec, model, device)
    about: dict[str, bool] = {"held": bool(data.eval_rows), "chats": data.chats is not False, "whole": data.whole}
    reasons += [*idle(spec, model.kinds, decays=model.decays, **about), *data.untaught]
    if not data.eval_rows and (spec.eval.patience or spec.eval.load_best):
        raise PlanError(
            "no rows are held out, so the best weights cannot be told from the last ones",
            place="eval",
            fix="write `eval: {split: 0.1}`, or drop `patience` and `load_best`",
        )
    if not data.eval_rows and spec.eval.metrics:
        raise PlanError(
            "no rows are held out, so there is nothing to measure the metrics on",
            place="eval",
            fix="write `eval: {split: 0.1}` or `eval: {data: …}` beside them, or drop `metrics`",
        )
    mine, start, averaged = _ours(spec, abilities), _starts_from_another(spec), spec.optim_args.ema_decay is not None
    setup = Setup(model, spec.adapter, device, weights, dtype, tokens, *mine, devices, start, spec.optim, averaged)
    setup = replace(setup, sequences=max(1, tokens // sequence_len), references=int(METHODS[spec.method].reference))
    setup = replace(
        setup, rows=math.ceil(batch / devices), once=once_of(spec, abilities, data, tokens, packing=packing)
    )
    home = spec.placement.home
    if home is Home.SHARDED and devices == 1:
        home = None
    if home is Home.SHARDED and (refusal := not_parted(setup)):
        raise refusal
    tried = setups(spec, setup)
    setup, best, smallest = fit_first(spec, tried, batch, micros, activations=spec.activations, home=home)
    if best is None:
        raise _nothing_fits(spec, device, smallest, weights)
    reasons += _of_devices(spec, device, devices, batch) + _of_limits(device)
    micro, room = best.micro_batch_size, f"{device.free / 2**30:.1f} GiB"
    if setup.in_backward:
        reasons += said(spec, setup, micro, batch, room)
        batch = micro
    if best.activations != "keep" and spec.activations == "auto":
        reasons.append(f"activations are not all kept, which costs time: they would not fit into {room}")
    if best.weights.shards and home is None:
        what = "weights, gradients and optimizer" if spec.adapter.type == "full" else "frozen weights"
        reasons.append(f"{what} are parted: all of them would not fit into {room}")
    if best.weights.streams and home is None:
        here = fit(setup, micros, activations=spec.activations, home=Home.DEVICE)[0]
        full = f"all of them would not fit into {room}"
        why = "what is kept in their place makes a step faster" if here else full
        reasons.append(f"{_what_travels(best.weights, model.num_layers)}: {why}")
    accumulation = spec.gradient_accumulation_steps or max(1, math.ceil(batch / micro))
    per_epoch = math.ceil(data.rows / (micro * accumulation))
    epochs = epochs_of(spec, per_epoch, model.hidden_size)
    total_steps = spec.steps or max(1, math.ceil(epochs * per_epoch))
    check_warmup(spec, total_steps)
    if spec.steps is None and spec.epochs is None:
        reasons.append(said_of(epochs))
    again = data.eval_rows > 0 or total_steps * micro * accumulation > data.rows
    reasons += said_of_once(METHODS[spec.method], abilities, again and devices == 1, parted=best.weights.shards)
    trained = trainable_parameters(model, spec.adapter)
    abilities = abilities.model_copy(
        update={
            "trained": trained if model.trained is not None else 0,  # else it is an estimate
            "frozen_bytes": 0 if spec.adapter.type == "full" else frozen_bytes(model, best.weights, dtype),
            "rounded": model.block_parameters * model.num_layers + model.stacked if best.weights.quantised else 0,
            "experts": model.stacked,
        }
    )
    width = 2 if setup.in_backward and dtype == "bf16" else 4
    state = state_bytes(setup.optimizer, model, spec.adapter) + 4 * averaged
    mean = data.tokens_total / max(1, data.rows)
    rate, why = rate_of(spec, model.architecture, model.hidden_size, total_steps)
    plan = Plan(
        model=model.name,
        architecture=model.architecture,
        hidden_size=model.hidden_size,
        parameters=model.parameters,
        trainable_parameters=trained,
        rows=data.rows,
        eval_rows=data.eval_rows,
        device=device.kind,  # type: ignore[arg-type]
        device_name=device.name,
        dtype=dtype,  # type: ignore[arg-type]
        dtype_reason=reason,
        weights=best.weights,
        num_layers=model.num_layers,
        gpus=devices,
        threads=_threads(device, devices),
        activations=best.activations,
        in_backward=setup.in_backward,
        optimizer=setup.optimizer if setup.optimizer != spec.optim else "",
        packing=packing,
        sequence_len=sequence_len,
        micro_batch_size=micro,
        gradient_accumulation_steps=accumulation,
        total_steps=total_steps,
        learning_rate=rate,
        learning_rate_reason=why,
        eval_every=spec.eval.every or max(1, round(total_steps / 10)),
        memory=best.memory,
        available_bytes=available(device),
        disk_bytes=int(trained * (width + state)) * (spec.checkpoint.keep + 1) + trained * 2 * width,
        download_bytes=download_bytes,
        seconds=total_steps * _step_seconds(setup, best, math.ceil(micro * accumulation / devices), mean),
        abilities=abilities,
        reasons=tuple(reasons),
        warnings=unusual(spec, steps=total_steps, hidden_size=model.hidden_size),
    )
    return plan.with_ways(partial(reckon, tried, METHODS[spec.method].group))


def _step_seconds(setup: Setup, best: Fit, rows: int, mean: float) -> float:
    """Return the seconds of a step of so many rows on each device, which have so many tokens on average."""
    return setup.step_seconds(best, rows * min(mean, setup.sequence_len))


def _packing(spec: RunSpec, abilities: Abilities, architecture: str, reasons: list[str]) -> bool:
    """Return whether rows share sequences: as asked, or where that is safe.

    Raises:
        PlanError: it was asked for by name, and the model would see one row in another.
    """
    if spec.packing is True and abilities.packing.holds is False:
        raise leaks(architecture, abilities.packing.words)
    if spec.packing != "auto":
        return spec.packing
    if spec.order in UNPACKED_ORDERS:
        reasons.append(f"rows are not packed: `order: {spec.order}` could not be kept")
        return False
    if abilities.packing.holds:
        why = f"which is safe with {architecture}: {abilities.packing.words}"
        reasons.append(f"rows are packed, short ones into one sequence, {why}")
    elif abilities.packing.holds is None:
        reasons.append(f"rows are not packed: whether {architecture} keeps them apart is not known")
    else:
        reasons.append(f"rows are not packed: {leaks(architecture, abilities.packing.words).cause}")
    return bool(abilities.packing.holds)


def _ours(spec: RunSpec, abilities: Abilities) -> tuple[float, bool]:
    """Return how many of the layers are nbtune's own, and whether the head is; by rule where it was not tried."""
    rule = spec.accelerate and spec.adapter.type not in ("dora", "ia3")  # whose blocks stay transformers' own
    share, head = abilities.share_of_layers(), abilities.takes("head")
    if takes_logits(spec):
        head = False  # whose loss is more than cross-entropy
    return float(rule) if share is None else share, spec.accelerate if head is None else head


def _starts_from_another(spec: RunSpec) -> bool:
    """Return whether the reference is what another run has learnt, and kept beside what is trained."""
    return spec.start_from is not None and METHODS[spec.method].reference


def _weights(spec: RunSpec, device: DeviceFacts, dtype: str, abilities: Abilities, reasons: list[str]) -> Placement:
    """Return the format of frozen weights; where they are is decided by the memory there is."""
    wish = spec.placement
    weights = wish.on_device(fp32=dtype == "fp32")
    if weights.four_bit and device.kind == "mps":
        raise PlanError(
            "4-bit weights need bitsandbytes, which does not run on Apple GPUs", fix="write `adapter: lora`"
        )
    least = FORMATS[weights.format]
    if device.capability < least.capability:
        what = f"{weights.format} products need {least.card}, this is {device.name}"
        raise PlanError(what, fix="write `weights: auto`")
    if wish.home is Home.STREAMED:
        _refuse_travel(spec, device, abilities)
    if weights.eight_bit and (refusal := needs_own_blocks(abilities.blocks)):
        raise refusal
    if wish.overruled_by(weights):
        reasons.append("16-bit weights were asked for, products are in fp32 here")
    return weights


def _refuse_travel(spec: RunSpec, device: DeviceFacts, abilities: Abilities) -> None:
    """Raise a `PlanError` where weights cannot be streamed."""
    if device.kind != "cuda" or device.unified:
        raise PlanError(
            f"weights can only be streamed to a GPU with memory of its own, and this is {device.name}",
            fix="write `weights: auto`",
        )
    if spec.adapter.type not in BY_FORMAT or not spec.accelerate or abilities.share_of_layers() == 0:
        raise PlanError(
            "weights are streamed only beside a plain LoRA, into nbtune's own blocks",
            fix="write `adapter: lora` or `qlora` and leave `accelerate` on, or `weights: auto`",
        )


def _sequence_len(spec: RunSpec, model: ModelFacts, data: DataFacts, reasons: list[str]) -> int:
    if METHODS[spec.method].online:
        return _with_answer(spec, model, data)
    if spec.sequence_len is not None:
        if spec.sequence_len > model.max_position:
            reasons.append(f"{spec.sequence_len} tokens are more than the model's {model.max_position} positions")
        return spec.sequence_len
    if data.longest > model.max_position:
        reasons.append(
            f"rows are cut at the model's {model.max_position} positions; the longest has {data.longest} tokens"
        )
    return max(8, min(data.longest, model.max_position))


def _with_answer(spec: RunSpec, model: ModelFacts, data: DataFacts) -> int:
    """Return the tokens of the longest prompt with the longest answer.

    Raises:
        PlanError: the model has fewer positions.
    """
    most, room = spec.rewards.max_new_tokens, spec.sequence_len or model.max_position
    if data.longest + most > room:
        raise PlanError(
            f"the longest prompt has {data.longest} tokens and its answer up to {most}, and there is room for {room}",
            place="rewards.max_new_tokens",
            fix=f"set it to {room - data.longest}" if room > data.longest else "leave the longest prompts out",
        )
    return max(8, data.longest + most)


def _of_answers(spec: RunSpec, data: DataFacts) -> list[str]:
    """Return what is to be said of a run whose model answers while it learns."""
    method, rewards = METHODS[spec.method], spec.rewards
    said = [
        f"TRL's {method.trainer} samples {rewards.answers} answers a prompt and does the steps, on transformers' own "
        "model: nbtune's kernels rest"
    ]
    if data.eval_rows:
        said.append("held-out prompts are left out, and not measured yet")
    return said


def _of_devices(spec: RunSpec, device: DeviceFacts, devices: int, batch: int) -> list[str]:
    """Return what is to be said of how many devices there are, and how many are used."""
    if devices == 1 and device.count > 1 and spec.gpus == 1:
        return [f"one of {device.count} GPUs is used: `gpus: all` shares each step among them"]
    if batch < devices:
        return [f"{devices - batch} of {devices} GPUs have nothing to do: a step has {batch} rows, raise `batch_size`"]
    drawn = ", but for what dropout draws" if spec.adapter.dropout else ""
    return [f"each GPU takes its share of a step's {batch} rows: losses are those of one GPU{drawn}"] * (devices > 1)


def _threads(device: DeviceFacts, processes: int) -> int:
    share = max(1, device.cores // processes) if device.cores else 0
    return min(share, device.threads) if device.threads else share


def _of_limits(device: DeviceFacts) -> list[str]:
    """Return what keeps the process from all that the machine has, and whose limit it is."""
    memory = f"of memory at most {device.cap / 2**30:.1f} GiB are taken: {device.cap_why}"
    cores = f"{device.cores} core{'s are' if device.cores > 1 else ' is'} used: {device.cores_why}"
    return [memory] * bool(device.cap) + [cores] * bool(device.cores_why)


def _batch(spec: RunSpec, devices: int) -> tuple[int, list[int]]:
    """Return the effective batch and the micro-batches that may be tried, none larger than a device's share of the
    batch."""
    if spec.micro_batch_size is not None:
        batch = spec.batch_size or spec.micro_batch_size * (spec.gradient_accumulation_steps or 1)
        return batch, [spec.micro_batch_size]
    batch = spec.batch_size or _DEFAULT_BATCH
    if spec.gradient_accumulation_steps is not None:
        if batch % spec.gradient_accumulation_steps:
            raise PlanError(
                f"{batch} rows cannot be accumulated in {spec.gradient_accumulation_steps} equal parts",
                fix="make batch_size a multiple of gradient_accumulation_steps",
            )
        return batch, [batch // spec.gradient_accumulation_steps]
    sizes = [size for size in range(batch, 0, -1) if batch % size == 0]
    return batch, [size for size in sizes if size <= -(-batch // devices)] or sizes[-1:]


def _apart(
    spec: RunSpec, turns_at: int, abilities: Abilities, micros: list[int], reasons: list[str]
) -> tuple[Abilities, list[int]]:
    """Return what holds where a long row changes what a model says of a short one beside it: no packs, and which
    micro-batches may be tried."""
    why = f"a row of more than {turns_at:,} tokens changes this model's rotary angles, for every row beside it"
    abilities = abilities.model_copy(update={"packing": Claim(holds=False, words=why)})
    alone = 1 in micros
    if alone and METHODS[spec.method].group == 1:
        reasons.append(f"{why}: a micro-batch is one row")
    else:
        reasons.append(f"{why}: losses differ a little from those of rows by themselves")
    return abilities, [1] if alone else micros


def _what_travels(weights: Placement, layers: int) -> str:
    if weights.resident is not None and weights.resident >= layers:
        return "the embedding's rows are fetched from RAM"
    return "frozen weights are streamed from RAM, layer by layer"


def _nothing_fits(spec: RunSpec, device: DeviceFacts, smallest: Fit, weights: Placement) -> PlanError:
    need, policy, micro = smallest.memory.total, smallest.activations, smallest.micro_batch_size
    if weights.bits in (8, 16) and device.kind == "cuda" and spec.adapter.type != "full":
        fix = "write `adapter: qlora` (4-bit frozen weights), or a shorter `sequence_len`"
    elif spec.adapter.type == "full":
        fix = "write `adapter: lora`, which trains a fraction of the weights"
    elif device.kind == "cpu" and spec.dtype == "auto" and not weights.quantised:
        fix = "write `dtype: bf16` (half the memory, and slower on most CPUs), or `adapter: qlora`"
    elif spec.micro_batch_size and spec.micro_batch_size > 1:
        fix = "leave `micro_batch_size` out, so that the plan can choose"
    else:
        fix = "write a shorter `sequence_len`, or take a smaller model"
    within = f" ({device.cap_why} allows {device.cap / 2**30:.1f} GiB)" if device.cap else ""
    return PlanError(
        f"it does not fit: the smallest way (activations {policy}, micro-batch {micro}) needs {need / 2**30:.1f} GiB, "
        f"{device.name} has {available(device) / 2**30:.1f} GiB free, some of which is left to others{within}",
        fix=fix,
    )
