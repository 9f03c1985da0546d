"""What a model's name can be, asked of nobody: of no network, and of this machine only whether something is there."""

import difflib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from nbtune import hub_cache
from nbtune.errors import NbtuneError, SpecError
from nbtune.models.embedded import NAME as EMBEDDED
from nbtune.models.gguf_file.decoded import gguf_in, gguf_of
from nbtune.spec import unusual
from nbtune.untrusted import folder_named, shortened

if TYPE_CHECKING:
    from nbtune.spec import RunSpec

_HUB_ID = re.compile(r"(?:[A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*")
WELL_KNOWN = (  # `nbtune/models/well_known.py` has what they are
    *(f"HuggingFaceTB/SmolLM2-{size}-Instruct" for size in ("135M", "360M", "1.7B")),
    *(f"Qwen/Qwen3-{size}" for size in ("0.6B", "1.7B", "4B", "8B")),
    *(f"meta-llama/Llama-3.{size}-Instruct" for size in ("2-1B", "2-3B", "1-8B")),
)
_KEYS = ("model", "tokenizer", "teacher")
_VARIABLE = "var:"


def refuse_no_models(spec: "RunSpec") -> None:
    """Refuse names that can be no model's, and folders and files that are not there or hold none: no network is asked.

    Raises:
        SpecError: with its key.
    """
    for key, name in _named(spec):
        with NbtuneError.about(key):
            refuse_no_model(name, tokenizer=key == "tokenizer")


def refuse_no_model(name: str, *, tokenizer: bool = False) -> None:
    """Refuse one name; see `refuse_no_models`.

    Args:
        name: ``nbtune/tiny``, a folder, a GGUF file, or a Hub id.
        tokenizer: a folder need not hold a model.

    Raises:
        SpecError: it is none of these.
    """
    if name == EMBEDDED:
        return
    if (folder := folder_named(name)) is not None:
        if not tokenizer:
            refuse_without_config(folder, name)
        return
    refuse_odd_name(name)
    if gguf_of(name) is not None:
        return
    refuse_lost_path(name)
    if not _HUB_ID.fullmatch(name) or "--" in name or ".." in name:
        raise SpecError(f"{shortened(name)!r} is no model id", fix="Write it as org/name, or name a folder.")


def remarks(spec: "RunSpec") -> list[str]:
    """Return what can be said of a valid spec offline: numbers far from what is usual, models that are not here."""
    return [*unusual(spec), *said_of_models(spec)]


def said_of_models(spec: "RunSpec") -> list[str]:
    """Return a sentence for each model that is not on this machine, with the one that may be meant."""
    said = []
    for key, name in _named(spec):
        if name == EMBEDDED or folder_named(name) is not None or Path(name).expanduser().exists() or _is_cached(name):
            continue
        near = _nearest(name)
        then = f"did you mean `{key}: {near}`?" if near else "`nbtune plan` asks the Hub for it"
        said.append(f"`{key}: {shortened(name)}` is neither a folder here nor downloaded yet: {then}")
    return said


def meant(model: str) -> str:
    """Return a question with the name that one may be that the Hub does not know; "" where none is near.

    >>> from nbtune.models.names import meant
    >>> meant("HuggingFaceTB/SmolLM2-135M-Instrct")
    'Did you mean HuggingFaceTB/SmolLM2-135M-Instruct? '
    """
    near = _nearest(model)
    return f"Did you mean {near}? " if near else ""


def _named(spec: "RunSpec") -> Iterator[tuple[str, str]]:
    for key in _KEYS:
        name = getattr(spec, key)
        if name is not None and not name.startswith(_VARIABLE):
            yield key, name


def _is_cached(name: str) -> bool:
    caches = (hub_cache.user_cache(), *hub_cache.shared_caches())
    return any(hub_cache.snapshot(cache, "model", name) is not None for cache in caches)


def _nearest(name: str) -> str | None:
    """Return a model of the caches, or a well-known one, that is spelt nearly like it, with the same numbers."""
    plain = {each.casefold(): each for each in [EMBEDDED, *WELL_KNOWN, *hub_cache.cached("model")]}
    near = difflib.get_close_matches(name.casefold(), plain, n=3, cutoff=0.85)
    alike = (plain[each] for each in near if re.findall(r"\d+", each) == re.findall(r"\d+", name.casefold()))
    return next((each for each in alike if each != name), None)


def refuse_without_config(folder: Path, model: str) -> None:
    """Refuse a folder without a config.

    Raises:
        SpecError: it has none.
    """
    if (folder / "config.json").is_file():
        return
    inside = gguf_in(folder)
    fix = f"Name the file in it: {model}/{inside}." if inside else "Name the folder that save_pretrained made."
    raise SpecError(f"the folder {model} holds no config.json", fix=fix)


def refuse_lost_path(model: str) -> None:
    """Refuse what is written like a path where no folder is, and what is too long for a Hub id.

    Raises:
        SpecError: see above.
    """
    if model.startswith((".", "/", "~")) or model.count("/") > 1 or "\\" in model:
        raise SpecError(
            f"there is no model folder {shortened(model)}", fix="Check the path, or name a Hub id such as org/name."
        )
    if len(model) > 200:  # the Hub allows 96
        raise SpecError(f"{shortened(model)} is no model id", fix="Write it as org/name, or name a folder.")


def refuse_odd_name(model: str) -> None:
    """Refuse what cannot be a model's name, and say what may be meant: no disk and no network is asked.

    Raises:
        SpecError: it is one of nbtune's own that is not there, an address, or has quotes around it.
    """
    shown = shortened(model)
    if address := re.match(r"^https?://(?:www\.)?(?:huggingface\.co|hf\.co)/([\w.-]+/[\w.-]+)", model):
        raise SpecError(f"{shown} is an address", place="model", fix=f"write `model: {address[1]}`")
    if "://" in model:
        raise SpecError(f"{shown} is an address", place="model", fix="download it, and name its folder or GGUF file")
    if model[:1] in "“”„‘’«»" or model[-1:] in "“”„‘’«»":
        plain = model.strip("“”„‘’«»")
        raise SpecError(f"{shown} has curly quotes around it", place="model", fix=f"write `model: {shortened(plain)}`")
    if model.startswith("nbtune/"):
        raise SpecError(f"nbtune has no model {shown}", place="model", fix=f"write `model: {EMBEDDED}`: there is one")
