"""Everything that can be made of a run; each export is an event of the run, so that all of its panels show it."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbtune.disk import disk_errors
from nbtune.errors import ExportError, HubError, NbtuneError, TrainError
from nbtune.events import Export
from nbtune.export.llama_runner import find_llama, no_llama
from nbtune.export.saying import CANCELLED, ExportCancelled, Said, ShouldStop
from nbtune.export.source import ExportedFile, ExportSource, Progress
from nbtune.store import foreign
from nbtune.store.event_log import add_event
from nbtune.store.folder import loadable, refuse_outside
from nbtune.untrusted import refuse_links

if TYPE_CHECKING:
    import torch

    from nbtune.store.run_reader import RunReader


class Exporter:
    """Make what can be made of a run; each writes into ``<run>/exports`` unless told otherwise, and returns it.

    Args:
        run: the run.
        draw: writes its page into a file, see `html`.
    """

    def __init__(self, run: RunReader, draw: Callable[..., Any] | None = None) -> None:
        self._run, self._draw = run, draw

    def __repr__(self) -> str:
        kinds = 'gguf("q8_0", …), merged(), adapter(), adapter_gguf(), ollama(), html()'
        return f"<what can be made of {self._run.name}: {kinds}>"

    def source(self, *, weights: bool = True) -> ExportSource:
        """Return base and adapter as `nbtune.export` takes them.

        Args:
            weights: the base's are needed: of a model that was handed over they are written down now.

        Raises:
            TrainError: nothing was trained yet.
        """
        from nbtune import models
        from nbtune.models import handed_over
        from nbtune.spec.placement import PLAIN

        run, spec = self._run, self._run.spec
        adapter = run.folder / "adapter"
        refuse_outside(run.folder, error=ExportError)
        if not adapter.is_dir():
            raise TrainError(
                f"the run `{run.name}` has nothing to export yet", fix="let it train until its first checkpoint"
            )
        if spec.adapter.type == "full":
            return ExportSource(base=adapter, name=run.name, base_id=spec.model, method=spec.method)
        kept = PLAIN if run.plan is None else run.plan.weights
        base = models.resolve(loadable(spec, run.folder).model, weights=weights)
        if weights and handed_over.is_absent(base):
            handed_over.write_weights(base)
        about: dict[str, Any] = {"name": run.name, "base_id": spec.model, "method": spec.method}
        return ExportSource(base=base, adapter=adapter, weights=kept, **about)

    @property
    def can_verify(self) -> bool:
        """Return whether there is a llama.cpp to compare GGUF files with the model."""
        return find_llama() is not None

    def adapter(self, out: str | Path | None = None) -> ExportedFile:
        """Write the adapter as a peft folder."""
        from nbtune.export.peft_export import export_adapter

        with self._said("adapter") as said:
            return said.made(export_adapter(self.source(weights=False), self._out(out, "adapter")))

    def adapter_gguf(self, out: str | Path | None = None) -> ExportedFile:
        """Write the adapter as GGUF, for llama.cpp's ``--lora`` and Ollama's ``ADAPTER``.

        Raises:
            ExportError: the adapter has what such a file cannot hold (DoRA, whole modules).
        """
        from nbtune.export.gguf.lora import write_lora_gguf

        with self._said("adapter gguf") as said:
            return said.made(write_lora_gguf(self.source(), self._out(out), self._run.name))

    def merged(
        self, out: str | Path | None = None, *, dtype: str = "auto", should_stop: ShouldStop | None = None
    ) -> ExportedFile:
        """Write base and adapter as a transformers folder; `dtype` auto (the base's), bfloat16, float16 or float32.

        `should_stop` is asked while it is written: then nothing stays (`ExportCancelled`).
        """
        from nbtune.export.merge import write_merged

        with self._said("merged", should_stop=should_stop) as said:
            return said.made(write_merged(self.source(), self._out(out, "merged"), dtype, progress=said.progress))

    def gguf(
        self,
        *types: str,
        out: str | Path | None = None,
        progress: Progress | None = None,
        importance: bool | str | Path = False,
        verify: bool | None = None,
        should_stop: ShouldStop | None = None,
    ) -> list[ExportedFile]:
        """Write GGUF files, such as ``gguf("q8_0", "f16")``; q8_0 if no type is named.

        Of a family that nbtune does not write it is the merged model, with the commands of llama.cpp that finish it.

        Args:
            types: see `nbtune.export.export_gguf`.
            out: the folder for the files.
            progress: called with (bytes done, bytes in all, the tensor's name).
            importance: let K-quants spend their bits where the run's held-out rows feel them, or as a file of
                llama.cpp's `llama-imatrix` says.
            verify: let llama.cpp read the run's held-out rows with each file, and compare it with the trained model:
                same tokens, perplexity, answers. None: where there is a llama.cpp and memory for the model. What was
                found is each file's `quality`, and in the table of exports.
            should_stop: asked between tensors: then no file stays. A whole file stays, also where it is not compared.
        Raises:
            ExportCancelled: `should_stop` said so.
            ExportError: the model cannot be exported so; with verify=True also: it cannot be compared.
            DataError: the run's rows are gone, where they are needed.
        """
        from nbtune.export.gguf.unknown_family import is_unknown, write_for_llama_cpp
        from nbtune.export.gguf.writer import write_gguf

        _need_llama(verify)
        wanted = list(types) or ["q8_0"]
        with self._said(f"gguf {' '.join(wanted)}", progress, should_stop=should_stop) as said:
            source, where, name = self.source(), self._out(out), self._run.name
            if is_unknown(source):
                return [said.made(write_for_llama_cpp(source, wanted, where, name, progress=said.progress))]
            felt = self._felt(source, importance) if importance else None
            said.go_on()
            files = write_gguf(source, wanted, where, name, importance=felt, progress=said.progress)
            for file in files:
                said.made(file)
        return self._judged(files, source, verify, should_stop=should_stop)

    def ollama(
        self, type: str = "q8_0", out: str | Path | None = None, *, should_stop: ShouldStop | None = None
    ) -> ExportedFile:
        """Write a folder that `ollama create` takes: GGUF, Modelfile and the commands; `should_stop` as of `gguf`."""
        from nbtune.export.ollama import export_ollama

        with self._said("ollama", should_stop=should_stop) as said:
            return said.made(export_ollama(self.source(), self._out(out, "ollama"), type, progress=said.progress))

    def html(self, out: str | Path | None = None, *, rows: int = 3, losses: bool = True) -> ExportedFile:
        """Write a page that shows the run without a kernel, see `nbtune.Run.html`.

        Args:
            out: a file (its name has an ending), or the folder in which it is called ``NAME.html``.
            rows, losses: see `nbtune.Run.html`.
        Raises:
            ExportError: see there; or this exporter is of a run that is only read.
        """
        if self._draw is None:
            raise ExportError("a page is drawn by the run itself", fix=f'`nbtune.attach("{self._run.name}").html()`')
        place = self._out(out)
        path = place if place.suffix in (".html", ".htm") else place / f"{self._run.name}.html"
        begin = time.monotonic()
        with self._said("html", path=path.name) as said:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._draw(path, rows=rows, losses=losses)
            notes = (f"holds {rows} row{'s' * (rows > 1)} of the data",) if rows else ()
            seconds = time.monotonic() - begin
            return said.made(ExportedFile(path, "html", path.stat().st_size, seconds, notes))

    def card(self, repo_id: str, what: str, facts: Mapping[str, Any]) -> str:
        """Return the model card of a push, before there are files to name."""
        from nbtune.export.model_card import FILES_TO_COME, render_card

        told = self._named(facts) | ({"files": [FILES_TO_COME]} if what == "gguf" else {})
        return render_card(self.source(), repo_id, what, told)

    def push(
        self,
        repo_id: str,
        *,
        what: str = "adapter",
        private: bool = True,
        card: str | Path | None = None,
        facts: Callable[[], Mapping[str, Any]] = dict,
        types: Sequence[str] = ("q8_0",),
        importance: bool = False,
        verify: bool | None = None,
        should_stop: ShouldStop | None = None,
        **options: Any,
    ) -> str:
        """Push, see ``run.push_to_hub``; `facts` are of the card that is written where none is given."""
        from nbtune.export.hub_upload import check_push

        _need_llama(verify)
        with self._said("push", path=repo_id, should_stop=should_stop) as said:
            source = self.source()
            check_push(repo_id, private=private, create_pr=bool(options.get("create_pr")))
            felt = self._felt(source) if importance and what == "gguf" else None
            said.go_on()
            told = {"progress": said.progress, "importance": felt, **options}
            judge = lambda files: self._judged(files, source, verify, tell=False, should_stop=should_stop)  # noqa: E731
            url = push(
                source,
                repo_id,
                what=what,
                types=types,
                private=private,
                card=self._named(facts()),
                text=card,
                judge=judge,
                **told,
            )
            self._log(Export(kind="push", path=url))
        return url

    def _named(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        """Return a card's facts, with whose run it is where another trainer made it."""
        other = foreign.of(self._run.folder)
        return {**facts, **({"trainer": other.words} if other is not None else {})}

    def _felt(self, source: ExportSource, importance: bool | str | Path = True) -> Any:
        from nbtune.export.imatrix_file import read_importance
        from nbtune.export.importance_matrix import held_importance
        from nbtune.export.reference_model import held_rows

        if not isinstance(importance, bool):
            return read_importance(importance)
        return held_importance(source, held_rows(self._run.folder))

    def _judged(
        self,
        files: list[ExportedFile],
        source: ExportSource,
        verify: bool | None,
        *,
        tell: bool = True,
        should_stop: ShouldStop | None = None,
    ) -> list[ExportedFile]:
        from nbtune.export.verification import prove_run

        if verify is False or (should_stop is not None and should_stop()):
            return files
        prompts, told = list(self._run.spec.samples)[:3], self._tell if tell else None
        return prove_run(files, source, self._run.folder, prompts=prompts, must=bool(verify), told=told)

    def _out(self, out: str | Path | None, name: str = "") -> Path:
        if out is not None:
            return Path(out).expanduser()
        refuse_links(self._run.folder, "exports", error=ExportError)
        return self._run.folder / "exports" / name

    @contextmanager
    def _said(
        self, kind: str, progress: Progress | None = None, path: str = "", should_stop: ShouldStop | None = None
    ) -> Iterator[Said]:
        """Say as events that something is being made, how far it is, and what went wrong with it."""
        self._log(Export(kind=kind, path=path, done=0.0))
        try:
            with disk_errors(ExportError, place=path or kind):
                yield Said(self._log, self._tell, kind, path, progress, should_stop)
        except ExportCancelled:
            self._log(Export(kind=kind, path=path, detail=CANCELLED))
            raise
        except NbtuneError as error:
            self._log(Export(kind=kind, path=path, detail=str(error)))
            raise
        except BaseException as error:  # interrupted, or a bug: that it is over has to be said all the same
            self._log(Export(kind=kind, path=path, detail=f"ended by {type(error).__name__}"))
            raise

    def _log(self, event: Export) -> None:
        add_event(self._run.folder, event)

    def _tell(self, file: ExportedFile) -> None:
        """Say as an event that a file is there, or that more is known of it."""
        folder = self._run.folder
        shown = file.path.relative_to(folder).as_posix() if file.path.is_relative_to(folder) else file.path.name
        detail = "; ".join(file.remarks)
        figures = file.quality.figures() if file.quality else {}
        event = Export(
            kind=file.type, path=shown, bytes=file.bytes, seconds=file.seconds, detail=detail, quality=figures
        )
        self._log(event)


def _need_llama(verify: bool | None) -> None:
    if verify and find_llama() is None:
        raise no_llama()


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
    from nbtune.export.hub_upload import push_folder
    from nbtune.export.model_card import file_line, name_files, own_card, refuse_token, render_card

    facts, own = dict(card or {}), own_card(text)
    beside = source.adapter.parent if source.adapter else None
    with tempfile.TemporaryDirectory(prefix=".push-", dir=beside) as temporary:
        folder = Path(temporary) / "repository"
        files = _export(source, what, types, folder, importance, progress)
        files = judge(files) if judge and what == "gguf" else files
        if what == "gguf":
            facts.setdefault("files", [file_line(file) for file in files])
        if isinstance(facts.get("curve"), bytes):
            (folder / "loss.png").write_bytes(facts["curve"])
        readme = render_card(source, repo_id, what, facts) if own is None else name_files(own, files)
        refuse_token(readme)
        (folder / "README.md").write_text(readme, encoding="utf-8")
        return push_folder(folder, repo_id, private=private, progress=progress, **options)


def _export(
    source: ExportSource,
    what: str,
    types: Sequence[str],
    folder: Path,
    importance: Mapping[str, torch.Tensor] | None,
    progress: Progress | None,
) -> list[ExportedFile]:
    if what == "adapter":
        from nbtune.export.peft_export import export_adapter

        return [export_adapter(source, folder)]
    if what == "merged":
        from nbtune.export.merge import write_merged

        return [write_merged(source, folder, progress=progress)]
    from nbtune.export.gguf.writer import write_gguf

    folder.mkdir()
    return write_gguf(source, types, folder, importance=importance, progress=progress)
