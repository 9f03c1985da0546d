"""The loss of a run, with all that it asks besides the model: what the run starts from, or a frozen teacher."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbtune.data.prepare.labels import labels_of
from nbtune.device import DeviceFacts, torch_dtype
from nbtune.engine.warm_start import reference_of
from nbtune.errors import NbtuneError, PlanError, SpecError
from nbtune.methods import METHODS
from nbtune.spec import RunSpec
from nbtune.spec.loss_options import options_of

if TYPE_CHECKING:
    import torch

    from nbtune.data import Prepared
    from nbtune.models import Built
    from nbtune.models.heads import Head
    from nbtune.planner import Plan
    from nbtune.train.loss import Loss
    from nbtune.train.written_teacher import WrittenTeacher


def loss_of_run(
    folder: Path, spec: RunSpec, plan: Plan, built: Built, data: Prepared, device: torch.device, *, fused: bool
) -> Loss:
    """Return the loss that a run's spec asks for.

    Args:
        folder: the run's.
        built: its model, with tokenizer and adapter.
        data: its rows.
        fused: the model's head is nbtune's own, see `nbtune.train.loss.TokenLoss`.

    Raises:
        TrainError: it starts from weights of another model.
        SpecError: see `load_teacher`.
    """
    from nbtune.models.accelerate.detect import balance_of, causal_lm
    from nbtune.train.distillation import DistillationLoss
    from nbtune.train.kept_reference import KeptReference
    from nbtune.train.logprobs import Asking
    from nbtune.train.loss import UnlessIdle, loss_of
    from nbtune.train.shared_prompts import can_share

    method, options = METHODS[spec.method], options_of(spec)
    loss: Loss
    if method.teacher:
        asked: Any = {"dtype": torch_dtype(plan.dtype), "device": device}
        teacher: Any = written_teacher(folder, spec, plan, built, data, asked) if spec.loss.top_k else None
        loss = DistillationLoss(teacher or load_teacher(spec, built.tokenizer, **asked), {**method.options, **options})
    else:
        start, outputs = reference_of(folder, method, built.model), len(labels_of(spec)) or 1
        share = method.pairwise and not method.head and can_share(built)
        # several processes get other rows in each epoch, and what one knows another does not
        kept = KeptReference(device) if method.reference and plan.gpus == 1 else None
        asking = Asking(start, share, kept)
        balance = balance_of(causal_lm(built.model))
        loss = loss_of(method, options=options, fused=fused, asking=asking, outputs=outputs, balance=balance)
    return UnlessIdle(loss) if plan.weights.shards else loss


def head_of_run(spec: RunSpec) -> Head | None:
    """Return what a run's method wants in place of the model's own head; None: nothing. Of labels that are still to be
    found in the rows there are two at least."""
    from nbtune.models.heads import Head

    head = METHODS[spec.method].head
    return Head(head, labels_of(spec) or ("0", "1")) if head else None


def without_teacher(spec: RunSpec, device: DeviceFacts) -> DeviceFacts:
    """Return what a device has free beside the teacher; without one all that it has.

    Raises:
        PlanError: it does not fit.
    """
    if spec.teacher is None:
        return device
    from nbtune.models import model_facts

    try:
        need = model_facts(spec.teacher).weights_bytes
    except NbtuneError:
        if spec.loss.top_k:  # what it says may be written already; if not, loading it says what is wrong
            return device
        raise
    if need >= device.free:
        raise PlanError(
            f"the teacher {spec.teacher} takes {need / 2**30:.1f} GiB, and {device.free / 2**30:.1f} GiB are free",
            place="teacher",
            fix="name a smaller one",
        )
    return device if spec.loss.top_k else replace(device, free=device.free - need)


def written_teacher(
    folder: Path, spec: RunSpec, plan: Plan, built: Built, data: Prepared, asked: dict[str, Any]
) -> WrittenTeacher:
    """Return what the teacher says of a run's rows, held-out ones among them; it is asked where nothing is written yet,
    and let go.

    Args:
        asked: see `load_teacher`.
    """
    import torch

    from nbtune.data.batching.collate import collate
    from nbtune.train.loss import trained_logits
    from nbtune.train.written_teacher import FILE, WrittenTeacher, write

    if not (folder / FILE).is_file():
        teacher, rows, size = load_teacher(spec, built.tokenizer, **asked), data.whole(), plan.micro_batch_size
        parts = [part for part in (rows.train, rows.eval) if part is not None]
        numbers = (
            (part, list(range(i, min(i + size, len(part))))) for part in parts for i in range(0, len(part), size)
        )
        with torch.no_grad():
            batches = (collate(part, some) for part, some in numbers)
            write(folder, ((b, trained_logits(teacher, b, asked["device"])) for b in batches), spec.loss.top_k or 1)
    return WrittenTeacher(folder)


def check_teacher(spec: RunSpec, tokenizer: Any = None) -> None:
    """Refuse a teacher that is not there, or has another vocabulary than the model that it would teach.

    Args:
        spec: as `Objects.described` gives it; without a teacher there is nothing to refuse.
        tokenizer: of the model that is trained; None: it is loaded.

    Raises:
        SpecError, HubError: see above.
    """
    from nbtune.models import load_tokenizer

    if spec.teacher is None:
        return
    trust = spec.trust_remote_code
    mine = (load_tokenizer(spec.speaks, trust_remote_code=trust) if tokenizer is None else tokenizer).get_vocab()
    theirs = load_tokenizer(spec.teacher, trust_remote_code=trust).get_vocab()
    if theirs == mine:
        return
    new = [*spec.adapter.new_tokens, *spec.adapter.new_special_tokens]
    key = "new_tokens" if spec.adapter.new_tokens else "new_special_tokens"
    if new and theirs == {token: number for token, number in mine.items() if token not in new}:
        raise SpecError(
            f"the teacher {spec.teacher} does not know `{new[0]}`, and can only teach a model that has its vocabulary",
            place="teacher",
            fix=f"drop `adapter.{key}`, or name a teacher that was given the same tokens",
        )
    raise SpecError(
        f"the teacher {spec.teacher} has another vocabulary than the model, and can only teach one that has its own",
        place="teacher",
        fix="name a teacher of the same family",
    )


def load_teacher(spec: RunSpec, tokenizer: Any, *, dtype: torch.dtype, device: torch.device) -> torch.nn.Module:
    """Return the teacher, ready to be asked.

    Args:
        tokenizer: of the model that is trained.

    Raises:
        SpecError: it has another vocabulary, or cannot be loaded.
    """
    from nbtune.models import load_model

    assert spec.teacher is not None, "the spec's own check"

    check_teacher(spec, tokenizer)
    teacher: torch.nn.Module = load_model(
        spec.teacher, dtype=dtype, device=device, trust_remote_code=spec.trust_remote_code
    )
    return teacher.eval().requires_grad_(False)
