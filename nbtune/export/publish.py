"""Export and push in one: the adapter, the merged model or GGUF files, with a model card."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import HubError
from .adapter import export_adapter
from .card import model_card
from .files import gigabytes
from .hub import push_folder
from .source import ExportedFile, ExportSource, Progress

__all__ = ["push"]


def push(
    source: ExportSource,
    repo_id: str,
    *,
    what: str = "adapter",
    types: Sequence[str] = ("q8_0",),
    private: bool = True,
    card: Mapping[str, Any] | None = None,
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
        progress: of the export, then of the upload.
        judge: looks at GGUF files before they are pushed (see `prove_run`); what it finds is in the card.
        options: of `push_folder`: revision, create_pr, message, ...

    Raises:
        ExportError: the model cannot be exported so.
        HubError: see `push_folder`; no commit was made then.
    """
    if what not in ("adapter", "merged", "gguf"):
        raise HubError(f"{what!r} cannot be pushed", fix='use "adapter", "merged" or "gguf".')
    facts = dict(card or {})
    beside = source.adapter.parent if source.adapter else None
    with tempfile.TemporaryDirectory(prefix=".push-", dir=beside) as temporary:
        folder = Path(temporary) / "repository"
        files = _export(source, what, types, folder, progress)
        files = judge(files) if judge and what == "gguf" else files
        if what == "gguf":
            facts.setdefault("files", [_file_line(file) for file in files])
        if isinstance(facts.get("curve"), bytes):
            (folder / "loss.png").write_bytes(facts["curve"])
        (folder / "README.md").write_text(model_card(source, repo_id, what, facts), encoding="utf-8")
        return push_folder(folder, repo_id, private=private, progress=progress, **options)


def _export(
    source: ExportSource, what: str, types: Sequence[str], folder: Path, progress: Progress | None
) -> list[ExportedFile]:
    if what == "adapter":
        return [export_adapter(source, folder)]
    if what == "merged":
        from .merge import write_merged

        return [write_merged(source, folder, progress=progress)]
    from .gguf.writer import write_gguf

    folder.mkdir()
    return write_gguf(source, types, folder, progress=progress)


def _file_line(file: ExportedFile) -> str:
    judged = f", {file.quality.words()}" if file.quality else ""
    return f"`{file.path.name}`: {gigabytes(file.bytes)}{judged}"
