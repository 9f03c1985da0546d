"""Where a model's files are, and how its tokenizer and weights come into memory.

Weights come from safetensors unless the spec trusts the model's own code; nothing here runs a pickle.
"""

import importlib
import json
import sys
import threading
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbtune import hub_cache
from nbtune.device.streams import fork_rng
from nbtune.errors import HubError, SpecError
from nbtune.models import handed_over, token_rows
from nbtune.models.config_numbers import refuse_odd_config
from nbtune.models.elsewhere import refuse_elsewhere
from nbtune.models.embedded import NAME as EMBEDDED
from nbtune.models.four_bit import four_bit
from nbtune.models.gguf_file.decoded import folder_of, gguf_of
from nbtune.models.names import meant, refuse_lost_path, refuse_odd_name, refuse_without_config
from nbtune.models.refusals import first_line, refusing
from nbtune.models.tokenizer_bounds import refuse_odd_tokenizer, refuse_slow_tokenizer
from nbtune.models.transformers_state import MAKING, hidden_bars
from nbtune.models.weight_checks import check_files, check_loaded, refuse_odd_files
from nbtune.spec.placement import PLAIN, Placement
from nbtune.untrusted import folder_named, panics_as_errors

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_IMPORTING = threading.Lock()
_SMALL = ["*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken", "README.md"]  # which names the licence


def resolve(model: str, *, weights: bool = True, trust_remote_code: bool = False) -> Path:
    """Return the folder that holds a model's files; a Hub model is downloaded into huggingface_hub's own cache, unless
    it is whole there or in a shared one.

    >>> nbtune.models.resolve("nbtune/tiny").is_dir()
    True

    Args:
        model: ``nbtune/tiny``, a folder, a GGUF file, or a Hub id.
        weights: also the weight files, not only config and tokenizer.
        trust_remote_code: also the model's Python files.

    Raises:
        SpecError: there is no such folder, and it is no Hub id.
        HubError: the Hub does not know it, does not let us in, or cannot be reached.
    """
    if model == EMBEDDED:
        from nbtune.models import embedded

        return Path(embedded.path())
    if (folder := folder_named(model)) is not None:
        refuse_without_config(folder, model)
        _refuse_odd(folder, model)
        return token_rows.filled(folder, resolve) if weights else folder
    refuse_odd_name(model)
    if (file := gguf_of(model)) is not None:
        return folder_of(file, weights=weights)
    refuse_lost_path(model)
    folder = _shared(model) or _download(model, weights, trust_remote_code)
    refuse_elsewhere(folder)
    refuse_odd_config(folder, model)
    return folder


def _refuse_odd(folder: Path, model: str) -> None:
    """Refuse a folder whose files, or whose config's numbers, are not what they should be."""
    refuse_odd_files(folder, texts=_SMALL)
    refuse_elsewhere(folder)
    refuse_odd_config(folder, model)


def _shared(model: str) -> Path | None:
    """Return its folder in a shared cache, where it is whole there and not in the user's own."""
    own = hub_cache.snapshot(hub_cache.user_cache(), "model", model)
    if own is not None and _is_whole(own):
        return None
    return next(filter(_is_whole, hub_cache.shared_snapshot("model", model)), None)


def _is_whole(folder: Path) -> bool:
    """Return whether config and all weights are there."""
    if not (folder / "config.json").is_file():
        return False
    if (folder / "model.safetensors").is_file():
        return True
    try:
        index = json.loads((folder / "model.safetensors.index.json").read_text(encoding="utf-8"))
        return all((folder / shard).is_file() for shard in set(index["weight_map"].values()))
    except (OSError, ValueError, KeyError):
        return False


def _download(model: str, weights: bool, trust_remote_code: bool) -> Path:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
    )

    patterns = [*_SMALL, *(["*.safetensors"] if weights else []), *(["*.py"] if trust_remote_code else [])]
    silence = hub_cache.silence("model", model)
    try:
        folder = Path(snapshot_download(model, allow_patterns=patterns, local_files_only=silence is not None))
    except HFValidationError as e:
        raise SpecError(f"{model!r} is no model id", fix="Write it as org/name, or name a folder.") from e
    except GatedRepoError as e:
        raise HubError(
            f"{model} is gated: its owner wants you to ask first",
            fix=f"Open huggingface.co/{model}, accept the terms, then log in with `hf auth login`.",
        ) from e
    except RepositoryNotFoundError as e:
        raise HubError(
            f"the Hub knows no model {model}",
            fix=f"{meant(model)}Check the spelling; for a private one, log in with `hf auth login`.",
        ) from e
    except Exception as e:  # no connection, or whatever the transport raises in the middle of a file
        cause = silence or e
        if distrust := hub_cache.distrusted(cause):
            raise HubError(distrust[0], place=model, fix=distrust[1]) from e
        why = f"could not be reached ({type(cause).__name__})"
        if constants.HF_HUB_OFFLINE:
            why = "must not be asked (HF_HUB_OFFLINE)"
        raise HubError(
            f"{model} is not on this machine, and the Hub {why}",
            fix=f"{meant(model)}Check the network, name a folder, or use the embedded model nbtune/tiny.",
        ) from e
    if not (folder / "config.json").is_file():
        raise SpecError(
            f"{model} holds no config.json",
            fix="Name a model in transformers' format; of one in GGUF download a file, and name that.",
        )
    if weights and not any(folder.glob("*.safetensors")):
        raise SpecError(f"{model} has no safetensors weights", fix="Ask its owner for them: nbtune opens no pickles.")
    return folder


def missing_bytes(model: str, weights_bytes: int) -> int:
    """Return the bytes that must still be downloaded: 0 for the embedded model, a folder, a GGUF file, or a model whose
    weights are cached.

    >>> nbtune.models.missing_bytes("nbtune/tiny", 5_771_776)
    0

    Args:
        model: ``nbtune/tiny``, a folder, a GGUF file, or a Hub id.
        weights_bytes: size of all its weights; counted whole as long as one shard is missing.
    """
    model = token_rows.base_of(model) or model
    if model == EMBEDDED or Path(model).expanduser().exists():
        return 0
    own = hub_cache.snapshot(hub_cache.user_cache(), "model", model)
    folders = [*([own] if own is not None else []), *hub_cache.shared_snapshot("model", model)]
    return 0 if any(map(_is_whole, folders)) else weights_bytes


def _transformers() -> Any:
    """Return transformers, imported by one thread at a time.

    It puts another module in its place while it is imported: a thread that waited for that has the old one in its
    hands, and "cannot import name" (an inspector that is opened while a run's thread begins, say).
    """
    with _IMPORTING:
        importlib.import_module("transformers")
        return sys.modules["transformers"]


def load_tokenizer(model: str, *, trust_remote_code: bool = False) -> "PreTrainedTokenizerBase":
    """Return the model's tokenizer, with its chat template.

    >>> nbtune.models.load_tokenizer("nbtune/tiny")("Ahoy!").input_ids
    [1823, 4]

    Args:
        model: ``nbtune/tiny``, a folder, a GGUF file, or a Hub id.
        trust_remote_code: let the model's own Python run.

    Raises:
        SpecError, HubError: see `resolve`; SpecError also when the folder holds no tokenizer, or one that costs more
            than any model's.
    """
    tokenizers = _transformers().AutoTokenizer
    folder = tokenizer_folder(model, trust_remote_code=trust_remote_code)
    refuse_odd_tokenizer(Path(folder), model)
    try:
        with panics_as_errors():
            loaded = tokenizers.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
        if loaded.model_max_length < 1:
            raise ValueError(f"model_max_length is {loaded.model_max_length}")
    except Exception as e:  # whatever a damaged file makes transformers and tokenizers raise
        raise SpecError(_no_tokenizer(model, Path(folder), e), fix="Name a model that has one.") from e
    refuse_slow_tokenizer(loaded, model)
    return loaded


def tokenizer_folder(model: str, *, trust_remote_code: bool = False) -> Path:
    """Return the folder that holds a tokenizer's files: a model's, or one of nothing else.

    Raises:
        SpecError, HubError: see `resolve`.
    """
    folder = folder_named(model)
    if folder is None:
        return resolve(model, weights=False, trust_remote_code=trust_remote_code)
    _refuse_odd(folder, model)
    if any((folder / name).is_file() for name in ("tokenizer_config.json", *_TOKENIZER_FILES)):
        return folder
    return resolve(model, weights=False, trust_remote_code=trust_remote_code)


_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")


def _no_tokenizer(model: str, place: Path, error: Exception) -> str:
    """Say what is wrong with a tokenizer: transformers' own sentence is about packages where files are missing."""
    files = [name for name in _TOKENIZER_FILES if (place / name).is_file()]
    if not files:
        return f"{model} has no tokenizer: none of {', '.join(_TOKENIZER_FILES)} is in it"
    why = first_line(error)
    reason = "" if "backend tokenizer" in why else f" ({why})"
    return f"{model} has a tokenizer that cannot be read, in {', '.join(files)}{reason}"


def load_model(
    model: str,
    *,
    dtype: "torch.dtype",
    device: "torch.device | str",
    weights: Placement = PLAIN,
    trust_remote_code: bool = False,
    attention: str | None = None,
    own_weights: bool = False,
    work: "torch.device | str | None" = None,
) -> "PreTrainedModel":
    """Return the causal language model, its weights read straight onto the device.

    >>> fp32 = nbtune.device.torch_dtype("fp32")
    >>> nbtune.models.load_model("nbtune/tiny", dtype=fp32, device="cpu").config.hidden_size
    256

    Args:
        model: ``nbtune/tiny``, a folder, a GGUF file, or a Hub id.
        dtype: of the weights in memory.
        device: where they go.
        weights: the format of what is frozen; ``nf4`` is bitsandbytes', and our own for experts. What other formats
            want is done as the model is accelerated.
        trust_remote_code: let the model's own Python run.
        attention: transformers' name of the attention implementation, or ``nbtune`` for ours; unset: its own choice,
            sdpa where there is one.
        own_weights: of a model that was handed over a copy of the weights, since all of them are trained.
        work: where weights that stay elsewhere are rounded; unset: where they stay.

    Raises:
        SpecError: no causal language model, no safetensors, or weights that are missing, left over, or not whole.
        PlanError: ``nf4`` where bitsandbytes is not installed.
        HubError: see `resolve`.
    """
    library = _transformers()
    folder = resolve(model, trust_remote_code=trust_remote_code)
    from nbtune.models.piecewise_loading import Places, load_by_pieces, round_stored_stacks

    if attention == "nbtune":
        from nbtune.models.accelerate.hf_attention import register

        register()
    if handed_over.is_absent(folder):
        return _prepared(handed_over.twin(folder, shared=not own_weights), attention)
    check_files(folder, model)
    options: dict[str, Any] = {"dtype": dtype, "use_safetensors": True, "local_files_only": True}
    options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}  # other shapes are refused below, by name
    with refusing(model), MAKING:
        config = library.AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
        _refuse_unless_text(config, model)
        packing, stacks = None, weights.format if weights.four_bit and weights.experts else ""
        if weights.four_bit:
            shape = from_config(deepcopy(config), dtype=dtype, device="meta", trust_remote_code=trust_remote_code)
            options["quantization_config"] = packing = four_bit(shape, dtype)
        if (weights.four_bit or weights.streams) and not trust_remote_code:
            places = Places(_index(work or device), _index(device))
            pieces = load_by_pieces(folder, config, dtype, places, attention, packing, stacks)
            if pieces is not None:
                return _prepared(pieces, attention)
        with hidden_bars(), fork_rng(_index(device)):  # some families draw what is in their files
            loaded, info = library.AutoModelForCausalLM.from_pretrained(
                folder,
                device_map={"": _index(device)},
                attn_implementation=attention,
                trust_remote_code=trust_remote_code,
                **options,
            )
    check_loaded(loaded, info, folder, model)
    round_stored_stacks(loaded, folder, stacks)
    return _prepared(loaded, attention)


def _prepared(loaded: "PreTrainedModel", attention: str | None) -> "PreTrainedModel":
    loaded.config.use_cache = False
    _keep_layout(loaded)
    if attention is None:
        keep_caps(loaded)
    return loaded


def outline(
    model: str,
    *,
    layers: int | None = None,
    dtype: "torch.dtype",
    device: "torch.device | str",
    trust_remote_code: bool = False,
) -> "PreTrainedModel":
    """Return a model of the same kind and widths with so many layers (or all) and random weights; no weight file is
    read.

    Raises:
        SpecError, HubError: see `resolve`.
    """
    folder = resolve(model, weights=False, trust_remote_code=trust_remote_code)
    configs = _transformers().AutoConfig
    with refusing(model):
        config = configs.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
        _refuse_unless_text(config, model)
        part = config.get_text_config()
        if layers is not None:
            part.num_hidden_layers = layers
            if vars(part).get("layer_types"):  # some have it computed of the number
                part.layer_types = part.layer_types[:layers]
        config.use_cache = False
        return from_config(config, dtype=dtype, device=device, trust_remote_code=trust_remote_code)


def from_config(
    config: Any, *, dtype: "torch.dtype", device: "torch.device | str", trust_remote_code: bool = False
) -> "PreTrainedModel":
    """Return the causal language model of a config, with random weights."""
    import torch

    models = _transformers().AutoModelForCausalLM
    with MAKING, torch.device(_index(device)):
        model = models.from_config(config, dtype=dtype, trust_remote_code=trust_remote_code)
    keep_caps(model)
    return model  # type: ignore[no-any-return]


def _refuse_unless_text(config: Any, model: str) -> None:
    """Raise a SpecError where transformers has no class for the model that takes and gives nothing but text."""
    library = _transformers()
    own = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    if own or type(config) in library.MODEL_FOR_CAUSAL_LM_MAPPING:
        return
    sees = config.get_text_config() is not config
    raise SpecError(
        f"{model} is a {config.model_type}, which transformers cannot load as a causal language model"
        + (": it also sees or hears, and nbtune trains text" if sees else ""),
        place="model",
        fix="Name a model of text" + (" alone." if sees else "."),
    )


def _keep_layout(model: "PreTrainedModel") -> None:
    """Keep weights as they lie: at the first answer or evaluation bitsandbytes would repack those of 4 bits (on a CPU
    with AVX512-BF16, scales in bf16), and RWKV divide some, but no LoRA beside them, and none that is saved then."""
    if hasattr(model.config, "rescale_every"):
        model.config.rescale_every = 0
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def keep_caps(model: "PreTrainedModel") -> None:
    """Keep caps on scores: some releases of transformers let sdpa, which knows no caps of scores, compute attention
    that has one."""
    config = model.config.get_text_config()
    if getattr(config, "attn_logit_softcapping", None) and config._attn_implementation == "sdpa":
        model.set_attn_implementation("eager")


def _index(device: "torch.device | str") -> Any:
    import torch

    device = torch.device(device)
    return device if device.index is not None or device.type != "cuda" else torch.device("cuda", 0)
