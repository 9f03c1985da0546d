"""Export and push in one: the adapter, the merged model or GGUF files, with a model card."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import HubError
from .adapter import export_adapter
from .card import FILES_TO_COME, model_card
from .files import gigabytes
from .hub import push_folder
from .source import ExportedFile, ExportSource, Progress

if TYPE_CHECKING:
    import torch

__all__ = ["push"]


def push(
    source: ExportSource,
    repo_id: str,
    *,
    what: str = "adapter",
    types: Sequence[str] = ("q8_0",),
    private: bool = True,
    card: Mapping[str, Any] | None = None,
    text: str | Path | None = None,
    importance: Mapping[str, torch.Tensor] | None = None,
    progress: Progress | None = None,
    judge: Callable[[list[ExportedFile]], list[ExportedFile]] | None = None,
    **options: Any,
) -> str:
    """Push a trained model with its card, and return its address.

    Args:
        source: base and adapter.
        repo_id: ``"owner/name"``, or ``"name"`` for the account that is logged in.
        what: ``"adapter"``, ``"merged"`` or ``"gguf"``.
        types: of the GGUF files.
        private: see `push_folder`.
        card: facts for the model card, see `model_card`; ``curve`` may be a PNG's bytes.
        text: a model card of one's own: its text, or a file ending in .md. Where it has the line `FILES_TO_COME`, the
            GGUF files are named.
        importance: see `write_gguf`.
        progress: of the export, then of the upload.
        judge: looks at GGUF files before they are pushed (see `prove_run`); what it finds is in the card.
        options: of `push_folder`: revision, create_pr, message, ...

    Raises:
        ExportError: the model cannot be exported so.
        HubError: see `push_folder`; the card cannot be read, or holds the token. No commit was made then.
    """
    if what not in ("adapter", "merged", "gguf"):
        raise HubError(f"{what!r} cannot be pushed", fix='use "adapter", "merged" or "gguf".')
    facts, own = dict(card or {}), _own_card(text)
    beside = source.adapter.parent if source.adapter else None
    with tempfile.TemporaryDirectory(prefix=".push-", dir=beside) as temporary:
        folder = Path(temporary) / "repository"
        files = _export(source, what, types, folder, importance, progress)
        files = judge(files) if judge and what == "gguf" else files
        if what == "gguf":
            facts.setdefault("files", [_file_line(file) for file in files])
        if isinstance(facts.get("curve"), bytes):
            (folder / "loss.png").write_bytes(facts["curve"])
        readme = model_card(source, repo_id, what, facts) if own is None else _with_files(own, files)
        (folder / "README.md").write_text(_without_token(readme), encoding="utf-8")
        return push_folder(folder, repo_id, private=private, progress=progress, **options)


def _own_card(text: str | Path | None) -> str | None:
    """The text of somebody's own card."""
    if text is None or (isinstance(text, str) and ("\n" in text or not text.endswith(".md"))):
        return text
    try:
        return Path(text).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise HubError("the model card cannot be read", place=str(text), fix="give its text, or a .md file.") from None


def _with_files(card: str, files: Sequence[ExportedFile]) -> str:
    return card.replace(FILES_TO_COME, "\n- ".join(_file_line(file) for file in files))


def _without_token(card: str) -> str:
    """The card, unless the token that is logged in stands in it.

    Raises:
        HubError: it does; what is on the Hub is read by others.
    """
    from huggingface_hub import get_token

    token = get_token()
    if token and token in card:
        raise HubError("the model card holds your token", place="README.md", fix="take it out, and push again.")
    return card


def _export(
    source: ExportSource,
    what: str,
    types: Sequence[str],
    folder: Path,
    importance: Mapping[str, torch.Tensor] | None,
    progress: Progress | None,
) -> list[ExportedFile]:
    if what == "adapter":
        return [export_adapter(source, folder)]
    if what == "merged":
        from .merge import write_merged

        return [write_merged(source, folder, progress=progress)]
    from .gguf.writer import write_gguf

    folder.mkdir()
    return write_gguf(source, types, folder, importance=importance, progress=progress)


def _file_line(file: ExportedFile) -> str:
    judged = f", {file.quality.words()}" if file.quality else ""
    return f"`{file.path.name}`: {gigabytes(file.bytes)}{judged}"
