"""The model of another trainer's run: written into the run's folder, as exports take it, and loaded to be asked."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbtune import device
from nbtune.atomic_io import replace_folder
from nbtune.disk import disk_error, free_bytes
from nbtune.engine.foreign_facts import adapter_name
from nbtune.errors import TrainError
from nbtune.methods import METHODS
from nbtune.models import Built
from nbtune.store.folder import placed, plan_of, refuse_outside, spec_to_run
from nbtune.untrusted import load as load_json

if TYPE_CHECKING:
    from nbtune.spec import RunSpec

SAVED = "adapter"  # the folder, as of nbtune's own runs; with full training it holds the whole model
_ROOM = 1.2  # of a model's bytes; a full disk would end the run that is watched


def why_not(model: Any, trainer: Any, folder: Path) -> str:
    """Return why a trainer's model is not written into the run's folder; nothing where it can be."""
    if getattr(trainer, "is_fsdp_enabled", False) or getattr(trainer, "is_deepspeed_enabled", False):
        return "its weights are parted among processes"
    size = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    if free_bytes(folder) < _ROOM * size:
        return f"it takes {size / 2**30:.1f} GiB, and {free_bytes(folder) / 2**30:.1f} GiB of disk are free"
    return ""


def save(model: Any, tokenizer: Any, folder: Path, base: str) -> None:
    """Write the adapter, or of full training the whole model, with its tokenizer: whole or not at all.

    Args:
        model: as its trainer has it.
        tokenizer: or None.
        folder: the run's.
        base: what the base is called.

    Raises:
        TrainError: the disk is full, or not writable.
    """
    from nbtune.models import save_adapter
    from nbtune.models.transformers_state import hidden_bars

    try:
        with replace_folder(folder / SAVED) as fresh, hidden_bars():
            if tokenizer is not None:
                tokenizer.save_pretrained(fresh)
            adapter = adapter_name(model) if getattr(model, "peft_config", None) else "default"
            save_adapter(model, fresh, base=base, adapter=adapter)
    except OSError as error:
        raise disk_error(error, TrainError, "the model could not be written", place=folder.name) from error


def load(folder: Path) -> Built:
    """Return the model of a run that another trainer has made, from its folder.

    Raises:
        TrainError: nothing is saved there, or it writes no text.
    """
    from nbtune import models

    refuse_outside(folder, error=TrainError)
    spec, saved = spec_to_run(folder), folder / SAVED
    if not saved.is_dir():
        raise TrainError(
            f"the run `{folder.name}` has no model in its folder",
            fix="load what its trainer has saved, by transformers",
        )
    if METHODS[spec.method].head:
        raise TrainError("its model gives scores", fix=f"load {SAVED}/ in the run's folder by transformers and peft")
    where = device.pick(spec.device)
    plan = plan_of(load_json(folder / "plan.json"), folder)
    dtype = device.torch_dtype(device.choose_dtype(spec.dtype, device.describe(where))[0])
    if spec.adapter.type == "full":
        model: Any = models.load_model(str(saved), dtype=dtype, device=where)
    else:
        model = _with_adapter(placed(spec, folder), saved, plan.weights, dtype, where)
    own = (saved / "tokenizer_config.json").is_file()
    tokenizer = models.load_tokenizer(str(saved) if own else spec.speaks)
    facts = models.model_facts(str(saved) if spec.adapter.type == "full" else placed(spec, folder).model)
    return Built(model.eval(), tokenizer, facts)


def _with_adapter(spec: RunSpec, saved: Path, weights: Any, dtype: Any, where: Any) -> Any:
    from peft import PeftModel

    from nbtune import models

    base = models.load_model(spec.model, dtype=dtype, device=where, weights=weights)
    return PeftModel.from_pretrained(base, saved, is_trainable=False)
