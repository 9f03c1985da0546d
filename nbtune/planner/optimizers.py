"""Whether a machine has what a spec's optimizer needs, and whether its rates are somebody's: said before any work."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from nbtune.errors import PlanError
from nbtune.spec.learning import OPTIMIZERS

if TYPE_CHECKING:
    from nbtune.device import DeviceFacts
    from nbtune.spec import RunSpec


def check_optimizer(spec: RunSpec, device: DeviceFacts) -> None:
    """Refuse an optimizer that is not to be had here, and a rate for what is not trained.

    Raises:
        PlanError: see above.
    """
    name, kind = spec.optim, OPTIMIZERS[spec.optim]
    if kind.library == "bitsandbytes.optim" and device.kind == "mps":
        raise _missing(name, "is bitsandbytes', which does not run on Apple GPUs", "write `optim: adamw`, or adafactor")
    if kind.library == "bitsandbytes.optim" and find_spec("bitsandbytes") is None:
        raise _missing(
            name, "is bitsandbytes', which is not installed", "`pip install bitsandbytes`, or write `optim: adamw`"
        )
    if kind.paged and device.kind != "cuda":
        raise _missing(
            name,
            f"moves its state out of a GPU's memory, and {device.name} is none",
            f"write `optim: {name.removeprefix('paged_')}`",
        )
    if name == "muon":
        import torch

        if not hasattr(torch.optim, "Muon"):
            raise _missing(name, f"is in torch from 2.9 on, this is {torch.__version__}", "write `optim: adamw`")
    _rates_are_somebodys(spec)


def check_warmup(spec: RunSpec, total_steps: int) -> None:
    """Refuse a warm-up that is asked for in steps, and lasts as long as the run: its rate would never be reached.

    Raises:
        PlanError: see above.
    """
    asked = spec.schedule.warmup_steps
    if asked and asked >= total_steps:
        raise PlanError(
            f"a warm-up of {asked:,} steps does not end within this run, which has {total_steps:,}",
            place="schedule.warmup_steps",
            fix="take fewer, or drop it: `warmup_ratio` is a share of the steps",
        )


def idle_warmup(spec: RunSpec) -> list[str]:
    """Return a sentence where a share for the warm-up was written that nothing acts on."""
    if "warmup_ratio" not in spec.model_fields_set or not spec.warmup_ratio:
        return []
    if spec.lr_scheduler_type in ("constant", "range_test"):
        way = ": `constant_with_warmup` has one" if spec.lr_scheduler_type == "constant" else ""
        return [f"`warmup_ratio` does nothing: the schedule `{spec.lr_scheduler_type}` has no warm-up{way}"]
    if spec.schedule.warmup_steps is not None:
        return ["`warmup_ratio` does nothing: `schedule.warmup_steps` stands in its place"]
    return []


def _missing(name: str, why: str, fix: str) -> PlanError:
    return PlanError(f"optimizer `{name}` {why}", place="optim", fix=fix)


def _rates_are_somebodys(spec: RunSpec) -> None:
    args, full = spec.optim_args, spec.adapter.type == "full"
    idle = {"lora_b_rate": "has no LoRA"} if spec.adapter.type in ("full", "ia3") else {}
    if not full and not spec.adapter.modules_to_save:
        idle |= {"head_rate": "does not train the head"}
        if not spec.adapter.trainable_token_indices:
            idle["embedding_rate"] = "trains no embeddings"
    for name, why in idle.items():
        if getattr(args, name) != 1:
            raise PlanError(
                f"`{name}` changes nothing: adapter `{spec.adapter.type}` {why}",
                place=f"optim_args.{name}",
                fix="drop it",
            )
