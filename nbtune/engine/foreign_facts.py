"""Another library's trainer in our words: whose it is, a spec and a plan that describe what it does, its figures.

Nothing of it is asked but what any `transformers.Trainer` has; what is not there, or not as expected, is left out.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbtune import device as machine
from nbtune.errors import NbtuneError
from nbtune.methods import METHODS
from nbtune.models import handed_over
from nbtune.models.memory_estimate import MemoryPlan
from nbtune.planner import Plan
from nbtune.spec import Placement, RunSpec, from_mapping
from nbtune.store.folder import OWN_MODEL, VARIABLE
from nbtune.store.foreign import Foreign
from nbtune.untrusted import is_machine_path

if TYPE_CHECKING:
    import torch

_NAMES = """
rewards/accuracies accuracy
mean_token_accuracy token_accuracy
rewards/margins margin
rewards/chosen reward_chosen
rewards/rejected reward_rejected
reward reward
reward_std reward_std
completions/mean_length length
completions/clipped_ratio cut
frac_reward_zero_std alike
kl kl
entropy entropy
"""
_CALLED: dict[str, str] = dict(line.split() for line in _NAMES.strip().splitlines())  # theirs: ours
_NOT_FIGURES = frozenset(
    ("loss", "grad_norm", "learning_rate", "epoch", "num_tokens", "num_input_tokens_seen", "step_time", "runtime")
)
_NO_FIGURES = ("samples_per_second", "steps_per_second", "total_flos", "preparation_time")  # ends of such names


def whose(trainer: Any) -> Foreign:
    """Return which class of which library a trainer is: of the user's own class, the library's that it is made from."""
    for kind in type(trainer).__mro__:
        library = kind.__module__.partition(".")[0]
        if library in ("trl", "transformers"):
            version = getattr(sys.modules.get(library), "__version__", "")
            own = type(trainer).__name__
            name = own if own in (kind.__name__, f"Unsloth{kind.__name__}") else f"{kind.__name__} (as {own})"
            return Foreign(name, library, str(version))
    return Foreign(type(trainer).__name__, type(trainer).__module__.partition(".")[0])


def arguments_of(trainer: Any) -> dict[str, Any]:
    """Return the plain ones of its arguments: no tokens, no paths of this machine."""
    known = trainer.args.to_dict() if hasattr(trainer.args, "to_dict") else {}
    hidden = ("token", "dir", "path", "url", "secret", "key", "name", "repo", "_id")
    plain = {key: value for key, value in known.items() if value is None or type(value) in (bool, int, float, str)}
    shown = {key: value for key, value in plain.items() if not any(part in key for part in hidden)}
    return {key: value for key, value in shown.items() if not (isinstance(value, str) and is_machine_path(value))}


def number_of(value: Any) -> float | None:
    """Return a figure as a number; None: it is none."""
    try:
        return None if isinstance(value, bool | str) else float(value)
    except (TypeError, ValueError):
        return None


def figures(logs: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Return what a trainer logs besides the loss, by our names, those that have one first.

    >>> figures({"loss": 1.0, "logps/chosen": -3.0, "rewards/margins": 0.5})
    {'margin': 0.5, 'logps/chosen': -3.0}

    Args:
        logs: by the trainer's names.
        prefix: only those that begin so, without it.
    """
    cut = {key.removeprefix(prefix): value for key, value in logs.items() if key.startswith(prefix)}
    found: dict[str, float] = {}
    for key in sorted(cut, key=lambda key: (key not in _CALLED, list(_CALLED).index(key) if key in _CALLED else 0)):
        number = None if key in _NOT_FIGURES or key.endswith(_NO_FIGURES) else number_of(cut[key])
        if number is not None:
            own = key.startswith("rewards/") and key.endswith("/mean")  # of one reward function
            found[f"reward:{key[8:-5]}" if own else _CALLED.get(key, key)] = number
    return found


def method_of(trainer: Any) -> str:
    """Return which of our methods it comes closest to; of what has none, imitation."""
    kinds = {kind.__name__ for kind in type(trainer).__mro__}
    scores = type(handed_over.within(trainer.model)).__name__.endswith("ForSequenceClassification")
    for name, method in METHODS.items():
        if method.trainer in kinds or (scores and method.rows == "labelled"):
            return name
    return "sft"


def model_name(model: Any) -> str:
    """Return what the base is called: a Hub id, a folder's path, the embedded model's name; or nothing."""
    name = handed_over.origin_of(model)
    return str(Path(name).resolve()) if name and Path(name).is_dir() else name


def spec_of(trainer: Any, samples: tuple[str, ...] = ()) -> RunSpec:
    """Return a spec that describes what a trainer does, as far as one of ours can."""
    model, args = trainer.model, trainer.args
    body: dict[str, Any] = {"model": model_name(model) or VARIABLE + OWN_MODEL, "data": "var:train_dataset"}
    body |= {"adapter": _adapter(model), "method": method_of(trainer), "samples": list(samples)}
    steps = number_of(getattr(args, "max_steps", 0)) or 0
    more = {
        "steps": int(steps) if steps > 0 else None,
        "epochs": None if steps > 0 else getattr(args, "num_train_epochs", None),
        "micro_batch_size": getattr(args, "per_device_train_batch_size", None),
        "gradient_accumulation_steps": getattr(args, "gradient_accumulation_steps", None),
        "learning_rate": getattr(args, "learning_rate", None),
        "warmup_ratio": getattr(args, "warmup_ratio", None),
        "weight_decay": getattr(args, "weight_decay", None),
        "max_grad_norm": getattr(args, "max_grad_norm", None),
        "sequence_len": getattr(args, "max_length", None),
        "seed": getattr(args, "seed", None),
        "beta": getattr(args, "beta", None),
    }
    spec = _fitting(body)
    for key, value in more.items():
        if value is not None:
            spec = _fitting({**spec.model_dump(mode="python", exclude_unset=True), key: value}, otherwise=spec)
    return spec


def _fitting(body: dict[str, Any], otherwise: RunSpec | None = None) -> RunSpec:
    """Return the spec; where ours does not take it, `otherwise`, or one that says less."""
    try:
        return from_mapping(body)
    except NbtuneError:
        if otherwise is not None:
            return otherwise
        least = {key: body[key] for key in ("model", "data")}
        kind = body["adapter"].get("type", "lora")
        return from_mapping({**least, "adapter": {"type": kind}})


def _adapter(model: Any) -> dict[str, Any]:
    """Return the adapter that is trained; what is none of ours only as a kind."""
    configs = getattr(model, "peft_config", None)
    if not configs:
        return {"type": "full"}
    config = configs[adapter_name(model)]
    quantised = bool(getattr(handed_over.within(model), "is_loaded_in_4bit", False))
    kind = "dora" if getattr(config, "use_dora", False) else "qlora" if quantised else "lora"
    found: dict[str, Any] = {"type": kind}
    for ours, theirs in (("r", "r"), ("alpha", "lora_alpha"), ("dropout", "lora_dropout"), ("use_rslora",) * 2):
        if (value := getattr(config, theirs, None)) is not None:
            found[ours] = value
    targets = getattr(config, "target_modules", None)
    if targets:
        found["target_modules"] = targets if isinstance(targets, str) else sorted(targets)
    return found


def adapter_name(model: Any) -> str:
    """Return the name of the adapter that is trained, of a model with some."""
    active = getattr(model, "active_adapter", None)
    name = active() if callable(active) else active
    name = name[0] if isinstance(name, list | tuple) and name else name
    return name if isinstance(name, str) and name in model.peft_config else next(iter(model.peft_config))


def plan_of_trainer(trainer: Any, spec: RunSpec, total_steps: int) -> Plan:
    """Return as a plan what the trainer does: facts, no estimates."""
    model, args = trainer.model, trainer.args
    base: Any = handed_over.within(model)
    where: torch.device = next(base.parameters()).device
    facts, config = machine.describe(where), base.config
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    dtype = {"torch.float32": "fp32", "torch.bfloat16": "bf16", "torch.float16": "fp16"}
    asked = "bf16" if getattr(args, "bf16", False) else "fp16" if getattr(args, "fp16", False) else ""
    recomputes = bool(
        getattr(args, "gradient_checkpointing", False) or getattr(args, "activation_checkpointing", False)
    )
    reason = f"as {whose(trainer).words} has it"
    return Plan(
        model=spec.model,
        architecture=type(base).__name__,
        hidden_size=int(getattr(text, "hidden_size", 0) or 0),
        parameters=sum(p.numel() for p in base.parameters()),
        trainable_parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
        rows=_rows(getattr(trainer, "train_dataset", None)),
        eval_rows=_rows(getattr(trainer, "eval_dataset", None)),
        device=facts.kind,  # type: ignore[arg-type]
        device_name=facts.name,
        dtype=asked or dtype.get(str(next(base.parameters()).dtype), "fp32"),  # type: ignore[arg-type]
        dtype_reason=reason,
        weights=Placement(format="nf4" if getattr(base, "is_loaded_in_4bit", False) else "16bit"),
        num_layers=int(getattr(text, "num_hidden_layers", 0) or 0),
        activations="recompute" if recomputes else "keep",
        packing=bool(getattr(args, "packing", False)),
        sequence_len=int(getattr(args, "max_length", None) or getattr(text, "max_position_embeddings", 0) or 0),
        micro_batch_size=int(args.per_device_train_batch_size),
        gradient_accumulation_steps=int(args.gradient_accumulation_steps),
        total_steps=total_steps,
        learning_rate=float(args.learning_rate),
        learning_rate_reason=reason,
        eval_every=max(0, int(getattr(trainer.state, "eval_steps", 0) or 0)),
        memory=MemoryPlan(**dict.fromkeys(MemoryPlan.model_fields, 0)),
        available_bytes=facts.total,
        disk_bytes=0,
        download_bytes=0,
        seconds=0.0,
        reasons=(f"trained by {whose(trainer).words}: nothing of this is nbtune's choice",),
    )


def _rows(dataset: Any) -> int:
    if isinstance(dataset, Mapping):
        return sum(_rows(one) for one in dataset.values())
    try:
        return len(dataset)
    except TypeError:
        return 0
