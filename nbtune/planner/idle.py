"""Keys that were written and that nothing acts on: a sentence each, said by the plan."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from nbtune.methods import METHODS

if TYPE_CHECKING:
    from nbtune.spec import RunSpec

_OF_MATRICES = {"matrix", "lora_b"}
_ADAMS = ("beta1", "beta2", "eps")


def idle(
    spec: RunSpec,
    kinds: Collection[str] = (),
    *,
    held: bool = True,
    chats: bool = True,
    whole: bool = False,
    decays: bool | None = None,
) -> list[str]:
    """Return a sentence for each of the values that were written, and that change nothing.

    Args:
        kinds: of what is trained (`nbtune.models.parameter_kinds`); none: that is not known.
        held: rows are held out.
        chats: some rows are conversations.
        whole: all rows are texts, each trained from end to end.
        decays: weight decay is of some of what is trained (`nbtune.models.weight_decay`); None: that is not known.
    """
    said = [*_of_warmup(spec), *_of_schedule(spec), *_of_evaluation(spec, held=held), *_of_loss(spec), *_of_data(spec)]
    said += _of_answers(spec) if METHODS[spec.method].online else [] if chats else _of_chats(spec)
    if spec.train_on == "all" and whole:
        said.append("`train_on: all` does nothing: all of a text is trained")
    if spec.weight_decay and decays is False:
        said.append("`weight_decay` does nothing: norms and biases have none, and nothing else is trained")
    if spec.train_on == "all" and spec.terminators != "turn":
        said.append("`terminators` does nothing: with `train_on: all` every token is learnt")
    if spec.optim == "muon" and kinds and {*kinds} <= _OF_MATRICES:
        why = "of muon it is for what is no matrix of a block, and nothing else is trained"
        said += [
            f"`optim_args.{key}` does nothing: {why}" for key in _ADAMS if getattr(spec.optim_args, key) is not None
        ]
    if spec.start_from is not None and spec.adapter.init_lora_weights in ("gaussian", "orthogonal", "loftq"):
        said.append(
            f"`init_lora_weights: {spec.adapter.init_lora_weights}` does nothing: the adapter begins with what "
            "`start_from` has learnt"
        )
    return said


def _of_warmup(spec: RunSpec) -> list[str]:
    if "warmup_ratio" not in spec.model_fields_set or not spec.warmup_ratio:
        return []
    if spec.lr_scheduler_type in ("constant", "range_test"):
        way = ": `constant_with_warmup` has one" if spec.lr_scheduler_type == "constant" else ""
        return [f"`warmup_ratio` does nothing: the schedule `{spec.lr_scheduler_type}` has no warm-up{way}"]
    if spec.schedule.warmup_steps is not None:
        return ["`warmup_ratio` does nothing: `schedule.warmup_steps` stands in its place"]
    return []


def _of_schedule(spec: RunSpec) -> list[str]:
    told = spec.schedule
    if spec.lr_scheduler_type == "polynomial" and told.power in (None, 1):
        return ["`lr_scheduler_type: polynomial` does nothing without `schedule.power`: it is `linear` then"]
    if spec.lr_scheduler_type == "cosine_with_restarts" and told.cycles in (None, 1):
        return ["`lr_scheduler_type: cosine_with_restarts` does nothing without `schedule.cycles`: it is `cosine` then"]
    return []


def _of_evaluation(spec: RunSpec, *, held: bool) -> list[str]:
    written, said = spec.eval.model_fields_set, []
    if "threshold" in written and spec.eval.threshold and spec.eval.patience is None:
        said.append("`eval.threshold` does nothing without `eval.patience`")
    if not spec.eval.metrics and not spec.eval.must_keep:
        names = [name for name in ("answer_rows", "max_new_tokens") if name in written]
        said += [f"`eval.{name}` does nothing without `eval.metrics`" for name in names]
    if METHODS[spec.method].online:
        why = f"method `{spec.method}` measures no held-out rows yet"
        said += [f"`eval.{name}` does nothing: {why}" for name in ("every", "max_rows") if name in written]
    elif not held:
        said += [
            f"`eval.{name}` does nothing: no rows are held out" for name in ("every", "max_rows") if name in written
        ]
    return said


def _of_loss(spec: RunSpec) -> list[str]:
    loss, method = spec.loss, METHODS[spec.method]
    if loss.type == "robust" and not loss.label_smoothing:
        return ["`loss.type: robust` does nothing without `loss.label_smoothing`: it is `sigmoid` then"]
    if method.teacher and loss.alpha == 1:
        told = ["teacher", *(f"loss.{name}" for name in ("temperature", "top_k") if getattr(loss, name) is not None)]
        return [f"`{name}` does nothing: `loss.alpha` is 1, the rows alone are learnt" for name in told]
    return []


def _of_chats(spec: RunSpec) -> list[str]:
    set_here = {
        "thinking": spec.thinking != "keep",
        "terminators": spec.terminators != "turn" and spec.train_on != "all",
        "train_on": spec.train_on not in ("answers", "all"),
    }
    return [f"`{key}` does nothing: no row is a conversation" for key, is_set in set_here.items() if is_set]


def _of_answers(spec: RunSpec) -> list[str]:
    set_here = {
        "train_on": spec.train_on != "answers",
        "train_spans": bool(spec.train_spans),
        "terminators": spec.terminators != "turn" and spec.train_on != "all",
    }
    why = f"method `{spec.method}` learns from its own answers"
    return [f"`{key}` does nothing: {why}" for key, is_set in set_here.items() if is_set]


def _of_data(spec: RunSpec) -> list[str]:
    if len(spec.data) > 1:
        return []
    said = ["`order: in_turn` does nothing: there is one source, which is shuffled"] * (spec.order == "in_turn")
    if spec.mix.by == "times":  # of one source, too, says how often an epoch sees it
        return said
    said += [f"`mix.{name}` does nothing: there is one source" for name in spec.mix.model_dump(exclude_defaults=True)]
    return said + ["`data.weight` does nothing: there is one source"] * (spec.data[0].weight != 1)
