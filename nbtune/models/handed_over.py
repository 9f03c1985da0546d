"""A model that is handed over as an object: what of it a run's folder keeps, and the copy that is trained.

What trains is a second tree of modules on the same frozen weights (of full training: on a copy of them), so the model
that was handed over stays as it is, while the run works and whatever becomes of it. The folder has its config, its
tokenizer and what its weights are called; the weights themselves stay in memory, and are found by the folder's path.
"""

import copy
import hashlib
import json
import weakref
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbtune.errors import SpecError
from nbtune.models import embedded
from nbtune.models.transformers_state import hidden_bars
from nbtune.untrusted import BadFile, load

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from torch import nn
    from transformers import PreTrainedModel

FILE = "handed_over.json"  # what marks such a folder
_LENT: "weakref.WeakValueDictionary[str, nn.Module]" = weakref.WeakValueDictionary()
_DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks_with_kwargs",
)


def is_model(value: Any) -> bool:
    """Return whether a value is a model of transformers, or one of peft around it (nothing is imported to find out)."""
    return _is_a(value, "transformers.PreTrainedModel", "peft.PeftModel")


def is_peft(value: Any) -> bool:
    """Return whether a value is a model of peft's."""
    return _is_a(value, "peft.PeftModel")


def is_tokenizer(value: Any) -> bool:
    """Return whether a value is a tokenizer of transformers."""
    return _is_a(value, "transformers.PreTrainedTokenizerBase")


def _is_a(value: Any, *names: str) -> bool:
    return any(f"{kind.__module__.split('.')[0]}.{kind.__name__}" in names for kind in type(value).__mro__)


def describe(model: "nn.Module", folder: Path) -> None:
    """Write what a plan wants to know of a model into a folder: its config, and what its weights are called.

    Args:
        model: of transformers; of peft's the model within.
        folder: made if missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    base: Any = within(model)
    config = copy.deepcopy(base.config)
    config.architectures = [type(base).__name__]
    config.save_pretrained(folder)
    if getattr(base, "generation_config", None) is not None:
        base.generation_config.to_json_file(folder / "generation_config.json")
    weights = dict(_weights(model))
    headers = {
        name: {"dtype": _DTYPES[str(p.dtype).removeprefix("torch.")], "shape": list(p.shape)}
        for name, p in weights.items()
    }
    body = {"headers": headers, "fingerprint": _fingerprint(weights), "name": _public_name(base)}
    (folder / FILE).write_text(json.dumps(body), encoding="utf-8")


def within(model: "nn.Module") -> "nn.Module":
    """Return the model of transformers within one of peft's; any other as it is."""
    return model.get_base_model() if is_peft(model) else model  # type: ignore[operator,no-any-return]


def _weights(model: "nn.Module") -> "Iterator[tuple[str, nn.Parameter]]":
    """Yield the base's weights, by the names that they have without adapters, each once."""
    for name, parameter in within(model).named_parameters():
        if ".lora_" not in name:
            yield name.replace(".base_layer.", "."), parameter


def _fingerprint(weights: "dict[str, nn.Parameter]") -> str:
    """Return a hash of the weights' names and shapes, and of 64 numbers of each."""
    import torch

    found = hashlib.sha256()
    for name, parameter in sorted(weights.items()):
        flat = parameter.detach().reshape(-1)
        some = flat[:: max(1, len(flat) // 64)][:64].to("cpu", torch.float32)
        found.update(f"{name} {list(parameter.shape)} {parameter.dtype}".encode() + some.numpy().tobytes())
    return found.hexdigest()


def _said(folder: Path) -> dict[str, Any] | None:
    """Return what a folder says of a model that was handed over; None: it is of none."""
    try:
        return load(folder / FILE)
    except (OSError, BadFile):
        return None


def headers(folder: Path) -> dict[str, dict[str, Any]]:
    """Return what the weights of a model that was handed over are called, as headers of safetensors files tell it."""
    body = _said(folder) or {}
    found = body.get("headers")
    return found if isinstance(found, dict) else {}


def name_of(folder: Path) -> str:
    """Return what a model that was handed over is called: the Hub id or the folder that it came from; else nothing."""
    name = (_said(folder) or {}).get("name")
    return name if isinstance(name, str) else ""


def origin_of(model: "nn.Module") -> str:
    """Return the Hub id or the folder that a model says it came from; nothing where it says none."""
    name = str(getattr(within(model), "name_or_path", "") or "")
    return embedded.NAME if name and Path(name) == Path(embedded.path()) else name


def _public_name(base: Any) -> str:
    name = origin_of(base)
    return Path(name).name if Path(name).exists() else name


def same(one: Path, other: Path) -> bool:
    """Return whether two folders describe the same weights."""
    return (_said(one) or {}).get("fingerprint") == (_said(other) or {}).get("fingerprint")


def lend(model: "nn.Module", folder: Path) -> None:
    """Let who loads the model of a folder get this one, as long as somebody holds it."""
    _LENT[str(folder)] = model


def lent(folder: Path) -> "nn.Module | None":
    """Return the model that was handed over for a folder, if it is still in memory."""
    return _LENT.get(str(folder))


def lent_bytes(place: str) -> int:
    """Return the bytes of weights that a run from `place` shares with a model that is in memory already."""
    model = _LENT.get(place)
    return 0 if model is None else sum(p.numel() * p.element_size() for _, p in _weights(model))


def is_absent(folder: Path) -> bool:
    """Return whether a folder is of a model that was handed over, and has no weights of its own."""
    return (folder / FILE).is_file() and not any(folder.glob("*.safetensors"))


def gone(folder: Path) -> SpecError:
    """Return the error that the weights are in no file, and what to do."""
    return SpecError(
        "the model was handed over as an object, which this session no longer has, and its weights are in no file",
        place=f"{folder.parent.name}/{folder.name}",
        fix=f'load that model again, and `model.save_pretrained("{folder.parent.name}/{folder.name}")` in the folder '
        "of runs: from there on the run has what it needs",
    )


def twin(folder: Path, *, shared: bool) -> "PreTrainedModel":
    """Return a model to train in place of the one that was handed over: other modules, without its adapters and hooks.

    Args:
        folder: what describes it.
        shared: on its very weights; else on a copy of them.

    Raises:
        SpecError: it is no longer in memory, its weights have changed, or it cannot be copied.
    """
    model = lent(folder)
    if model is None:
        raise gone(folder)
    if _fingerprint(dict(_weights(model))) != (_said(folder) or {}).get("fingerprint"):
        raise SpecError(
            "the weights of the model that was handed over have changed since", fix="start a new run with it"
        )
    made = _copied(model, shared)
    if is_peft(made):
        made = made.unload()
        vars(made).pop("peft_config", None)
        vars(made).pop("_hf_peft_config_loaded", None)
    for module in made.modules():
        if getattr(module, "gradient_checkpointing", False):  # what is computed again is for the plan to say
            module.gradient_checkpointing = False
    for parameter in made.parameters():
        parameter.requires_grad_(False)
    return made  # type: ignore[no-any-return]


def _copied(model: "nn.Module", shared: bool) -> Any:
    from torch import nn

    known: dict[int, Any] = {}
    for parameter in model.parameters():
        numbers = parameter.detach()
        known[id(parameter)] = nn.Parameter(numbers if shared else numbers.clone(), requires_grad=False)
    for module in model.modules():
        for name in _HOOKS:
            if (hooks := vars(module).get(name)) is not None:
                known[id(hooks)] = OrderedDict()
    try:
        return copy.deepcopy(model, known)
    except Exception as error:  # what somebody hung onto a module may refuse to be copied in any way
        raise SpecError(
            f"the model cannot be trained where it is: {type(error).__name__}: {str(error)[:160]}",
            place="model",
            fix='`model.save_pretrained("my-model")`, and write `model: my-model`',
        ) from error


def write_weights(folder: Path) -> None:
    """Write the weights of the model that was handed over into the folder that describes it.

    Raises:
        SpecError: as `twin`.
    """
    with hidden_bars():
        twin(folder, shared=True).save_pretrained(folder)


def dtype_of(model: "nn.Module") -> "torch.dtype":
    """Return the type of most numbers in the model's weights."""
    sizes: dict[torch.dtype, int] = {}
    for _, parameter in _weights(model):
        sizes[parameter.dtype] = sizes.get(parameter.dtype, 0) + parameter.numel()
    return max(sizes, key=lambda dtype: sizes[dtype])


def places_of(model: "nn.Module") -> "set[torch.device]":
    """Return the devices that the model's weights are on."""
    return {parameter.device for _, parameter in _weights(model)}
