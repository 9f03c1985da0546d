"""The model of a run that has ended, loaded anew."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from nbtune.engine.library_logging import quiet_libraries
from nbtune.errors import TrainError
from nbtune.store import checkpoints, foreign
from nbtune.store.folder import refuse_outside, spec_to_run

if TYPE_CHECKING:
    from nbtune.models import Built
    from nbtune.spec import RunSpec


def ended_model(folder: Path) -> Built:
    """Return the model of a run that has ended, with its adapter, its tokenizer and what it learnt last.

    Raises:
        TrainError: nothing was trained yet.
    """
    quiet_libraries()
    from nbtune import device, models

    if foreign.of(folder) is not None:
        from nbtune.engine import foreign_model

        return foreign_model.load(folder)
    refuse_outside(folder, error=TrainError)
    spec, last = spec_to_run(folder), checkpoints.latest(folder)
    if last is None:
        raise TrainError(
            f"the run `{folder.name}` has nothing trained yet", fix="let it train until its first checkpoint"
        )
    where = device.pick(spec.device)
    dtype, _ = device.choose_dtype(spec.dtype, device.describe(where, **spec.memory.model_dump()))
    from nbtune.models.first_values import kept_in
    from nbtune.models.heads import read_head

    built = models.build(
        spec.model,
        adapter=spec.adapter,
        dtype=device.torch_dtype(dtype),
        device=where,
        policy="keep",
        seed=spec.seed,
        accelerate=False,
        trust_remote_code=spec.trust_remote_code,
        tokenizer=False,
        head=read_head(folder / "adapter"),
        first_values=kept_in(folder),
    )
    built.tokenizer = models.load_tokenizer(spec.speaks, trust_remote_code=spec.trust_remote_code)
    checkpoints.load_weights(last, built.model)
    built.model.eval()
    _speak_as_trained(built, folder, spec)
    return built


def _speak_as_trained(built: Built, folder: Path, spec: RunSpec) -> None:
    """Use the run's chat template, where it is not the base's own: the run has kept it with its tokenizer."""
    from nbtune.data.template.chat_template import template_text

    if spec.chat_template is None and template_text(built.tokenizer) is not None:
        return
    kept = folder / "tokenizer" / "chat_template.jinja"
    template = kept.read_text(encoding="utf-8") if kept.is_file() else spec.chat_template
    if template is not None and built.tokenizer is not None:
        built.tokenizer.chat_template = template
