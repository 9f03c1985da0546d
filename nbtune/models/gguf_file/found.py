"""GGUF files that lie where people keep them: in the working folder, and where LM Studio has its models."""

from __future__ import annotations

import re
from pathlib import Path

from nbtune.disk import home_folder
from nbtune.models.config_facts import ModelFacts, facts_by_config
from nbtune.models.gguf_file.configs import config_of
from nbtune.models.gguf_file.header import read_header
from nbtune.models.gguf_file.tensors import main_dtype

_LM_STUDIO = (".lmstudio/models", ".cache/lm-studio/models")
_LATER_PART = re.compile(r"-(?!00001)\d{5}-of-\d{5}\.gguf$", re.IGNORECASE)
_NO_MODEL = re.compile(r"mmproj|[-_.]lora[-_.]|imatrix", re.IGNORECASE)
_MOST = 20


def gguf_files() -> list[str]:
    """Return them as a spec's `model` may name them; of a model in parts the first. What no model is called is left
    out."""
    mine = [path.name for path in sorted(Path.cwd().glob("*.gguf"))]
    home = home_folder()
    theirs = [
        f"~/{path.relative_to(home).as_posix()}"
        for folder in _LM_STUDIO
        for path in sorted((home / folder).glob("*/*/*.gguf"))
    ]
    return [name for name in [*mine, *theirs] if not _LATER_PART.search(name) and not _NO_MODEL.search(name)][:_MOST]


def facts_of_file(name: str) -> ModelFacts:
    """Return a file's facts by its header alone: nothing is written.

    Raises:
        SpecError: it is none that is read.
    """
    header = read_header(Path(name).expanduser())
    dtype = main_dtype(header)
    config, _ = config_of(header)
    headers = {tensor: {"dtype": dtype, "shape": stored.shape} for tensor, stored in header.tensors.items()}
    if "output.weight" in headers:
        headers["lm_head.weight"] = headers.pop("output.weight")
    return facts_by_config(name, config.to_dict(), headers)
