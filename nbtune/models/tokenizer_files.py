"""A tokenizer's files for others to load: those of its base, byte for byte, and in them what a run changed.

transformers 5 writes a tokenizer anew and names a class of its own in it (`TokenizersBackend`), which transformers 4
and the tools that stand on it do not know. A run changes no token: at most the chat template is another one.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from nbtune.errors import SpecError
from nbtune.models.weight_checks import link_of_a_model
from nbtune.untrusted import SENTINEL, BadFile, is_machine_path, leads_out, load, refuse_links

CONFIG = "tokenizer_config.json"
TEMPLATE = "chat_template.jinja"
MORE_TEMPLATES = "additional_chat_templates"

_FILES = (
    "tokenizer.json",
    CONFIG,
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tekken.json",
    TEMPLATE,
    "chat_template.json",
)
_KINDS = ("*.model", "*.tiktoken")  # sentencepiece's, by many names; Qwen's and others' ranks
_OWN_CODE = "auto_map"  # a key of a tokenizer whose class lies beside it
_OF_A_LOADING = ("is_local", "local_files_only", "_commit_hash")  # of the one before it was saved
_INPUTS = ["input_ids", "attention_mask"]
_PORTABLE_CLASS = "PreTrainedTokenizerFast"  # known to transformers 4 and 5: all is in tokenizer.json


def save_tokenizer(tokenizer: Any, base: Path, folder: Path) -> None:
    """Write a run's tokenizer into `folder`.

    Args:
        tokenizer: the one of `base`, perhaps with another chat template.
        base: the base model's folder.
        folder: where; made if missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stated = _config_of(base)
    if not (base / "config.json").exists():  # nothing but a tokenizer, of one's own: not a byte of it is changed
        refuse_links(base.resolve(), error=SpecError)
        shutil.copytree(base, folder, dirs_exist_ok=True)
        if tokenizer.chat_template != _template_of(base, stated or {}):
            _put_template(folder, tokenizer.chat_template, stated or {})
        return
    if stated is None:  # its class finds it by other files than these: only that class knows which
        tokenizer.save_pretrained(folder)
    else:
        copy_tokenizer(base, folder)
        if tokenizer.chat_template != _template_of(base, stated):
            _put_template(folder, tokenizer.chat_template, stated)
    make_portable(folder)


def copy_tokenizer(origin: Path, folder: Path) -> None:
    """Copy a tokenizer's files (see `own_files`), byte for byte.

    Raises:
        SpecError: one of them is a link out of the folder.
    """
    for path in own_files(origin):
        place = folder / path.relative_to(origin)
        place.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, place)


def own_files(folder: Path) -> list[Path]:
    """Return a tokenizer's files, its templates and, where its class is not a library's, its code.

    Raises:
        SpecError: one of them is a link out of the folder.
    """
    kinds = [*_KINDS, f"{MORE_TEMPLATES}/*.jinja", *(["*.py"] if _OWN_CODE in (_config_of(folder) or {}) else [])]
    found = [path for kind in kinds for path in sorted(folder.glob(kind))]
    files = [path for path in [*(folder / name for name in _FILES), *found] if path.is_file()]
    if stranger := next((path for path in files if leads_out(path, folder)), None):
        raise link_of_a_model(stranger)
    return files


def make_portable(folder: Path) -> None:
    """Take out of a tokenizer's config what only one machine, or only transformers 5, knows; a config without such
    things stays byte for byte."""
    config = _config_of(folder)
    if config is None:
        return
    mended = {key: value for key, value in config.items() if not _is_of_a_machine(key, value)}
    if str(mended.get("tokenizer_class")).endswith("Backend") and (folder / "tokenizer.json").is_file():
        mended["tokenizer_class"] = _PORTABLE_CLASS
        mended.setdefault("model_input_names", _INPUTS)  # transformers 4 would add what no causal model takes
        mended.pop("backend", None)
    if isinstance(mended.get("extra_special_tokens"), list):  # transformers 4 wants a dict by this name
        mended.setdefault("additional_special_tokens", mended.pop("extra_special_tokens"))
    if mended != config:
        _write(folder, mended)


def _is_of_a_machine(key: str, value: Any) -> bool:
    """Return whether an entry of a tokenizer's config belongs to the machine that it was written on (a token may look
    like a path)."""
    is_path = isinstance(value, str) and not key.endswith("_token") and is_machine_path(value)
    return key in _OF_A_LOADING or is_path


def _config_of(folder: Path) -> dict[str, Any] | None:
    """Return what a tokenizer's config says; None where there is none that can be read."""
    try:
        return load(folder / CONFIG, number_below=SENTINEL)
    except (OSError, BadFile):
        return None


def _template_of(folder: Path, config: dict[str, Any]) -> Any:
    """Return the chat template of a folder as transformers reads it: a text, texts by name, or None."""
    named = {path.stem: path.read_text(encoding="utf-8") for path in (folder / MORE_TEMPLATES).glob("*.jinja")}
    if (folder / TEMPLATE).is_file():
        named["default"] = (folder / TEMPLATE).read_text(encoding="utf-8")
    if named:
        return named["default"] if set(named) == {"default"} else named
    stated = config.get("chat_template")
    if isinstance(stated, list):
        return {one.get("name"): one.get("template") for one in stated if isinstance(one, dict)}
    return stated


def _put_template(folder: Path, template: Any, stated: dict[str, Any]) -> None:
    """Write another chat template (a text, or texts by name) into a copy: as a file, and where old tools look."""
    named = template if isinstance(template, dict) else {"default": template}
    shutil.rmtree(folder / MORE_TEMPLATES, ignore_errors=True)
    (folder / "chat_template.json").unlink(missing_ok=True)
    (folder / TEMPLATE).unlink(missing_ok=True)
    for name, text in named.items():
        path = folder / TEMPLATE if name == "default" else folder / MORE_TEMPLATES / f"{name}.jinja"
        if text is not None:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
    if "chat_template" in stated:
        _write(folder, {**stated, "chat_template": named.get("default")})


def _write(folder: Path, config: dict[str, Any]) -> None:
    (folder / CONFIG).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
