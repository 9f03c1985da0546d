"""A peft adapter on disk, and what it does to each weight of its base."""

from __future__ import annotations

import math
import re
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from nbtune.errors import ExportError
from nbtune.export.safetensors_reader import Weights
from nbtune.export.source import read_json
from nbtune.models.stored_names import Piece, pieces_of
from nbtune.untrusted import leads_out

_PREFIX = "base_model.model."
# Starts that change the base itself before training: the adapter alone does not say what they changed.
_MOVES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


_KINDS = ("*.json", "*.safetensors")
_WHOLE = Piece("")
_OTHER_BASE = "give the base model that the adapter was trained on."


@dataclass
class Target:
    """What an adapter has for one weight: the names of its tensors in the adapter's file (empty = none).

    a, b: LoRA's factors; embedding: they are an embedding's (stored transposed); magnitude: DoRA's norms;
    full: the whole weight; factor: IA3's, of rows or columns; delta: a bias to add (LoRA's own); tokens: the rows that
    `token_rows` replaces.
    experts: how many matrices the factors are for, where they are for a stack of them (0: for one matrix).
    turned: the stack holds its matrices as (in, out). piece: what of the weight they are for this is.
    """

    a: str = ""
    b: str = ""
    embedding: bool = False
    magnitude: str = ""
    full: str = ""
    factor: str = ""
    delta: str = ""
    token_rows: str = ""
    tokens: list[int] | None = None
    scale: float = 1.0
    experts: int = 0
    turned: bool = False
    piece: Piece = _WHOLE


class AdapterFile:
    """An adapter's folder: ``adapter_config.json`` and ``adapter_model.safetensors``.

    `targets` maps a weight of the base (``"model.layers.0.self_attn.q_proj.weight"``) to its `Target`.

    Raises:
        ExportError: the folder is not whole, or holds something else than LoRA, rsLoRA, DoRA, IA3, whole modules or
            single tokens' embeddings; or a file of it is a link out of it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if links := [path for kind in _KINDS for path in sorted(folder.glob(kind)) if leads_out(path, folder)]:
            raise ExportError(
                "this link leads out of the adapter's folder, and is not followed",
                place=str(links[0]),
                fix="put the file itself there, if it is yours.",
            )
        self.config: dict[str, Any] = read_json(folder / "adapter_config.json")
        self._refuse_unknown()
        self.weights = Weights(folder, "adapter_model")
        self.targets: dict[str, Target] = {}
        self._pairs: dict[tuple[str, str], tuple[torch.Tensor, torch.Tensor]] = {}
        for key in self.weights:
            self._sort(key)
        for name, target in self.targets.items():
            if target.a:
                target.scale = self._scale(name, target)

    def settle(self, model: Any, names: Iterable[str]) -> None:
        """Name each target as the base's files name it: what peft has of a stack becomes a target of each piece of it.

        Args:
            model: the base (its weights may hold nothing); names: of the weights in its files.
        """
        stored = pieces_of(model, names)
        weights = dict(model.named_parameters())
        ends = self.config.get("target_parameters") or ()
        settled: dict[str, Target] = {}
        for name, target in self.targets.items():
            own, stack = _weight_of(name, model, ends)
            if stack is not None:
                target.experts, target.turned = weights[own].shape[0], bool(getattr(stack, "is_transposed", False))
                target.scale = self._scale(f"{own}.weight", target)
            for piece in stored.get(own) or [Piece(name)]:
                settled[piece.name] = replace(target, piece=piece)
        self.targets = settled

    def scale_biases(self, there: Container[str]) -> None:
        """Let IA3's factors of what layers give scale these layers' biases, too.

        Args:
            there: the names of the base's weights.
        """
        for name, target in list(self.targets.items()):
            bias = f"{name.removesuffix('weight')}bias"
            if target.factor and bias in there and not self._of_columns(target):
                self.targets[bias] = replace(target)

    def _of_columns(self, target: Target) -> bool:
        """Return whether IA3's factors are of what a layer is given."""
        return self.weights.shape(target.factor)[0] == 1

    def _refuse_unknown(self) -> None:
        kind = self.config.get("peft_type")
        if kind not in ("LORA", "IA3"):
            raise self._error(f"an adapter of type {kind!r} cannot be merged yet", "export the adapter instead.")
        for key in ("layer_replication", "use_qalora", "use_bdlora", "megatron_config"):
            if self.config.get(key):
                raise self._error(f"adapters with {key} cannot be merged yet", "export the adapter instead.")
        start = self.config.get("init_lora_weights")
        if isinstance(start, str) and start.lower().startswith(_MOVES_BASE):
            raise self._error(
                f"init_lora_weights={start!r} changes the base before training, and this adapter does not hold that",
                "save it with peft's path_initial_model_for_weight_conversion, which makes it a plain LoRA.",
            )

    def _error(self, cause: str, fix: str) -> ExportError:
        return ExportError(cause, place=str(self.folder / "adapter_config.json"), fix=fix)

    def _sort(self, key: str) -> None:
        name = key.removeprefix(_PREFIX)
        if ".original_module." in name:
            return  # what a saved module was before training; peft writes it beside a resized embedding
        name = name.replace(".modules_to_save.", ".")
        stem, _, last = name.rpartition(".")
        module, _, part = stem.rpartition(".")
        if part in ("lora_A", "lora_B") and last == "weight":
            target = self._target(f"{module}.weight")
            setattr(target, "a" if part == "lora_A" else "b", key)
        elif last in ("lora_embedding_A", "lora_embedding_B"):
            target = self._target(f"{stem}.weight")
            target.embedding = True
            setattr(target, "a" if last.endswith("A") else "b", key)
        elif last == "lora_magnitude_vector":
            self._target(f"{stem}.weight").magnitude = key
        elif part == "lora_magnitude_vector":
            self._target(f"{module}.weight").magnitude = key
        elif last == "ia3_l":
            self._target(f"{stem}.weight").factor = key
        elif part == "lora_B" and last == "bias":
            self._target(f"{module}.bias").delta = key
        elif last == "trainable_tokens_delta":
            target = self._target(f"{module}.weight")
            target.token_rows, target.tokens = key, self._token_indices(module)
        elif last in ("weight", "bias"):
            self._target(f"{module}.{last}" if part == "base_layer" else name).full = key
        else:
            raise self._error(f"the adapter holds {name!r}, which nbtune does not know", "export the adapter instead.")

    def _target(self, name: str) -> Target:
        return self.targets.setdefault(name, Target())

    def _token_indices(self, module: str) -> list[int]:
        indices = self.config.get("trainable_token_indices")
        if isinstance(indices, dict):
            indices = next((v for k, v in indices.items() if module.endswith(k)), None)
        if not isinstance(indices, list):
            raise self._error(f"trainable_token_indices does not name {module!r}", "train it again.")
        return indices

    def _scale(self, name: str, target: Target) -> float:
        """Return LoRA's factor: alpha/r, or alpha/√r for rsLoRA; alpha may be given by a pattern of the
        module's name."""
        rank = self._rank(target)
        alpha = float(self.config.get("lora_alpha") or 8)
        module = name.rpartition(".")[0]
        for pattern, value in (self.config.get("alpha_pattern") or {}).items():
            if re.match(rf"(.*\.)?({pattern})$", module):
                alpha = float(value)
                break
        return alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank)

    def rank(self, name: str) -> int:
        """Return the inner size of the factors for a weight."""
        return self._rank(self.targets[name])

    def _rank(self, target: Target) -> int:
        return self.weights.shape(target.a)[0] // max(1, target.experts)

    def check_shape(self, name: str, shape: tuple[int, ...]) -> None:
        """Raise ExportError unless this adapter's part for `name` fits a weight of `shape`."""
        target = self.targets[name]
        if target.factor:
            turned, columns = bool(self.config.get("fan_in_fan_out")), self._of_columns(target)
            side = shape[0] if len(shape) == 1 else shape[::-1][turned] if columns else shape[turned]
            parts = 1 if columns else target.piece.parts
            if math.prod(self.weights.shape(target.factor)) != side * parts:
                raise self._error(f"its factors for {name!r} are not for a weight of {shape}", _OTHER_BASE)
        if not target.a:
            return
        inner, outer = self.weights.shape(target.a)[1], self.weights.shape(target.b)[0] // target.piece.parts
        turned = target.embedding or self.config.get("fan_in_fan_out") or target.turned
        if len(shape) > 2 and shape[0] == target.experts:
            shape = shape[1:]
        if (inner, outer) != (shape if turned else shape[::-1]) and not (target.full and target.embedding):
            raise ExportError(
                f"the adapter's factors for {name!r} are for a {outer}x{inner} weight, and the base's is {shape}",
                place=str(self.folder),
                fix=_OTHER_BASE,
            )

    def factors(self, name: str, device: torch.device | str = "cpu") -> tuple[torch.Tensor, torch.Tensor]:
        """Return LoRA's A (r, in) and B (out, r) of a linear weight, fp32, unscaled; of an embedding (r, tokens), (dim,
        r); of a stack of experts (E, r, in), (E, out, r)."""
        target = self.targets[name]
        a, b = self._pair(target, device)
        if target.experts:  # peft keeps an expert's rows of A together, and its columns of B apart
            a = a.reshape(target.experts, -1, a.shape[1])
            b = b.reshape(len(b), -1, target.experts).permute(2, 0, 1)
        if (expert := target.piece.expert) is not None:
            a, b = a[expert], b[expert]
        rows = b.shape[-2] // target.piece.parts
        return a, b[..., rows * target.piece.part : rows * (target.piece.part + 1), :]

    def _pair(self, target: Target, device: torch.device | str) -> tuple[torch.Tensor, torch.Tensor]:
        """Return A and B as they lie in the file, kept until others are asked for: a stack's are asked for once for
        each expert, a large weight's once for each chunk."""
        key = target.a, str(device)
        if key not in self._pairs:
            while len(self._pairs) > 1:  # in a layer's files matrices of its two stacks take turns
                del self._pairs[next(iter(self._pairs))]
            self._pairs[key] = self._fp32(target.a, device), self._fp32(target.b, device)
        return self._pairs[key]

    def _fp32(self, key: str, device: torch.device | str) -> torch.Tensor:
        return self.weights.get(key).to(device).float()

    def add(self, name: str, rows: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        """Return rows ``[start:stop]`` of the merged weight, from the same rows of the base's.

        Args:
            name: of the weight.
            rows: (stop - start, in), fp32; or a whole bias.
        """
        target = self.targets[name]
        if target.factor:
            return rows * self._factor_of(target, rows, start, stop)
        if target.delta:
            bias_of = self.targets[name.removesuffix("bias") + "weight"]
            return rows + bias_of.scale * self._fp32(target.delta, rows.device)[start:stop]
        if target.a:
            rows = self._with_lora(name, target, rows, start, stop)
        if target.tokens is not None:
            values = self._fp32(target.token_rows, rows.device)
            rows = rows.clone()
            for at, token in enumerate(target.tokens):
                if start <= token < stop:
                    rows[token - start] = values[at]
        return rows

    def _factor_of(self, target: Target, rows: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        """Return IA3's factors of rows ``[start:stop]`` of a weight, or of a bias."""
        values, columns = self._fp32(target.factor, rows.device).flatten(), self._of_columns(target)
        if not columns:
            values = values.chunk(target.piece.parts)[target.piece.part]
        along = rows.dim() == 2 and columns != bool(self.config.get("fan_in_fan_out"))
        return values if along else values[start:stop].view(-1, *[1] * (rows.dim() - 1))

    def _with_lora(self, name: str, target: Target, rows: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        a, b = self.factors(name, rows.device)
        if a.dim() > 2:
            update = b[start:stop] @ a[start:stop]
            return rows + target.scale * (update.transpose(1, 2) if target.turned else update)
        if target.embedding or self.config.get("fan_in_fan_out"):
            merged = rows + target.scale * (a[:, start:stop].T @ b.T)
            if target.magnitude:
                raise self._error("DoRA on an embedding or a transposed weight is not known", "export the adapter.")
            return merged
        merged = rows + target.scale * (b[start:stop] @ a)
        if target.magnitude:
            norms = self._fp32(target.magnitude, rows.device).flatten()
            norms = norms.chunk(target.piece.parts)[target.piece.part][start:stop]
            merged = merged * (norms / torch.linalg.vector_norm(merged, dim=1)).unsqueeze(1)
        return merged


def _weight_of(name: str, model: Any, ends: Sequence[str]) -> tuple[str, Any]:
    """Return which weight of the model an adapter's part is for, and the module that holds it, if it is a stack.

    peft wraps a module once for each of its weights that are adapted, the first one innermost: that one's part has the
    most `base_layer` in its name.
    """
    place = name.removesuffix(".weight")
    depth = 0
    while place.endswith(".base_layer"):
        place, depth = place.removesuffix(".base_layer"), depth + 1
    try:
        module = model.get_submodule(place)
    except AttributeError:
        return name, None
    own = [f"{place}.{at}" for at, p in module.named_parameters(recurse=False) if p.dim() > 2]
    adapted = [at for at in own if any(at == end or at.endswith(f".{end}") for end in ends)]
    if depth >= len(adapted):
        return name, None
    return adapted[len(adapted) - 1 - depth], module
