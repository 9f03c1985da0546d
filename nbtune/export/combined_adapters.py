"""Several LoRAs of one base as one: the weighted sum of what each adds.

    Σ w (α/r) B A  =  [w₁ s₁ B₁, w₂ s₂ B₂, …] [A₁; A₂; …]      s = α/r, or α/√r with rsLoRA

Their ranks add up, and nothing is lost (`add_weighted_adapter` of peft, ``combination_type="cat"``). Only the adapters'
own files are read.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from nbtune.atomic_io import replace_folder
from nbtune.disk import folder_bytes
from nbtune.errors import ExportError, TrainError
from nbtune.export.peft_adapter import AdapterFile, Target
from nbtune.export.peft_export import WEIGHTS, without_machine_paths
from nbtune.export.safetensors_reader import finite
from nbtune.export.source import ExportedFile
from nbtune.models.adapter_file import chosen
from nbtune.models.tokenizer_files import copy_tokenizer, own_files
from nbtune.store.folder import find, runs_root
from nbtune.untrusted import harmless

Pair = tuple[torch.Tensor, torch.Tensor]


def combine_adapters(
    adapters: Sequence[str | Path],
    weights: Sequence[float] | None = None,
    *,
    out: str | Path = "combined",
    runs_dir: str | Path | None = None,
) -> ExportedFile:
    """Write several LoRAs as one: a folder that peft opens, `start_from` goes on from, and an export takes home.

    >>> nbtune.export.combine_adapters(["demo", "demo"], [0.5, 0.5], out="both").path.name
    'both'

    Args:
        adapters: runs by name, id or folder, or folders that peft wrote; of one base.
        weights: how much of each; None: all of each, added up.
        out: the folder to make.
        runs_dir: where runs are.
    Raises:
        ExportError: one of them is more than a LoRA's two factors, or of another base; numbers do not fit.
    """
    began, shares = time.monotonic(), [1.0] * len(adapters) if not weights else [float(one) for one in weights]
    if odd := [share for share in shares if not math.isfinite(share)]:
        raise ExportError(f"{odd[0]} is no weight of an adapter", fix="write a number")
    if len(adapters) < 2 or len(shares) != len(adapters):
        raise ExportError(
            f"{len(adapters)} adapters and {len(shares)} weights cannot be combined",
            fix="name two or more, each with one",
        )
    folders = [_folder_of(one, runs_root(runs_dir)) for one in adapters]
    files = [AdapterFile(folder) for folder in folders]
    _must_fit(files)
    tensors, ranks = _joined(files, shares)
    config = _config([file.config for file in files], ranks)
    target = Path(out).expanduser()
    from safetensors.torch import save_file

    with replace_folder(target, shared=True, marker="adapter_config.json", raises=ExportError) as part:
        save_file(tensors, part / WEIGHTS, metadata={"format": "pt"})
        text = json.dumps(chosen(without_machine_paths(config)), indent=2)
        (part / "adapter_config.json").write_text(text + "\n", encoding="utf-8")
        copy_tokenizer(folders[0], part)
    notes = _of_tokenizers(folders)
    return ExportedFile(target, "adapter", folder_bytes(target), time.monotonic() - began, notes)


def _of_tokenizers(folders: Sequence[Path]) -> tuple[str, ...]:
    """Return a note where adapters learnt with other tokens or another chat template than the first one's."""
    files = [{path.name: path.read_bytes() for path in own_files(folder)} for folder in folders]
    odd = [folder for folder, theirs in zip(folders, files, strict=True) if theirs and theirs != files[0]]
    if not odd:
        return ()
    return (f"tokenizer and chat template are those of {_said(folders[0])}; {_said(odd[0])} was trained with others",)


def _said(folder: Path) -> str:
    return harmless(folder.parent.name if folder.name == "adapter" else folder.name, line=True)


def _folder_of(which: str | Path, root: Path) -> Path:
    path = Path(which).expanduser()
    if (path / "adapter_config.json").is_file():
        return path
    try:
        folder = find(which, root) / "adapter"
    except TrainError as error:
        raise ExportError(error.cause, place=str(which), fix=error.fix) from error
    if not (folder / "adapter_config.json").is_file():
        raise ExportError(
            "there is no adapter yet", place=str(which), fix="train it to its first checkpoint, by a LoRA"
        )
    return folder


def _must_fit(files: Sequence[AdapterFile]) -> None:
    bases = {str(file.config.get("base_model_name_or_path")) for file in files}
    if len(bases) > 1:
        raise ExportError(f"they are of several bases: {', '.join(sorted(bases))}", fix="combine those of one base")
    for file in files:
        more = [name for name, target in file.targets.items() if not _is_pair(target)]
        if more or file.config.get("target_parameters"):
            what = f"it has more of {more[0]!r} than a LoRA's two factors" if more else "it is on stacks of experts"
            raise ExportError(what, place=str(file.folder), fix="export it merged, and train on from there")


def _is_pair(target: Target) -> bool:
    return bool(target.a and target.b) and not (target.magnitude or target.full or target.token_rows)


def _joined(files: Sequence[AdapterFile], shares: Sequence[float]) -> tuple[dict[str, torch.Tensor], dict[str, int]]:
    """Return the tensors by their keys, and each module's rank."""
    found: dict[str, tuple[Target, list[Pair]]] = {}
    for file, share in zip(files, shares, strict=True):
        for name, target in file.targets.items():
            a, b = file.weights.get(target.a).float(), file.weights.get(target.b).float()
            pairs = found.setdefault(name, (target, []))[1]
            if pairs and (a.shape[1:], b.shape[:1]) != (pairs[0][0].shape[1:], pairs[0][1].shape[:1]):
                raise ExportError(
                    f"its {target.a!r} is for a layer of another width",
                    place=str(file.folder),
                    fix="combine those of one base",
                )
            scaled = finite(target.b, b * (share * target.scale), str(file.folder))
            pairs.append((finite(target.a, a, str(file.folder)), scaled))
    tensors: dict[str, torch.Tensor] = {}
    ranks: dict[str, int] = {}
    for name, (target, pairs) in found.items():
        a, b = torch.cat([one for one, _ in pairs]), torch.cat([one for _, one in pairs], dim=1)
        tensors |= {target.a: a.contiguous(), target.b: b.contiguous()}
        ranks[name.rpartition(".")[0]] = len(a)
    return tensors, ranks


def _config(configs: Sequence[dict[str, Any]], ranks: dict[str, int]) -> dict[str, Any]:
    """Return peft's config, whose scales are 1: they are in the factors."""
    ends = [config.get("target_modules") for config in configs]
    odd = any(config.get("layers_to_transform") or config.get("exclude_modules") for config in configs)
    whole = odd or not all(isinstance(one, list) for one in ends)  # then only whole names say which
    targets = sorted(ranks) if whole else sorted({end for one in ends for end in one or ()})
    usual = max(ranks.values())
    others = {re.escape(name): rank for name, rank in ranks.items() if rank != usual}
    return configs[0] | {
        "r": usual, "lora_alpha": usual, "rank_pattern": others, "alpha_pattern": others, "use_rslora": False,
        "target_modules": targets, "layers_to_transform": None, "layers_pattern": None, "lora_dropout": 0.0,
        "init_lora_weights": True, "inference_mode": True, "exclude_modules": None,
    }  # fmt: skip
