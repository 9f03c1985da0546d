"""Models and tokenizers that are handed over as objects, as rows are: what the spec calls them, and what a run keeps.

`named` gives them names in the spec (``var:model``), which stays plain; `Objects` is what these names mean. In a run's
folder the names mean ``model/`` and ``own_tokenizer/`` (`nbtune.store.folder.spec_to_run`).
"""

from __future__ import annotations

import dataclasses
import difflib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nbtune import hub_cache
from nbtune.data.sources.by_value import spec_with_named_rows
from nbtune.device import DeviceFacts
from nbtune.engine import peft_start
from nbtune.errors import SpecError, TrainError
from nbtune.methods import METHODS
from nbtune.models import handed_over
from nbtune.models.handed_over import is_model, is_peft, is_tokenizer
from nbtune.models.new_tokens import with_new_tokens
from nbtune.spec import RunSpec
from nbtune.store import checkpoints
from nbtune.store.folder import OWN_MODEL, OWN_TOKENIZER, VARIABLE, loadable
from nbtune.untrusted import refuse_links

_KINDS = {"model": (is_model, "a model of transformers or peft"), "tokenizer": (is_tokenizer, "a tokenizer")}
_SAVE = 'save it (`model.save_pretrained("my-model")`) and write `model: my-model`'
_NOT_OURS = (  # of peft's LoraConfig: what is learnt beside A and B, or where they are added in another way
    "rank_pattern", "alpha_pattern", "modules_to_save", "layers_to_transform", "target_parameters", "lora_bias",
    "trainable_token_indices", "alora_invocation_tokens", "layer_replication", "use_qalora", "use_bdlora",
    "arrow_config", "kasa_config", "monteclora_config", "megatron_config",
)  # fmt: skip


def named(
    spec: RunSpec | Mapping[str, Any] | str | None,
    fields: Mapping[str, Any],
    variables: Mapping[str, Any] | None,
    first_line: int = 1,
) -> tuple[RunSpec, Mapping[str, Any]]:
    """Return the spec, in which rows, a model and a tokenizer that were handed over have names, and the variables.

    A name of the spec that is a variable which holds such an object becomes ``var:name``.

    Raises:
        SpecError, DataError: as `spec_with_named_rows`; a name is two things.
    """
    known, given = dict(variables or {}), dict(fields)
    body = dict(spec) if isinstance(spec, Mapping) else spec
    for part in (body, given):
        if not isinstance(part, dict):
            continue
        for key, (fits, words) in _KINDS.items():
            value = part.get(key)
            if value is None or isinstance(value, str):
                continue
            if isinstance(value, Path):
                part[key] = str(value)
            elif fits(value):
                part[key] = _name(value, key, known)
            else:
                raise SpecError(_what_else(value, words), place=key, fix=_how_else(value, key))
    run_spec, known = spec_with_named_rows(body, given, known, first_line)  # type: ignore[assignment]
    changes = {key: _meant(getattr(run_spec, key), key, known) for key in _KINDS if getattr(run_spec, key) is not None}
    changes = {key: name for key, name in changes.items() if name != getattr(run_spec, key)}
    return (run_spec.model_copy(update=changes) if changes else run_spec), known


def _what_else(value: Any, words: str) -> str:
    return f"a value of type {type(value).__name__} is not {words}"


def _how_else(value: Any, key: str) -> str:
    if hasattr(value, "_orig_mod"):
        return "hand over what was compiled: `model._orig_mod`"
    if is_model(getattr(value, "model", None)):
        return "hand over what is in it: `….model`, and `….tokenizer` as `tokenizer`"
    return f"give a loaded {key} of transformers, its Hub id, or its folder"


def _name(value: Any, key: str, variables: dict[str, Any]) -> str:
    """Return ``var:`` and the name of a value; a new one where it is none of the variables."""
    for name, other in variables.items():
        if other is value and not name.startswith("_"):
            return VARIABLE + name
    name, number = key, 1
    while name in variables:
        number += 1
        name = f"{key}_{number}"
    variables[name] = value
    return VARIABLE + name


def _meant(name: str, key: str, variables: Mapping[str, Any]) -> str:
    """Return the name with ``var:`` where it is that of a variable which holds such an object."""
    fits, words = _KINDS[key]
    if name.startswith(VARIABLE):
        inner = name.removeprefix(VARIABLE)
        if inner not in variables:
            have = [other for other, value in variables.items() if fits(value) and not other.startswith("_")]
            near = difflib.get_close_matches(inner, have, 1) or have[:1]
            fix = f"did you mean `{VARIABLE}{near[0]}`?" if near else f"name a Hub id or a folder, or load {words}"
            raise SpecError(f"there is no variable `{inner}` here", place=key, fix=fix)
        if not fits(variables[inner]):
            raise SpecError(f"the variable `{inner}`: {_what_else(variables[inner], words)}", place=key, fix=_SAVE)
        return name
    if not name.isidentifier() or not fits(variables.get(name)):
        return name
    others = [f"`./{name}`"] if Path(name).is_dir() else []
    others += ["`OWNER/" + name + "`"] if _is_cached(name) else []
    if others:
        what = "a folder" if Path(name).is_dir() else "a model of the Hub"
        fix = f"write `{VARIABLE}{name}` or {' or '.join(others)}, so that nothing is guessed"
        raise SpecError(f"`{name}` is a variable and {what}", place=key, fix=fix)
    return VARIABLE + name


def _is_cached(name: str) -> bool:
    """Return whether the Hub's cache has a model of that name alone, as those of its first days had."""
    caches = (hub_cache.user_cache(), *hub_cache.shared_caches())
    return any(name in hub_cache.repos(cache, "model") for cache in caches)


@dataclass(frozen=True)
class Objects:
    """What a spec's ``var:`` names mean.

    Args:
        spec: with what the objects decide: precision, device and, of a peft model, the adapter.
        model, tokenizer: the objects; None where the spec names a Hub id or a folder.
    """

    spec: RunSpec
    model: Any = None
    tokenizer: Any = None

    @classmethod
    def of(cls, spec: RunSpec, variables: Mapping[str, Any], *, detach: bool = False) -> Objects:
        """Return the objects of a spec that `named` made.

        Raises:
            SpecError: the model cannot be trained as it is handed over, with what to do instead.
        """
        model, tokenizer = (
            variables[name.removeprefix(VARIABLE)] if name is not None and name.startswith(VARIABLE) else None
            for name in (spec.model, spec.tokenizer)
        )
        if model is not None:
            _refuse(model, spec, detach)
            if is_peft(model) and spec.start_from is not None:
                cause = "a peft model begins with what it has learnt, not with what another run has"
                raise SpecError(cause, place="start_from", fix="drop it, or hand over the base: `model.unload()`")
            spec = _as_it_lies(model, _with_its_adapter(model, spec))
            if spec.tokenizer is None:
                spec = spec.model_copy(update={"tokenizer": _its_tokenizer(model)})
        return cls(peft_start.with_its_adapter(spec), model, tokenizer)

    @contextmanager
    def described(self) -> Iterator[RunSpec]:
        """Lend the spec, in which the names are folders that describe the objects: for what reads no weights."""
        if self.model is None and self.tokenizer is None:
            yield with_new_tokens(self.spec)
            return
        with tempfile.TemporaryDirectory(prefix="nbtune-") as folder:
            self.keep(Path(folder), learnt=False)
            yield loadable(self.spec, Path(folder))

    def keep(self, folder: Path, *, learnt: bool = True) -> None:
        """Write into a run's folder what describes the objects; with `learnt`, what a peft model has learnt."""
        if self.model is not None:
            handed_over.describe(self.model, folder / OWN_MODEL)
            handed_over.lend(self.model, folder / OWN_MODEL)
            if learnt and is_peft(self.model):
                _keep_learnt(self.model, folder / "start" / checkpoints.WEIGHTS)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder / OWN_TOKENIZER)

    def check_same(self, folder: Path) -> None:
        """Refuse a run in `folder`, whose spec is the same, where its model is another object.

        Raises:
            TrainError: it is.
        """
        if self.model is None:
            return
        with tempfile.TemporaryDirectory(prefix="nbtune-") as mine:
            handed_over.describe(self.model, Path(mine))
            if not handed_over.same(Path(mine), folder / OWN_MODEL):
                raise TrainError(
                    f"the run `{folder.name}` is at work on another model of that name",
                    fix="`--restart` stops it and starts anew, another `--name` keeps both",
                )


def check_vocabulary(spec: RunSpec) -> None:
    """Refuse a tokenizer of one's own that has more tokens than the model.

    Args:
        spec: as `Objects.described` gives it.

    Raises:
        SpecError: it has.
    """
    from nbtune import models

    if spec.tokenizer is None:
        return
    tokenizer = models.load_tokenizer(spec.tokenizer, trust_remote_code=spec.trust_remote_code)
    most, known = max(tokenizer.get_vocab().values(), default=0), models.model_facts(spec.model).vocab_size
    if most >= known:
        raise SpecError(
            f"the tokenizer has tokens up to number {most:,}, and the model knows {known:,} of them",
            place="tokenizer",
            fix="take the one that it was made with; or `model.resize_token_embeddings(len(tokenizer))`, and hand over "
            "the model too",
        )


def check_there(folder: Path, *, detach: bool = False) -> None:
    """Refuse to work on a run whose model was handed over where that cannot be had.

    Raises:
        SpecError: another session had it, or the run wants a process of its own.
    """
    place = folder / OWN_MODEL
    if not handed_over.is_absent(place):
        return
    if handed_over.lent(place) is None:
        raise handed_over.gone(place)
    if detach:
        raise SpecError("a model that is handed over trains where it is, and cannot be detached", fix=_SAVE)


def take_along(old: Path, made: Path) -> None:
    """Give a new run's folder what an old one keeps of objects: they are the same."""
    for part in (OWN_MODEL, OWN_TOKENIZER):
        if (old / part).is_dir():
            refuse_links(old, part, error=TrainError)
            shutil.copytree(old / part, made / part, dirs_exist_ok=True)
    if (model := handed_over.lent(old / OWN_MODEL)) is not None:
        handed_over.lend(model, made / OWN_MODEL)


def same_base(old: Path, made: Path) -> None:
    """Refuse to begin with what an old run has learnt beside another model that was handed over.

    Raises:
        SpecError: the new run's is another one.
    """
    if not handed_over.same(old / OWN_MODEL, made / OWN_MODEL):
        raise SpecError(
            f"`{old.name}` was of another model that was handed over: its weights do not fit",
            place="start_from",
            fix="hand over the same model, or drop `start_from`",
        )


def _refuse(model: Any, spec: RunSpec, detach: bool) -> None:
    """Raise a SpecError where a model can only be trained from its files."""
    base = handed_over.within(model)
    if detach:
        raise SpecError("a model that is handed over trains where it is, and cannot be detached", fix=_SAVE)
    if spec.gpus != 1:
        raise SpecError(f"a model that is handed over trains where it is: not on `gpus: {spec.gpus}`", fix=_SAVE)
    if spec.placement.is_of_frozen_weights:
        asked = f"adapter `{spec.adapter.type}`" if spec.weights == "auto" else f"weights `{spec.weights}`"
        raise SpecError(f"a model that is handed over keeps its weights as they are: no {asked}", fix=_SAVE)
    if not METHODS[spec.method].head and base.get_output_embeddings() is None:
        cause = f"the model that is handed over is a {type(base).__name__}, which has no head: it says no words"
        raise SpecError(cause, place="model", fix="load it with `AutoModelForCausalLM`")
    if getattr(base, "is_quantized", False) or hasattr(base.config, "quantization_config"):
        fix = "write `model:` with its Hub id or folder, and `adapter: qlora`"
        raise SpecError("the model that is handed over has quantised weights", place="model", fix=fix)
    if type(base).__module__.startswith("transformers_modules"):
        fix = "write `model:` with its Hub id or folder, and `trust_remote_code: true`"
        raise SpecError("the model that is handed over is of code of its own", place="model", fix=fix)
    places = {place.type for place in handed_over.places_of(model)}
    if len(handed_over.places_of(model)) != 1 or "meta" in places:
        where = ", ".join(sorted(map(str, handed_over.places_of(model))))
        raise SpecError(f"the model that is handed over lies in several places ({where})", place="model", fix=_SAVE)
    if getattr(base, "peft_config", None) and not is_peft(model):
        fix = "hand over the model of `peft.get_peft_model` or `PeftModel.from_pretrained`"
        raise SpecError("the model has adapters inside that are not peft's own model around it", place="model", fix=fix)


def _as_it_lies(model: Any, spec: RunSpec) -> RunSpec:
    """Return the spec with the precision and the device that the model has."""
    import torch

    words = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
    dtype, (place,) = words.get(handed_over.dtype_of(model)), handed_over.places_of(model)
    if dtype is None or place.type not in ("cpu", "cuda", "mps"):
        has = f"is in {handed_over.dtype_of(model)}, on {place}"
        raise SpecError(f"the model that is handed over {has}", place="model", fix="`model.to(torch.float32)`")
    for key, asked, has in (("dtype", spec.dtype, dtype), ("device", spec.device, place.type)):
        if asked not in ("auto", has):
            fix = f"drop `{key}`, or move the model there yourself: `model.to(…)`"
            raise SpecError(f"`{key}: {asked}` is asked for, and the model that is handed over has {has}", fix=fix)
    return spec.model_copy(update={"dtype": dtype, "device": place.type, "trust_remote_code": False})


def _its_tokenizer(model: Any) -> str:
    """Return where the model's own tokenizer is: where the model came from."""
    from nbtune.models.loading import tokenizer_folder

    came_from = handed_over.origin_of(model)
    try:
        if not came_from:
            raise SpecError("it came from no folder")
        tokenizer_folder(came_from)
    except Exception as error:
        cause = f"the model that is handed over does not say where its tokenizer is ({came_from or 'no name'})"
        raise SpecError(cause, place="tokenizer", fix="hand that over, too: `tokenizer=…`") from error
    return came_from


def _with_its_adapter(model: Any, spec: RunSpec) -> RunSpec:
    """Return the spec with the adapter that a peft model has, which goes on being trained."""
    if not is_peft(model):
        return spec
    config = _lora_of(model)
    names = {name.removeprefix("base_model.model.") for name, _ in _learnt(model)}
    modules = sorted({name.rsplit(".lora_", 1)[0] for name in names})
    mine = {
        "type": "dora" if config.use_dora else "lora",
        "r": config.r,
        "alpha": float(config.lora_alpha),
        "dropout": config.lora_dropout,
        "use_rslora": config.use_rslora,
        "target_modules": tuple(_short(modules, [name for name, _ in handed_over.within(model).named_modules()])),
    }
    asked = spec.adapter.model_dump(exclude_unset=True)
    other = [key for key, value in asked.items() if key in mine and key != "target_modules" and mine[key] != value]
    if other:
        raise SpecError(
            f"`adapter: {{{other[0]}: {asked[other[0]]}}}` is asked for, and the peft model that is handed over has "
            f"{mine[other[0]]}",
            place="adapter",
            fix="drop `adapter`: the one that is there goes on being trained; or hand over the base",
        )
    return spec.model_copy(update={"adapter": spec.adapter.model_copy(update=mine)})


def _short(wanted: list[str], modules: list[str]) -> list[str]:
    """Return last names where all modules of these are wanted, else whole ones."""
    plain = [name.replace(".base_layer", "") for name in modules]
    found = []
    for name in wanted:
        last = name.rsplit(".", 1)[-1]
        others = {other for other in plain if other.rsplit(".", 1)[-1] == last}
        found.append(last if others <= set(wanted) else name)
    return list(dict.fromkeys(found))


def _lora_of(model: Any) -> Any:
    """Return the configuration of the one LoRA of a peft model.

    Raises:
        SpecError: it has another kind of adapter, several, or what our adapters do not have.
    """
    active = list(model.active_adapters)
    config = model.peft_config.get(active[0]) if len(active) == 1 else None
    kind = getattr(getattr(config, "peft_type", None), "value", None)
    biased = getattr(config, "bias", "none") != "none"
    odd = [key for key in _NOT_OURS if getattr(config, key, None)] + ["bias"] * biased
    if kind != "LORA" or odd:
        why = f"it has {odd[0]}" if odd else f"it has {kind or f'{len(active)} active adapters'}"
        fix = "hand over `model.merge_and_unload()`, on which a new adapter is trained"
        raise SpecError(f"of peft's models those with one plain LoRA are trained on; {why}", place="model", fix=fix)
    if any(getattr(module, "merged", False) for module in model.modules()):
        raise SpecError("the adapter is merged into the weights now", place="model", fix="`model.unmerge_adapter()`")
    return config


def _learnt(model: Any) -> list[tuple[str, Any]]:
    """Return the adapter's weights, by the names that a run's checkpoint has for them."""
    (active,) = model.active_adapters
    pairs = [(name, p) for name, p in model.named_parameters() if ".lora_" in name]
    kept = [(name, p) for name, p in pairs if name.endswith((f".{active}.weight", f".{active}"))]
    return [(name.replace(f".{active}.weight", ".default.weight"), p) for name, p in kept]


def _keep_learnt(model: Any, file: Path) -> None:
    from safetensors.torch import save_file

    file.parent.mkdir(exist_ok=True)
    save_file({name: p.detach().float().cpu().contiguous() for name, p in _learnt(model)}, file)


def credited(device: DeviceFacts, spec: RunSpec) -> DeviceFacts:
    """Return the device's facts with the memory that the model takes already, and a run would share."""
    lent = 0 if spec.adapter.type == "full" else handed_over.lent_bytes(spec.model)
    return dataclasses.replace(device, free=min(device.total, device.free + lent)) if lent else device
