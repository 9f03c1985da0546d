"""Who a GGUF file is: the ``general.*`` keys (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).

Catalogues, and tools that list files, show these; llama.cpp computes nothing by them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from nbtune.export.others_cards import stated_of_base
from nbtune.export.source import ExportSource, base_name, is_on_hub, safe_name

_HUB = "https://huggingface.co"


@dataclass(frozen=True)
class Size:
    """How many numbers a model has, how many of them are experts', and how many experts a layer has.

    >>> Size(600_000_000).label(), Size(46_700_000_000, 45_100_000_000, 8).label()
    ('600M', '8x7.2B')
    """

    numbers: int
    of_experts: int = 0
    experts: int = 0

    def label(self) -> str:
        """Return it as in the names of files."""
        from gguf import size_label

        each = self.of_experts // max(self.experts, 1)
        return size_label(self.numbers, self.numbers - self.of_experts, each, self.experts)


def write_general(writer: Any, kind: str, source: ExportSource, name: str, size: Size) -> None:
    """Write what is known of a model's origin.

    Args:
        writer: of the ``gguf`` package.
        kind: ``"model"`` or ``"adapter"``.
        source: what is exported.
        name: what it is called.
        size: how many numbers it has.
    """
    base, stated = base_name(source), stated_of_base(source)
    writer.add_type(kind)
    writer.add_name(general_name(name))
    writer.add_basename(basename(base))
    if source.method or source.adapter is not None:  # else it is the base itself, in another format
        writer.add_finetune(safe_name(name))
    writer.add_size_label(size.label())
    add = {
        "license": writer.add_license,
        "license_name": writer.add_license_name,
        "license_link": writer.add_license_link,
    }
    for key, value in stated.licence.items():
        add[key](value)
    writer.add_base_model_count(1)
    writer.add_base_model_name(0, base.split("/")[-1])
    if is_on_hub(source):
        writer.add_base_model_organization(0, base.split("/")[0])
        writer.add_base_model_repo_url(0, f"{_HUB}/{base}")
    writer.add_tags(["nbtune", *([source.method] if source.method else []), "text-generation"])
    if stated.languages:
        writer.add_languages(stated.languages)


def general_name(name: str) -> str:
    """Return `name` for ``general.name``: "phi3" or "phi-3" in it tells llama.cpp of tokens that may not be there."""
    return re.sub(r"phi-?3", "phi_3", name, flags=re.IGNORECASE)


def basename(base: str) -> str:
    """Return what a base's family is called, without its size and what was made of it.

    >>> basename("Qwen/Qwen3-0.6B"), basename("own-base")
    ('Qwen3', 'own-base')
    """
    from gguf import Metadata

    full, _, family, *_ = Metadata.get_model_id_components(base)
    return family or full or base
