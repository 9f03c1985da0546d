"""A run that starts from an adapter that peft wrote, whoever trained it: its folder says what the run trains."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbtune.errors import SpecError
from nbtune.methods import METHODS
from nbtune.models.heads import SCORE, read_head, write_head
from nbtune.spec import RunSpec
from nbtune.spec.placement import BY_FORMAT
from nbtune.store import checkpoints
from nbtune.untrusted import BadFile, load, shortened

if TYPE_CHECKING:
    import torch

CONFIG, FILE = "adapter_config.json", "adapter_model.safetensors"
_OTHERS = (  # what is learnt beside A and B, or added in another way
    "lora_bias", "alora_invocation_tokens", "layer_replication", "use_qalora", "use_bdlora",
    "arrow_config", "kasa_config", "monteclora_config", "megatron_config", "exclude_modules", "layers_pattern",
)  # fmt: skip
_OF_THE_BASE = ("pissa", "olora", "corda", "lora_ga")
_BASE_FIRST = "merge it with peft and name the merged model as `model`; a new adapter is trained on that"


def folder_of(spec: RunSpec) -> Path | None:
    """Return the folder of peft's that a spec starts from; None: it starts from a run, or from the base."""
    folder = Path(spec.start_from).expanduser() if spec.start_from is not None else None
    return folder if folder is not None and (folder / CONFIG).is_file() else None


def with_its_adapter(spec: RunSpec) -> RunSpec:
    """Return a spec with the adapter of the folder that it starts from, where it starts from one.

    Raises:
        SpecError: it is no LoRA, has what ours has not, or the spec asks for another one.
    """
    folder = folder_of(spec)
    if folder is None:
        return spec
    try:
        config = load(folder / CONFIG)
        mine = _fields(config, folder)
        adapter = type(spec.adapter)(**{**spec.adapter.model_dump(exclude_unset=True), **mine})
    except (BadFile, ValueError, TypeError) as error:
        raise _refused(folder, f"its {CONFIG} cannot be used: {' '.join(str(error).split())[:200]}") from error
    asked = spec.adapter.model_dump(exclude_unset=True)
    wish = asked.pop("type", None)
    if {wish, mine["type"]} == {*BY_FORMAT}:
        adapter = adapter.model_copy(update={"type": wish})
    elif wish not in (None, mine["type"]):
        asked["type"] = wish
    for key, value in asked.items():
        if key not in ("dropout", "init_lora_weights") and getattr(spec.adapter, key) != getattr(adapter, key):
            raise SpecError(
                f"`adapter: {{{key}: {value}}}` is asked for, and the adapter in `{folder.name}` has "
                f"{getattr(adapter, key)}",
                place="adapter",
                fix=f"drop `{key}`: what is there goes on being trained; or drop `start_from`",
            )
    return spec.model_copy(update={"adapter": adapter})


def _fields(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return the fields of our adapter that are peft's config."""
    kind, first = config.get("peft_type"), config.get("init_lora_weights")
    if kind != "LORA":
        raise _refused(folder, f"it is an adapter of type {kind}, and one goes on from a LoRA")
    if odd := next((key for key in _OTHERS if config.get(key)), None):
        raise _refused(folder, f"it has `{odd}`")
    if config.get("bias", "none") != "none":
        raise _refused(folder, "it has biases of its own")
    if isinstance(first, str) and first.lower().startswith(_OF_THE_BASE):
        fix = "save it with peft's path_initial_model_for_weight_conversion, which makes it a plain LoRA"
        raise SpecError(f"first values `{first}` were taken out of its base", place=f"{folder.name}/{CONFIG}", fix=fix)
    tokens = config.get("trainable_token_indices") or ()
    if isinstance(tokens, dict):
        raise _refused(folder, f"it trains tokens of {', '.join(map(str, tokens))}")
    layer = _layer_of_scores(folder)
    targets, layers = config.get("target_modules"), config.get("layers_to_transform")
    if not isinstance(targets, str):
        targets = sorted({*(targets or ()), *(config.get("target_parameters") or ())})
    return {
        "type": "dora" if config.get("use_dora") else "lora",
        "r": config["r"],
        "alpha": config["lora_alpha"],
        "use_rslora": bool(config.get("use_rslora")),
        "target_modules": targets,
        "layers_to_transform": [layers] if isinstance(layers, int) else layers or (),
        "rank_pattern": config.get("rank_pattern") or {},
        "alpha_pattern": config.get("alpha_pattern") or {},
        "modules_to_save": [name for name in config.get("modules_to_save") or () if name != layer],
        "trainable_token_indices": tokens,
    }


def weights_of(folder: Path) -> Path:
    """Return the file with what an adapter has learnt.

    Raises:
        SpecError: there is none, or none that is not a pickle.
    """
    if not (folder / FILE).is_file():
        raise SpecError(f"it has no {FILE}", place=folder.name, fix="save it as safetensors: nbtune opens no pickles")
    return folder / FILE


def base_of(folder: Path) -> str | None:
    """Return the name of the model that an adapter says it was trained on."""
    try:
        name = load(folder / CONFIG).get("base_model_name_or_path")
    except (BadFile, ValueError):
        return None
    return shortened(name) if isinstance(name, str) and name else None


def check(folder: Path, spec: RunSpec) -> None:
    """Refuse an adapter that a run could not go on from, by the header of its file.

    Args:
        spec: with `with_its_adapter`, and a model that is there.
    Raises:
        SpecError: it holds something else than a LoRA, or is of another model.
        TrainError: its file is not whole.
    """
    from nbtune.models.outline_facts import trained_shapes

    saved = tuple(load(folder / CONFIG).get("modules_to_save") or ())
    found = {_name(name, saved, folder): shape for name, shape in checkpoints.shapes_in(weights_of(folder)).items()}
    scores = [name for name in found if f".{SCORE}." in name]
    if scores and not METHODS[spec.method].head:
        raise _refused(folder, f"it ends with a head of scores, and method `{spec.method}` has none")
    wanted = trained_shapes(spec.model, spec.adapter, trust_remote_code=spec.trust_remote_code)
    found = {name: shape for name, shape in found.items() if name not in scores}
    if wanted is not None and found != wanted:
        odd = min(name for name in {*found, *wanted} if found.get(name) != wanted.get(name))
        told = [str([*shapes[odd]]) if odd in shapes else "absent" for shapes in (found, wanted)]
        base = base_of(folder)
        fix = f"write `model: {base}`, which it was trained on" if base else "name its base as `model`"
        raise SpecError(
            f"the adapter in `{folder.name}` is of another model: `{odd}` is {told[0]} there, {told[1]} here",
            place="start_from",
            fix=f"{fix}, or drop `start_from`",
        )


def take_along(folder: Path, made: Path) -> None:
    """Write into a new run's folder what the adapter has learnt, by the names that a run's weights have.

    Raises:
        TrainError: its file is not whole.
    """
    from safetensors.torch import save_file

    weights = checkpoints.weights_in(weights_of(folder))
    saved = tuple(load(folder / CONFIG).get("modules_to_save") or ())
    renamed: dict[str, torch.Tensor] = {_name(name, saved, folder): value.float() for name, value in weights.items()}
    (made / "start").mkdir(exist_ok=True)
    save_file(renamed, made / "start" / checkpoints.WEIGHTS)
    if (head := read_head(folder)) is not None:
        write_head(head, made / "start")


def _name(name: str, saved: tuple[str, ...], folder: Path) -> str:
    for end in (".lora_A.weight", ".lora_B.weight"):
        if name.endswith(end):
            return f"{name.removesuffix('.weight')}.default.weight"
    if name.endswith(".trainable_tokens_delta"):
        return f"{name}.default"
    if name.endswith(".lora_magnitude_vector"):
        return f"{name}.default.weight"
    module, _, kind = name.rpartition(".")
    layer = _layer_of_scores(folder)
    if layer in saved and module.endswith(f".{layer}"):
        return f"{module.removesuffix(layer)}{SCORE}.{kind}"
    if any(module == end or module.endswith(f".{end}") for end in saved):
        return f"{module}.modules_to_save.default.{kind}"
    raise _refused(folder, f"it holds `{name}`")


def _layer_of_scores(folder: Path) -> str:
    """Return what its file calls the layer of scores."""
    head = read_head(folder)
    return SCORE if head is None else head.layer or SCORE


def _refused(folder: Path, why: str) -> SpecError:
    cause = f"the adapter in `{folder.name}` cannot be gone on from: {why}"
    return SpecError(cause, place="start_from", fix=_BASE_FIRST)
