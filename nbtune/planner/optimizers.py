"""Whether a machine has what a spec's optimizer needs, and whether its rates are somebody's: said before any work."""

from __future__ import annotations

from collections.abc import Collection
from importlib.util import find_spec
from typing import TYPE_CHECKING

from nbtune.errors import PlanError
from nbtune.methods import METHODS
from nbtune.spec.learning import OPTIMIZERS

if TYPE_CHECKING:
    from nbtune.device import DeviceFacts
    from nbtune.models import ModelFacts
    from nbtune.spec import RunSpec


def check_optimizer(spec: RunSpec, model: ModelFacts, device: DeviceFacts) -> None:
    """Refuse an optimizer that is not to be had here or has nothing to do, and a rate for what is not trained.

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
        if model.kinds and not {"matrix", "lora_b"} & {*model.kinds}:
            raise _missing(name, "is for matrices of the blocks, and none is trained", "write `optim: adamw`")
    if METHODS[spec.method].head and model.trained_in_head and spec.adapter.modules_to_save:
        raise PlanError(
            f"the model's own head would be trained, and method `{spec.method}` asks only its head of scores",
            place="adapter.modules_to_save",
            fix="drop the head there: the one of scores is always trained",
        )
    _rates_are_somebodys(spec, model.kinds or _by_the_adapter(spec))


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


def _missing(name: str, why: str, fix: str) -> PlanError:
    return PlanError(f"optimizer `{name}` {why}", place="optim", fix=fix)


def _by_the_adapter(spec: RunSpec) -> tuple[str, ...]:
    """Return what may be trained, of a model whose weights nobody has counted."""
    adapter = spec.adapter
    whole = adapter.type == "full" or bool(adapter.modules_to_save)
    found = {"lora_b"} if adapter.type not in ("full", "ia3") else set()
    found |= {"head", "embedding"} if whole else {"embedding"} if adapter.trainable_token_indices else set()
    return tuple(found)


def _rates_are_somebodys(spec: RunSpec, kinds: Collection[str]) -> None:
    has_none = {"full": "has no LoRA", "ia3": "has no LoRA"}.get(spec.adapter.type, "trains no B")
    whose = {
        "lora_b_rate": ("lora_b", has_none),
        "head_rate": ("head", "does not train the head"),
        "embedding_rate": ("embedding", "trains no embeddings"),
    }
    for name, (kind, why) in whose.items():
        if kind not in kinds and getattr(spec.optim_args, name) != 1:
            raise PlanError(
                f"`{name}` changes nothing: adapter `{spec.adapter.type}` {why}",
                place=f"optim_args.{name}",
                fix="drop it",
            )
