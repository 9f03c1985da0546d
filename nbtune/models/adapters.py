"""What is trained: an adapter beside frozen weights (by peft, so that its files open everywhere), or every weight."""

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbtune.errors import SpecError
from nbtune.models.adapter_file import chosen
from nbtune.models.adapter_patterns import is_one_of, unfrozen
from nbtune.models.adapter_targets import Targets, leads_out, linear_names, targets_of, turned
from nbtune.models.first_values import begin, beside_the_base, by_peft, is_turned, recall, remember
from nbtune.models.first_values import check as check_first_values
from nbtune.models.heads import SCORE, Head, head_of, write_head
from nbtune.models.transformers_state import hidden_bars

if TYPE_CHECKING:
    import torch
    from torch import nn

    from nbtune.spec import AdapterSpec


def add_adapter(
    model: "nn.Module", adapter: "AdapterSpec", *, seed: int, first_values: Path | None = None
) -> "nn.Module":
    """Put the adapter onto the model and freeze what is not trained.

    >>> model = nbtune.models.load_model("nbtune/tiny", dtype=nbtune.device.torch_dtype("fp32"), device="cpu")
    >>> model = nbtune.models.add_adapter(model, nbtune.spec.AdapterSpec(r=4), seed=0)
    >>> sum(p.numel() for p in model.parameters() if p.requires_grad)
    65536

    The adapter's own numbers are float32 whatever the base: small updates to 16-bit numbers get lost.

    Args:
        model: a transformers causal language model.
        adapter: the spec's adapter; ``full`` trains every weight as it is.
        seed: of the adapter's first values.
        first_values: of a run that has begun, where they are taken out of the base; see
            `nbtune.models.first_values`.

    Returns:
        A peft model, or for ``full`` the very model.

    Raises:
        SpecError: no layer has one of the target names.
    """
    import torch

    if adapter.type == "full":
        wanted = unfrozen(model, adapter)
        for name, p in model.named_parameters():
            p.requires_grad_(name in wanted)
        return model
    from peft import get_peft_model

    for p in model.parameters():
        p.requires_grad_(False)
    targets, lines = targets_of(model, adapter), linear_names(model)
    check_first_values(model, adapter, targets)
    known = by_peft(model, adapter, targets)
    config = _config_of(model, adapter, targets, known)
    with torch.random.fork_rng(devices=_cuda_devices(model)):
        torch.manual_seed(seed)
        try:
            with warnings.catch_warnings():  # of patterns for experts' stacks, which it takes: `check_patterns` looks
                warnings.filterwarnings("ignore", message=r"The following (rank|alpha)_pattern keys")
                made = get_peft_model(model, config)  # type: ignore[arg-type]
        except ValueError as e:
            raise SpecError(
                f"the adapter cannot go onto this model: {str(e).splitlines()[0][:160]}",
                place="adapter.target_modules",
                fix=f"Use all-linear, or some of: {', '.join(lines)}.",
            ) from e
        if first_values is None and not known:
            begin(made, adapter)
    if adapter.type == "ia3":
        _keep_types(made)
    if adapter.keeps_first_values:
        keep = {"taken_out": adapter.changes_base}
        recall(made, first_values, **keep) if first_values is not None else remember(made, **keep)
    return made


def _config_of(model: Any, adapter: "AdapterSpec", targets: "Targets", first: str) -> Any:
    """Return peft's config of an adapter on these layers, with the first values that it knows."""
    if adapter.type == "ia3":
        return _factors(model, adapter, targets)
    return _config(
        adapter,
        r=adapter.r,
        lora_alpha=adapter.lora_alpha,
        lora_dropout=adapter.dropout,
        target_modules=targets.modules,
        target_parameters=targets.parameters or None,
        fan_in_fan_out=turned(model, targets),
        use_rslora=adapter.use_rslora,
        use_dora=adapter.type == "dora",
        rank_pattern=dict(adapter.rank_pattern),
        alpha_pattern=dict(adapter.alpha_pattern),
        init_lora_weights=first or True,
        modules_to_save=list(adapter.modules_to_save) or None,
        trainable_token_indices=_tokens(model, adapter),
        bias=adapter.bias,
        task_type="CAUSAL_LM",
    )


def _factors(model: Any, adapter: "AdapterSpec", targets: "Targets") -> Any:
    """Return peft's config of IA3: factors of what layers give, and of what leads out of an MLP is given."""
    from peft import IA3Config

    return IA3Config(
        target_modules=targets.modules,
        feedforward_modules=[end for end in targets.modules if leads_out(model, end)],
        fan_in_fan_out=turned(model, targets),
        modules_to_save=list(adapter.modules_to_save) or None,
        task_type="CAUSAL_LM",
    )


def _keep_types(model: Any) -> None:
    """Let factors of 4-bit layers give what they are given, 16 bits for 16: peft's give 32."""
    from peft.tuners.ia3 import IA3Layer

    for module in model.modules():
        if isinstance(module, IA3Layer) and not module.get_base_layer().weight.is_floating_point():
            module.register_forward_hook(_as_given)  # type: ignore[attr-defined]


def _as_given(_: Any, given: tuple[Any, ...], result: Any) -> Any:
    return result.to(given[0].dtype)


def _config(adapter: "AdapterSpec", **fields: Any) -> Any:
    """Return peft's config. It warns of first values with rsLoRA and patterns, which its own conversion of what is
    saved does not manage; ours does (`nbtune.models.first_values.beside_the_base`)."""
    from peft import LoraConfig

    with warnings.catch_warnings():
        if adapter.changes_base:
            warnings.filterwarnings("ignore", message="Using Rank-Stabilized LoRA")
        return LoraConfig(**fields)


def _tokens(model: Any, adapter: "AdapterSpec") -> Any:
    """Return which rows are trained, as peft takes them: of new tokens also those of a head that is no embedding, where
    these are not trained whole."""
    numbers = list(adapter.trainable_token_indices)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if not numbers or not adapter.grows or head is None or head.weight is embedding.weight:
        return numbers or None
    names = {id(module): name for name, module in model.named_modules()}
    apart = [names[id(m)] for m in (embedding, head) if not is_one_of(names[id(m)], adapter.modules_to_save)]
    return {name.rsplit(".", 1)[-1]: numbers for name in apart} or None


def trainable_parameters(model: "nn.Module") -> "list[tuple[str, torch.nn.Parameter]]":
    """Return the (name, parameter) pairs that an optimizer should get, in a stable order."""
    return [(n, p) for n, p in model.named_parameters() if p.requires_grad]


def save_adapter(
    model: "nn.Module",
    folder: str | Path,
    *,
    base: str = "",
    adapter: str = "default",
    trained: "Mapping[str, torch.Tensor] | None" = None,
) -> Path:
    """Write ``adapter_model.safetensors`` and ``adapter_config.json``; for full training the whole model.

    >>> fp32, adapter = nbtune.device.torch_dtype("fp32"), nbtune.spec.AdapterSpec(r=4)
    >>> model = nbtune.models.build("nbtune/tiny", adapter=adapter, dtype=fp32, device="cpu").model
    >>> sorted(file.name for file in nbtune.models.save_adapter(model, "saved").iterdir())
    ['adapter_config.json', 'adapter_model.safetensors']

    Args:
        model: what `add_adapter` returned (or an accelerated one of it).
        folder: where; made if missing.
        base: what the config calls the base model: a Hub id or a plain name. A machine's path never gets into the
            file: a folder is written as its last part.
        adapter: which of the model's.
        trained: whole weights by name, in place of the model's own: these may be parted among processes.

    Returns:
        The folder.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    peft_config = getattr(model, "peft_config", None)
    scores = head_of(model)
    if peft_config is None:
        _save_whole(model, folder, scores, trained or {})
        return folder
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    # peft's own save_pretrained writes a README with this machine's paths, and asks the Hub about the base
    state = get_peft_model_state_dict(model, adapter_name=adapter, save_embedding_layers=False)
    tensors = {name: value.detach().contiguous().cpu() for name, value in state.items()}
    if scores is not None:
        named = scores[1].named_parameters()
        layer = scores[0].layer or SCORE
        tensors |= {f"base_model.model.{layer}.{n}": p.detach().contiguous().cpu() for n, p in named}
        write_head(scores[0], folder)
    tensors, config = beside_the_base(model, tensors, peft_config[adapter].to_dict())
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    if scores is not None:
        config |= {"task_type": scores[0].task, "modules_to_save": [*(config["modules_to_save"] or ()), layer]}
    config["base_model_name_or_path"] = _public_name(base or config.get("base_model_name_or_path") or "")
    config["inference_mode"] = True
    config["fan_in_fan_out"] = bool(config.get("fan_in_fan_out")) or _were_turned(model)
    text = json.dumps(chosen({k: _plain(v) for k, v in config.items()}), indent=2)
    (folder / "adapter_config.json").write_text(text + "\n")
    return folder


def _save_whole(
    model: "nn.Module", folder: Path, scores: "tuple[Head, nn.Module] | None", trained: "Mapping[str, torch.Tensor]"
) -> None:
    """Write every weight; with a head of scores what transformers loads by the name of such a model."""
    if scores is None:
        parted = any(hasattr(p, "placements") for p in model.parameters())
        state = {"state_dict": {**model.state_dict(), **trained}} if parted else {}
        with hidden_bars():
            model.save_pretrained(folder, safe_serialization=True, **state)  # type: ignore[operator]
        return
    own = model.get_output_embeddings()  # type: ignore[operator]
    mute = {id(p) for p in own.parameters()} if own is not None else set()
    mute -= {id(p) for p in model.get_input_embeddings().parameters()}  # type: ignore[operator]
    left_out = {name for name, p in model.named_parameters(remove_duplicate=False) if id(p) in mute}
    left_out |= {"lm_head.weight"}
    whole = {name: trained.get(name, value) for name, value in model.state_dict().items()}
    called = {f"{SCORE}.{n}": f"{scores[0].layer or SCORE}.{n}" for n, _ in scores[1].named_parameters()}
    state = {called.get(name, name): value for name, value in whole.items() if name not in left_out}
    with hidden_bars():
        model.save_pretrained(folder, state_dict=state, safe_serialization=True)  # type: ignore[operator]
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    written = scores[0].config(config, None)
    (folder / "config.json").write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
    write_head(scores[0], folder)


def _were_turned(model: "nn.Module") -> bool:
    """Return whether an adapter goes onto layers of 4 bits whose weights lie as (in, out) in the base: GPT-2's, which
    are turned as they are rounded."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module.get_base_layer() for module in model.modules() if isinstance(module, BaseTunerLayer)]
    return any(is_turned(layer) for layer in layers)


def _public_name(name: str) -> str:
    path = Path(name)
    return path.name if path.is_absolute() or path.is_dir() or name.startswith(("~", ".")) else name


def _plain(value: Any) -> Any:
    if isinstance(value, (set, tuple)):
        return sorted(value)
    return getattr(value, "value", value) if not isinstance(value, (dict, list, str, int, float, bool)) else value


def _cuda_devices(model: "nn.Module") -> list[int]:
    return sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
