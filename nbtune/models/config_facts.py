"""What a model is, from its config and the headers of its weight files: no torch, no weights read."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from nbtune.errors import SpecError
from nbtune.models import handed_over, token_rows
from nbtune.models.config_numbers import CHOSEN, EXPERTS
from nbtune.models.gguf_file import decoded
from nbtune.models.loading import resolve
from nbtune.models.weight_checks import read_headers
from nbtune.untrusted import SENTINEL, BadFile, load, shortened

_BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}
_MOST = 2**40  # of anything that a config counts
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
# A config file spells what its class calls `num_hidden_layers` and `num_attention_heads` in its own way; some have only
# the list of their layers' kinds.
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "layers_block_type", "layer_types", "block_types")
_HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads")


@dataclass(frozen=True)
class ModelFacts:
    """Plain facts of a causal language model, enough to plan a run without loading it.

    Args:
        name: as the spec wrote it: a Hub id, a folder's name, or the embedded model.
        architecture: transformers' class name, such as ``LlamaForCausalLM``.
        hidden_size, intermediate_size, num_layers, num_heads, num_kv_heads, head_dim, vocab_size: of the config.
        tied: the head is the embedding.
        parameters: how many numbers the weights hold (a tied head counted once).
        max_position: longest sequence the positions were made for, in tokens.
        weights_bytes: size of the weights on disk.
        dtype: of most weights on disk, in torch's spelling.
        trained: how many numbers the adapter trains, where that was counted (`nbtune.models.outline_facts`).
        trained_in_head: of these in a head that is no embedding, which a head of scores leaves idle.
        experts_used: share of a mixture's experts that a token goes through.
        targets: the names of the weights that the adapter is put onto, counted alike.
        kinds: of what is trained (`nbtune.models.parameter_kinds`), counted alike; empty: nobody knows.
        decays: weight decay is of some of it (`nbtune.models.weight_decay`), counted alike; None: nobody knows.
        linear: numbers in linear layers beside the head, counted alike: what 4 or 8 bits cover.
        stacked: numbers in stacks of matrices, which are no linear layers: a mixture's experts.
        turns_at: tokens beyond which a row turns the angles of every row in its batch (long or dynamic factors); None:
            no row does.
        head_norms: queries and keys are normalised, counted alike.
        norms_behind: a norm stands behind each half of a block, counted alike.
        layer_norms: norms are torch's LayerNorm, which keeps nothing but what it has read, counted alike.
    """

    name: str
    architecture: str
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    tied: bool
    parameters: int
    max_position: int
    weights_bytes: int
    dtype: str
    trained: int | None = None
    linear: int | None = None
    stacked: int = 0
    targets: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    decays: bool | None = None
    turns_at: int | None = None
    experts_used: float = 1.0
    trained_in_head: int = 0
    head_norms: bool = False
    norms_behind: bool = False
    layer_norms: bool = False

    @property
    def gated(self) -> bool:
        """Whether an MLP has a gate beside its first matrix; so where its matrices were not counted."""
        attention = self.hidden_size * self.head_dim * (2 * self.num_heads + 2 * self.num_kv_heads)
        return self.block_parameters - attention > 2.5 * self.hidden_size * self.intermediate_size or self.stacked > 0

    @property
    def active_parameters(self) -> int:
        """Numbers that a token goes through: of a mixture's experts those that are chosen."""
        return self.parameters - int(self.stacked * (1 - self.experts_used))

    @property
    def block_parameters(self) -> int:
        """Numbers in the linear layers of one block (what a LoRA on all linears sits beside)."""
        if self.linear is not None:
            return self.linear // self.num_layers
        attention = self.hidden_size * self.head_dim * (2 * self.num_heads + 2 * self.num_kv_heads)
        return attention + 3 * self.hidden_size * self.intermediate_size

    def row_tokens(self, wanted: int | None) -> int:
        """Return how many tokens a row has at most: as many as are wanted (None: no matter), and as the model has
        positions for."""
        return min(wanted or self.max_position, self.max_position)

    def lora_parameters(self, r: int) -> int:
        """Return how many numbers are trained of a rank-``r`` LoRA on all seven linear layers of every block."""
        width = self.head_dim * (self.num_heads + self.num_kv_heads)
        ends = 4 * self.hidden_size + 2 * width + 3 * (self.hidden_size + self.intermediate_size)
        return r * ends * self.num_layers


def model_facts(model: str) -> ModelFacts:
    """Return the facts of a model, from ``config.json`` and the headers of its safetensors files.

    >>> facts = nbtune.models.model_facts("nbtune/tiny")
    >>> facts.num_layers, facts.hidden_size
    (4, 256)

    Args:
        model: a Hub id, a folder, or ``nbtune/tiny``. Of a Hub model only the config and the headers travel.

    Raises:
        SpecError: the folder has no readable ``config.json``, a weight file is not whole, or it is no causal language
            model.
        HubError: the Hub could not be asked.
    """
    folder = resolve(model, weights=False)
    facts = facts_by_config(model, _config(folder, model), _headers_in(folder, model))
    called = handed_over.name_of(folder) or token_rows.name_of(folder) or Path(model).name
    return replace(facts, name=called) if Path(model).expanduser().exists() else facts


def headers_of(model: str) -> dict[str, dict[str, Any]]:
    """Return the entries of a model's safetensors files, by the tensors' names; {}: they cannot be read without their
    numbers.

    Args:
        model: as of `model_facts`.

    Raises:
        SpecError: a weight file is not whole.
    """
    return _headers_in(resolve(model, weights=False), model)


def _headers_in(folder: Path, model: str) -> dict[str, dict[str, Any]]:
    found = token_rows.headers(folder) or read_headers(folder) or handed_over.headers(folder) or decoded.headers(folder)
    return found or ({} if Path(model).expanduser().exists() else _hub_headers(model, str(folder)))


def _config(folder: Path, model: str) -> dict[str, Any]:
    try:
        config = load(folder / "config.json", number_below=SENTINEL)
    except (OSError, BadFile) as e:
        raise SpecError(
            f"{model} has no readable config.json ({e or type(e).__name__})", fix="Name a folder or Hub id of a model."
        ) from e
    text = config.get("text_config")
    return {**config, **text, "architectures": config.get("architectures")} if isinstance(text, dict) else config


@lru_cache(maxsize=8)
def _hub_headers(model: str, snapshot: str) -> dict[str, dict[str, Any]]:
    """Return the headers that the Hub is asked for; once for each of the model's commits, which `snapshot` is named
    after."""
    from huggingface_hub import get_safetensors_metadata
    from huggingface_hub.errors import HfHubHTTPError, NotASafetensorsRepoError

    try:
        meta = get_safetensors_metadata(model)
    except (NotASafetensorsRepoError, HfHubHTTPError, OSError):
        return {}  # the sizes are then computed from the config
    return {
        name: {"dtype": info.dtype, "shape": info.shape}
        for file in meta.files_metadata.values()
        for name, info in file.tensors.items()
    }


def facts_by_config(model: str, c: Mapping[str, Any], headers: Mapping[str, dict[str, Any]]) -> ModelFacts:
    """Return the facts of a model whose ``config.json`` says `c`.

    Args:
        model: what people call it.
        headers: see `headers_of`; without them its weights are reckoned, a Llama's.

    Raises:
        SpecError: it is no config of a causal language model.
    """

    def get(*names: str) -> int | None:
        return next((_counted(model, n, c[n]) for n in names if c.get(n) is not None), None)

    _check_shares(model, c)
    hidden, layers = get("hidden_size", "n_embd", "d_model"), get(*_LAYERS)
    if not (hidden and layers):
        raise SpecError(f"{model} is not a causal language model that nbtune knows: its config names no layers")
    heads = get(*_HEADS) or 1  # state-space models and their like have none: one as wide as the model
    inter = get("intermediate_size", "n_inner", "ffn_hidden_size", "ffn_dim") or 4 * hidden
    kv, dim, vocab = get("num_key_value_heads") or heads, get("head_dim") or hidden // heads, get("vocab_size") or 0
    tied = bool(c.get("tie_word_embeddings", False))
    if headers:
        tied = not any(name.endswith(("lm_head.weight", "embed_out.weight")) for name in headers)
    sizes = [(_numel(h["shape"]), h["dtype"]) for h in headers.values() if h["dtype"] in _BYTES]
    block = hidden * dim * (2 * heads + 2 * kv) + 3 * hidden * inter + 2 * hidden
    parameters = sum(n for n, _ in sizes) or layers * block + hidden + vocab * hidden * (1 if tied else 2)
    dtype = str(c.get("dtype") or c.get("torch_dtype") or "float32").removeprefix("torch.")
    if sizes:
        per = {d: sum(n for n, e in sizes if e == d) for d in {d for _, d in sizes}}
        dtype = _DTYPES.get(max(per, key=lambda d: per[d]), dtype)
    width = {"float32": 4, "float64": 8}.get(dtype, 2)
    return ModelFacts(
        name=model,
        architecture=_architecture(c.get("architectures")),
        hidden_size=hidden,
        intermediate_size=inter,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv,
        head_dim=dim,
        vocab_size=vocab,
        tied=tied,
        parameters=parameters,
        max_position=get("max_position_embeddings", "n_positions", "max_seq_len") or 2048,
        weights_bytes=sum(n * _BYTES[d] for n, d in sizes) or parameters * width,
        dtype=dtype,
        experts_used=_share(get(*CHOSEN), get(*EXPERTS)),
        turns_at=_turns_at(c),
    )


def _share(chosen: int | None, experts: int | None) -> float:
    return chosen / experts if chosen and experts and chosen < experts else 1.0


def _counted(model: str, name: str, value: Any) -> int:
    """Return what a config says how many there are of: its number, the largest of a list a layer, or of a list of the
    kinds of layers how many they are.

    Raises:
        SpecError: it is something else.
    """
    if name in _LAYERS and isinstance(value, list) and all(isinstance(kind, str) for kind in value):
        return len(value)
    several = value if isinstance(value, list) and value else [value]
    if all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n < _MOST for n in several):
        return max(several)
    raise SpecError(
        f"{name} is {shortened(repr(value), 60)} in its config.json, where a whole number belongs",
        place=shortened(model),
        fix="Mend it, or download the model again.",
    )


def _check_shares(model: str, config: Mapping[str, Any]) -> None:
    """Refuse what is drawn more often than always: torch says so only in the middle of a step."""
    for name, value in config.items():
        share = isinstance(value, int | float) and not isinstance(value, bool)
        if (name.endswith(("dropout", "_pdrop", "_drop")) or "dropout_" in name) and share and not 0 <= value <= 1:
            raise SpecError(
                f"{name} is {shortened(repr(value), 60)} in its config.json, where a share of 0 to 1 belongs",
                place=shortened(model),
                fix="Mend it, or download the model again.",
            )


def _architecture(said: Any) -> str:
    return said[0] if isinstance(said, list) and said and isinstance(said[0], str) else "?"


def _turns_at(c: Mapping[str, Any]) -> int | None:
    """Return where transformers changes to other angles: it looks at the longest row of a batch."""
    rope = c.get("rope_parameters") or c.get("rope_scaling")
    if not isinstance(rope, dict):
        return None
    kinds = [rope, *(kind for kind in rope.values() if isinstance(kind, dict))]  # some have one for each kind of layer
    return min((place for kind in kinds if (place := _turned_beyond(kind, c)) is not None), default=None)


def _turned_beyond(rope: Mapping[str, Any], c: Mapping[str, Any]) -> int | None:
    """Return beyond which row one scaling of angles gives others; None: beyond none."""
    kind, within = rope.get("rope_type", rope.get("type")), None
    if kind in ("longrope", "su"):
        within = c.get("original_max_position_embeddings") or rope.get("original_max_position_embeddings")
    elif kind == "dynamic" and not rope.get("alpha"):  # HunYuan's, which are the same for every row
        within = c.get("max_position_embeddings")
    return within if isinstance(within, int) and within > 0 else None


def _numel(shape: list[int]) -> int:
    total = 1
    for n in shape:
        total *= n
    return total
