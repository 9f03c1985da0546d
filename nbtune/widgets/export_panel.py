"""The export panel: types of file with size, what they fit in and what they cost in quality; folders; the push."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import traitlets

from nbtune.atomic_io import write_text
from nbtune.errors import NbtuneError
from nbtune.export.saying import ExportCancelled
from nbtune.planner import fits_in
from nbtune.spec.gguf_types import TYPES
from nbtune.store.run_handle import RunHandle
from nbtune.untrusted import from_here
from nbtune.widgets.panel import Panel
from nbtune.widgets.run_state import Watched
from nbtune.widgets.sanitize import clean

_SPEED = {"F32": 130e6, "F16": 130e6, "BF16": 70e6, "Q8_0": 130e6}  # parameters a second, one thread, by encoding
_SLOW = 20e6  # K-quants search for their scales
MAKES = ("adapter", "adapter_gguf", "merged", "ollama")
LONG = ("merged", "ollama")  # what can be cancelled
DTYPES = ("auto", "bfloat16", "float16", "float32")
WATCH = 0.5
_CARD = 400_000  # characters


class ExportPanel(Panel):
    """What can be taken home of a run, each with its line of code.

    Args:
        run: a run that has an adapter.
    """

    panel = "export"
    run_name = traitlets.Unicode("").tag(sync=True)
    choices = traitlets.List().tag(sync=True)
    files = traitlets.List().tag(sync=True)
    notes = traitlets.List().tag(sync=True)
    working = traitlets.Unicode("").tag(sync=True)
    cancelled = traitlets.Bool(False).tag(sync=True)  # how the one before ended
    llama = traitlets.Bool(False).tag(sync=True)
    card = traitlets.Dict().tag(sync=True)
    card_file = traitlets.Unicode("").tag(sync=True)
    account = traitlets.Unicode("").tag(sync=True)  # whose the Hub's token is, once somebody wants to push
    colab = traitlets.Bool(False).tag(sync=True)

    def __init__(self, run: RunHandle) -> None:
        self.run, self._watched, self._wanted_no_more = run, Watched(run), threading.Event()
        self.view = self._watched.view
        parameters = int(getattr(run.plan, "parameters", 0) or 0)
        self._card_path = Path(run.folder) / "exports" / "card.md"
        super().__init__(
            run_name=self.view.status()["name"],
            choices=choices(parameters),
            card_file=clean(from_here(self._card_path), 400),
            colab="google.colab" in sys.modules,
            llama=bool(getattr(run.export, "can_verify", False)),
            **self._lists(),
        )
        self._watched.listen(self._show)

    def close(self) -> None:
        """Stop listening and take the panel from the page."""
        self._watched.close()
        super().close()

    def _lists(self) -> dict[str, Any]:
        with self.view.lock:
            notes = [note for note in self.view.lists["notes"] if note["level"] == "error"]
            files = [
                {**file, **self._here(file), "fits": fits_in(file["bytes"])} for file in self.view.lists["exports"]
            ]
            return {"files": files, "notes": notes[-5:]}

    def _here(self, file: dict[str, Any]) -> dict[str, Any]:
        """Return where a file that is made lies, seen from the working folder, and whether it is a folder."""
        path = Path(self.run.folder) / file["path"]
        if file["done"] < 1 or "://" in file["path"] or not path.exists():
            return {"here": "", "folder": False}
        return {"here": clean(_from_working_folder(path), 600), "folder": path.is_dir()}

    def do_download(self, path: str) -> None:
        """Let Colab's page download a file of the list: its notebooks have no address for files.

        Raises:
            NbtuneError: this is not Colab, or it is none of the files.
        """
        if not self.colab or path not in [file["here"] for file in self.files]:
            raise NbtuneError("this page downloads by its own links")
        from google.colab import files

        files.download(path)

    def do_who(self) -> None:
        """Look whose the Hub's token is: the name before a repository's."""

        def look() -> None:
            from nbtune.export.hub_upload import account

            self.account = clean(account(), 100)

        if not self.account:
            self.in_background(look, lambda error: None)  # a push says what is wrong with it

    def do_cancel(self) -> None:
        """Leave what is being made; nothing half done stays."""
        self._wanted_no_more.set()

    def _show(self) -> None:
        lists = self._lists()
        if (lists["files"], lists["notes"]) != (self.files, self.notes):
            self.files, self.notes = lists["files"], lists["notes"]

    def do_gguf(self, types: list[str], importance: bool = False, verify: bool = True) -> None:
        """Make GGUF files of these types."""
        options: dict[str, Any] = {**_options(importance=importance, verify=verify), **self._until()}
        types_asked = _types(types)
        self._work("gguf", lambda: self.run.export.gguf(*types_asked, **options))

    def do_make(self, what: str, kind: str = "") -> None:
        """Make one of `MAKES`; `kind` is a merged model's dtype, or the type of Ollama's file."""
        self._work(what, make(self.run, what, kind, **(self._until() if what in LONG else {})))

    def do_card(self, repo: str, what: str = "adapter") -> None:
        """Send the model card of such a push as `card`."""

        def read() -> None:
            card = clean(self.run.model_card(repo, what=what), _CARD)
            self.card = {"repo": repo, "what": what, "text": card}

        self.in_background(read, self._failed)

    def do_push(
        self,
        repo: str,
        what: str = "adapter",
        private: bool = True,
        types: list[str] | None = None,
        branch: str = "",
        pull_request: bool = False,
        card: str | None = None,
    ) -> None:
        """Upload with a model card; one that was changed in the page is kept in the run's folder, too."""
        more: dict[str, Any] = {"types": _types(types or [])} if what == "gguf" else {}
        more |= {"revision": branch} if branch else {}
        more |= {"create_pr": True} if pull_request else {}

        def push() -> None:
            if card is not None:
                self._card_path.parent.mkdir(parents=True, exist_ok=True)
                write_text(self._card_path, card)
                more["card"] = self._card_path
            self.run.push_to_hub(repo, what=what, private=private, **more, **self._until())

        self._work("push", push)

    def _until(self) -> dict[str, Callable[[], bool]]:
        return {"should_stop": self._wanted_no_more.is_set}

    def _work(self, name: str, work: Callable[[], Any]) -> None:
        if self.working:
            raise NbtuneError(f"{self.working} is still being made", fix="wait for it, or cancel it")
        self._wanted_no_more.clear()
        self.cancelled, self.working = False, name
        done = threading.Event()

        def body() -> None:
            try:
                work()
            except ExportCancelled:
                self.cancelled = True
            finally:
                done.set()

        self.in_background(body, self._failed)
        self.in_background(lambda: self._watch(done), self._failed)

    def _watch(self, done: threading.Event) -> None:
        while not done.wait(WATCH):
            self._look()
        self._look()
        self.working = ""

    def _look(self) -> None:
        self._watched.catch_up()
        self._show()

    def _failed(self, error: BaseException) -> None:
        if isinstance(error, NbtuneError):
            self.view.note(f"{error.place}: {error.cause}" if error.place else error.cause, fix=error.fix)
        else:
            self.view.note(self.words(error))
        self._show()


def make(run: RunHandle, what: str, kind: str = "", **more: Any) -> Callable[[], Any]:
    """Return what makes one of `MAKES` of a run.

    Raises:
        NbtuneError: nothing of the kind can be made.
    """
    choices_known: Sequence[str] = {"merged": DTYPES, "ollama": tuple(TYPES)}.get(what, ())
    if what not in MAKES or (kind and kind not in choices_known):
        raise NbtuneError(f"this panel cannot make {f'{what} {kind}'.strip()!r}")
    options = {} if not kind else {"dtype": kind} if what == "merged" else {"type": kind}
    return lambda: getattr(run.export, what)(**options, **more)


def _from_working_folder(path: Path) -> str:
    try:
        return Path(os.path.relpath(path)).as_posix()
    except ValueError:  # Windows: on another drive
        return path.as_posix()


def _types(names: list[str]) -> list[str]:
    unknown = [name for name in names if name not in TYPES]
    if unknown or not names:
        raise NbtuneError("choose a type of file" if not names else f"there is no type {unknown[0]!r}")
    return names


def _options(*, importance: bool, verify: bool) -> dict[str, bool]:
    """Return what is not as it is by default."""
    return ({"importance": True} if importance else {}) | ({} if verify else {"verify": False})


def choices(parameters: int) -> list[dict[str, Any]]:
    """Return types with bytes, the smallest card (GiB) that holds file and some context, quality,
    and seconds to make."""
    types = []
    for kind in sorted(TYPES.values(), key=lambda kind: -kind.bits):
        size, speed = int(parameters * kind.bits / 8), _SPEED.get(kind.main, _SLOW)
        types.append({"type": kind.name, "bytes": size, "fits": fits_in(size), "quality": kind.quality})
        types[-1] |= {"seconds": parameters / speed, "usual": kind.usual}
    return types
