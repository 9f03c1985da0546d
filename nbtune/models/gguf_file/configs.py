"""The config of transformers that a GGUF file's keys and tensors describe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nbtune.errors import SpecError
from nbtune.models.config_numbers import refuse_odd_numbers
from nbtune.models.gguf_file.architectures import ARCHITECTURES, Architecture
from nbtune.models.gguf_file.header import GgufHeader, refused
from nbtune.models.gguf_file.keys import Keys
from nbtune.models.gguf_file.rotary import TENSORS, rope_parameters
from nbtune.models.gguf_file.unread import refuse_groups, refuse_unread

_MOST_CONTEXT = 1 << 27  # tokens
_EPSILONS = ("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon")  # what classes call that of their LayerNorms
_OTHERS = {
    "clip": "it is what a model sees or hears with (a projector), not a language model",
    "": "it names no architecture",
}


def config_of(header: GgufHeader) -> tuple[Any, Architecture]:
    """Return transformers' config of a file, and how its tensors are read.

    Raises:
        SpecError: its architecture is not known here, or its keys do not describe a model.
    """
    architecture = architecture_of(header)
    keys = Keys(header)
    _check_blocks(keys)
    if not architecture.states and not keys.flag("attention.causal", True):
        raise refused(header.place, f"its {keys.arch}.attention.causal is no: each token sees those behind it, too")
    refuse_unread(keys)
    settings = {**_common(keys, architecture), **architecture.more(keys)}
    refuse_groups(keys, settings)
    refuse_odd_numbers(settings, str(header.place))
    from transformers import CONFIG_MAPPING

    kind = CONFIG_MAPPING[settings.pop("model_type", architecture.model_type)]
    computed = {name for name in settings if isinstance(getattr(kind, name, None), property)}
    try:
        return kind(**{name: value for name, value in settings.items() if name not in computed}), architecture
    except Exception as error:  # whatever a config's class has against a stranger's numbers
        raise no_model(header, kind.model_type, settings.get("rope_parameters", {}), error) from error


def no_model(header: GgufHeader, kind: str, rope: Mapping[str, Any], error: Exception) -> SpecError:
    """Return the error that a file's keys describe no model of a kind; many do not scale angles."""
    scaling = rope.get("rope_type", "default")
    if scaling == "default" or TENSORS & header.tensors.keys():
        return refused(header.place, f"its keys describe no model ({type(error).__name__})")
    said = f"{header.arch}.rope.scaling.type, rope.scaling.factor or rope.scale_linear"
    return refused(header.place, f"its {said} scales angles ({scaling}), which a {kind} does not do")


def architecture_of(header: GgufHeader) -> Architecture:
    """Return how a file is read.

    Raises:
        SpecError: it is an adapter, a projector or the like, or of an architecture that is not known here.
    """
    kind = header.text("general.type", "model")
    if kind == "adapter":
        raise refused(header.place, "it is an adapter, not a model", "Name the model that it belongs to.")
    if kind not in ("model", ""):
        raise refused(header.place, f"it is a {kind}, not a model", "Name the model's own file.")
    arch = header.arch
    if arch in _OTHERS:
        raise refused(header.place, _OTHERS[arch], "Name the language model's own file.")
    found = ARCHITECTURES.get(arch)
    if found is None:
        raise refused(
            header.place,
            f"its architecture is {arch[:40]!r}, which is none of the {len(ARCHITECTURES)} that nbtune reads",
            "Name the model's Hub id or its folder of safetensors instead.",
        )
    return found


def _check_blocks(keys: Keys) -> None:
    """See that the file has the blocks that it tells of: as many are built."""
    numbers = {name.split(".")[1] for name in keys.header.tensors if name.startswith("blk.")}
    beyond = keys.whole("block_count") - keys.layers  # they predict further tokens, and are left out
    numbers -= {str(keys.layers + i) for i in range(min(beyond, len(numbers)))}
    if numbers != {str(i) for i in range(min(keys.layers, len(numbers) + 1))} or not numbers:
        raise refused(keys.header.place, f"it tells of {keys.layers:,} blocks, and holds those of {len(numbers):,}")


def _common(keys: Keys, architecture: Architecture) -> dict[str, Any]:
    header = keys.header
    context = keys.whole("context_length")
    embedding = header.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise refused(header.place, "it holds no embedding of tokens (token_embd.weight)")
    if not 0 < context <= _MOST_CONTEXT:
        raise refused(header.place, f"its {keys.arch}.context_length is {context:,} tokens")
    norm = "attention.layer_norm_epsilon" if architecture.layer_norm else "attention.layer_norm_rms_epsilon"
    epsilon = keys.real(norm)
    return {
        "vocab_size": embedding.shape[0],
        "hidden_size": keys.hidden,
        "num_hidden_layers": keys.layers,
        "max_position_embeddings": context,
        **(dict.fromkeys(_EPSILONS, epsilon) if architecture.layer_norm else {}),
        **({} if architecture.layer_norm else {"rms_norm_eps": epsilon}),
        **({} if architecture.states else _attention(keys, architecture)),
        "tie_word_embeddings": "output.weight" not in header.tensors,
        "use_cache": True,
    }


def _attention(keys: Keys, architecture: Architecture) -> dict[str, Any]:
    number = keys.most if architecture.layered else keys.whole
    heads = number("attention.head_count")
    return {
        "intermediate_size": number("feed_forward_length", 4 * keys.hidden),
        "num_attention_heads": heads,
        "num_key_value_heads": number("attention.head_count_kv", heads),
        "head_dim": keys.head_dim,
        "rope_parameters": rope_parameters(keys.header, keys.head_dim, keys.whole("context_length")),
    }
