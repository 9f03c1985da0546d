"""A model's own structure, small: its first layers up to one of each kind, narrower, with random weights.

What a family does (which blocks it has, who sees whom, which windows, caps and multipliers) stands in its config and
code, not in its size. So a plan tries it here, on the CPU and in a second, with no weight file read. Widths and head
counts are divided by one number, so that all their ratios stay; the width of a head, windows, caps and multipliers are
the config's.
"""

import copy
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nbtune.models.config_numbers import CHOSEN, EXPERTS
from nbtune.models.loading import from_config
from nbtune.models.outline_facts import outlined

if TYPE_CHECKING:
    from torch import nn

_VOCABULARY = 512
_MOST_LAYERS = 16
_FEW, _MOST = 20_000_000, 150_000_000  # numbers in a copy: a CPU is through with them in a blink, or in two seconds
_WIDTH = re.compile(
    r"^(hidden_size|n_embd|d_model|word_embed_proj_dim|lru_width|attention_hidden_size|mamba_d_ssm|n_inner|ffn_dim"
    r"|ffn_hidden_size|.*intermediate_size(_mlp)?|block_ff_dim)$"
)
_HEADS = re.compile(r"^(n_head|n_head_kv|(n|num|mamba|linear)_(.*_)?heads|(mamba_)?n_?groups)$")
_KEYS = re.compile(r"key_value|kv")
_OF_ALL = re.compile(r"multiplier|limit")  # lists that are no list of layers, however long
_PLACE = re.compile(r"idx|index|layer_id")  # says which layer it is, not of what kind


@dataclass(frozen=True)
class Miniature:
    """A small model of the same kind.

    Args:
        model: on the CPU, in float32, with random weights.
        kinds: of each layer of the real model: the layer of the small one that is of its kind.
    """

    model: "nn.Module"
    kinds: tuple[int, ...]


class TooLarge(Exception):
    """A small copy would not be small."""


def miniature(model: str, *, seed: int = 0, trust_remote_code: bool = False) -> Miniature:
    """Build the small copy of a model.

    Args:
        model: ``nbtune/tiny``, a folder, or a Hub id, of which only the config is read.
        seed: of its weights.

    Raises:
        TooLarge: it cannot be made small enough.
        SpecError, HubError: see `nbtune.models.loading.resolve`. Whatever else the model's own code raises.
    """
    import torch

    whole = outlined(model, trust_remote_code=trust_remote_code)
    config = whole.config
    kinds = _kinds(whole, config)
    # a kind that first comes late is left to the loaded weights
    depth = min(1 + max(kinds), _MOST_LAYERS)
    failed: Exception | None = None
    for factor, most in _factors(config.get_text_config()):
        small = _smaller(config, factor, depth)
        try:
            if _numbers(_on_meta(small, trust_remote_code)) > most:
                raise TooLarge(f"a layer of each kind has more than {most / 1e6:.0f} M weights")
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                made = from_config(small, dtype=torch.float32, device="cpu", trust_remote_code=trust_remote_code)
        except Exception as error:  # noqa: BLE001 — a family's code may not want these widths: the next factor
            failed = failed if isinstance(error, TooLarge) and failed is not None else error
            continue
        return Miniature(made.eval(), tuple(min(kind, depth - 1) for kind in kinds))
    raise failed or TooLarge("its config names no widths")


def _on_meta(config: Any, trust_remote_code: bool) -> Any:
    import torch

    return from_config(copy.deepcopy(config), dtype=torch.float32, device="meta", trust_remote_code=trust_remote_code)


def _numbers(model: Any) -> int:
    return sum(p.numel() for p in model.parameters())


def _kinds(model: Any, config: Any) -> list[int]:
    """Return of each layer the first one that is of its kind."""
    from torch import nn

    part = config.get_text_config()
    layers: Any = next(
        (m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == part.num_hidden_layers), []
    )
    lists = [value for value in vars(part).values() if isinstance(value, list) and len(value) == len(layers)]
    named = [each for each in lists if len({*map(str, each)}) < len(each) or len(each) < 2]  # else numbers of layers
    seen: dict[Any, int] = {}
    return [seen.setdefault(_kind(layer, [each[i] for each in named]), i) for i, layer in enumerate(layers)] or [0]


def _kind(layer: "nn.Module", named: list[Any]) -> Any:
    """Return what distinguishes a layer: its parts, their shapes and settings, and what lists of
    the config say of it."""
    parts = []
    for name, module in layer.named_modules():
        own = {k: v for k, v in vars(module).items() if not _PLACE.search(k) and not k.startswith("_")}
        said = tuple((k, v) for k, v in sorted(own.items()) if isinstance(v, str | int | float | None))
        shapes = tuple((k, tuple(p.shape)) for k, p in module.named_parameters(recurse=False))
        parts.append((name, type(module).__name__, said, shapes))
    return tuple(parts), repr(named)


def _factors(part: Any) -> Iterator[tuple[int, int]]:
    """Return by what widths are divided, and how many numbers may be left: so that there are two heads of each sort,
    one, or one of each sort of keys."""
    counts = [(name, n) for name, n in _whole_numbers(part) if _HEADS.match(name) and n > 1]
    every, without = [n for _, n in counts], [n for name, n in counts if not _KEYS.search(name)]
    hidden = next((n for name, n in _whole_numbers(part) if name in ("hidden_size", "n_embd", "d_model")), 1)
    yield _leaving(2, hidden, every), _FEW
    yield _leaving(1, hidden, every), _FEW
    yield _leaving(2, hidden, without), _MOST
    yield _leaving(1, hidden, every), _MOST
    yield 1, _MOST


def _leaving(least: int, hidden: int, heads: list[int]) -> int:
    """Return the largest number that divides the width and all counts of heads and leaves so many heads."""
    common = math.gcd(hidden, *heads) if heads else math.gcd(hidden, max(1, hidden // 256))
    return next(d for d in range(common, 0, -1) if d == 1 or (common % d == 0 and all(n // d >= least for n in heads)))


def _whole_numbers(part: Any) -> list[tuple[str, int]]:
    return [(k, v) for k, v in vars(part).items() if isinstance(v, int) and not isinstance(v, bool) and v > 0]


def _smaller(config: Any, factor: int, depth: int) -> Any:
    """Return a copy of the config with widths divided, and only the first layers."""
    small = copy.deepcopy(config)
    part = small.get_text_config()
    layers = part.num_hidden_layers
    for name, value in vars(copy.copy(part)).items():
        if isinstance(value, list) and len(value) == layers and not _OF_ALL.search(name):
            setattr(part, name, value[:depth])
        elif name.endswith("_token_id"):  # none of a vocabulary that is cut, but where one must be told
            _untold(part, name, told=name == "decoder_start_token_id" and value is not None)
    for name, value in _whole_numbers(part):
        if _HEADS.match(name) and (value % factor == 0 or _KEYS.search(name)):
            setattr(part, name, max(1, value // factor))
        elif _WIDTH.match(name) and factor > 1:
            setattr(part, name, value // factor if value % factor == 0 else -(-value // factor // 8) * 8)
        elif "vocab_size" in name:
            setattr(part, name, min(value, _VOCABULARY))
        elif name in EXPERTS:
            setattr(part, name, min(value, _few_experts(part)))
    part.num_hidden_layers = depth
    small.use_cache = False
    return small


def _untold(part: Any, name: str, *, told: bool) -> None:
    """Take a token's id out of a config; 0 where one must be told, or some class's fields want a number."""
    try:
        setattr(part, name, 0 if told else None)
    except Exception:  # noqa: BLE001 — a strict class's own kind of error
        setattr(part, name, 0)


def _few_experts(part: Any) -> int:
    """Return as many experts as leave a choice among them, in each of their groups."""
    told = [getattr(part, name, None) or 1 for name in CHOSEN]  # a number, or one a layer
    chosen = max(max(n) if isinstance(n, list) else n for n in told)
    groups = getattr(part, "n_group", None) or 1
    return max(4, 2 * chosen, 2 * groups)
