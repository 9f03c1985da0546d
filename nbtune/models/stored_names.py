"""By which names a model's files hold its weights: some are stacked, joined or renamed as transformers 5 loads them."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Piece:
    """A weight in the files, and which part of a weight of the model it is.

    Args:
        name: in the files.
        expert: of a stack, whose matrix; None: the whole stack, or no stack.
        part, parts: it is the `part`-th of so many equal ones, one under the other, of a matrix.
    """

    name: str
    expert: int | None = None
    part: int = 0
    parts: int = 1


def pieces_of(model: Any, names: Iterable[str]) -> dict[str, list[Piece]]:
    """Return of each weight of the model, by its name there, what of it the files hold.

    >>> model = nbtune.models.load_model("nbtune/tiny", dtype=nbtune.device.torch_dtype("fp32"), device="cpu")
    >>> pieces_of(model, ["model.norm.weight"])["model.norm.weight"]
    [Piece(name='model.norm.weight', expert=None, part=0, parts=1)]

    Args:
        model: of transformers; its weights may hold nothing.
        names: of all weights in its files. What is made otherwise than by stacking and joining is passed over.
    """
    loading = Loading(model)
    by_key: dict[str, list[tuple[str, Any]]] = {}
    for name in names:
        key, pattern = loading.name_of(name)
        by_key.setdefault(key, []).append((name, pattern))
    by_pattern = {pattern: c for c in loading.converters for pattern in c.source_patterns}
    return {key: _parts(held, by_pattern) for key, held in by_key.items()}


class Loading:
    """What transformers calls a weight of the files as it loads a model.

    `converters` make weights of several; `wanted` are the model's own.
    """

    def __init__(self, model: Any) -> None:
        self.wanted: dict[str, Any] = model.state_dict()
        self._prefix = getattr(model, "base_model_prefix", None) or None
        self._renamings, self.converters = _conversions(model)

    def name_of(self, stored: str) -> tuple[str, Any]:
        """Return the name of the weight in the model, and the pattern by which it is converted (None: as it is)."""
        if not self._renamings and not self.converters:
            return stored, None
        from transformers.core_model_loading import rename_source_key

        name, pattern = rename_source_key(stored, self._renamings, self.converters, self._prefix, self.wanted)
        return (stored, None) if name not in self.wanted and stored in self.wanted else (name, pattern)


def _conversions(model: Any) -> tuple[list[Any], list[Any]]:
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightRenaming
    except ImportError:  # a transformers that loads weights by their own names
        return [], []
    every = get_model_conversion_mapping(model)
    renamings = [each for each in every if isinstance(each, WeightRenaming)]
    return renamings, [each for each in every if not isinstance(each, WeightRenaming)]


def _parts(held: list[tuple[str, Any]], converters: dict[Any, Any]) -> list[Piece]:
    """Return the pieces that (name, pattern of its conversion) pairs are."""
    if held[0][1] is None:
        return [Piece(name) for name, _ in held]
    from transformers.core_model_loading import dot_natural_key

    conversion = converters[held[0][1]]
    kinds = {type(operation).__name__: operation for operation in conversion.operations}
    if set(kinds) - {"MergeModulelist", "Concatenate"} or any(v.dim for k, v in kinds.items() if k[0] == "M"):
        return []
    stacks, patterns = "MergeModulelist" in kinds, list(conversion.source_patterns)
    if "Concatenate" in kinds and kinds["Concatenate"].dim != int(stacks):
        return []
    pieces = []
    for part, pattern in enumerate(patterns):
        names = sorted((name for name, own in held if own == pattern), key=dot_natural_key)
        for expert, name in enumerate(names):
            pieces.append(Piece(name, expert if stacks else None, part, len(patterns)))
    return pieces
