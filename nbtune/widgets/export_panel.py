"""The export panel: types of file with size, what they fit in and what they cost in quality; Ollama; push."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import traitlets

from nbtune.errors import NbtuneError
from nbtune.widgets.panel import Panel
from nbtune.widgets.watched import Watched

__all__ = ["CHOICES", "ExportPanel", "choices"]

# Bits a weight of llama.cpp's files, blocks' scales included, as the usual mixes come out for models of some billion
# parameters; a model with a small body and a large vocabulary comes out a little larger. Quality in three words.
CHOICES: dict[str, tuple[float, str]] = {
    "f16": (16.0, "same"),
    "bf16": (16.0, "same"),
    "q8_0": (8.5, "same"),
    "q6_k": (6.6, "good"),
    "q5_k_m": (5.7, "good"),
    "q4_k_m": (4.85, "fair"),
    "iq4_xs": (4.3, "fair"),
    "q3_k_m": (3.9, "rough"),
    "q2_k": (3.0, "rough"),
}
CARDS = (4, 6, 8, 12, 16, 24, 48, 80)  # GiB of memory that people have
_SPEED = {"f16": 130e6, "bf16": 70e6, "q8_0": 130e6}  # parameters a second, one thread
_SLOW = 20e6  # K-quants search for their scales
WATCH = 0.5


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

    def __init__(self, run: Any) -> None:
        self.run, self._watched = run, Watched(run)
        self.view = self._watched.view
        parameters = int(getattr(run.plan, "parameters", 0) or 0)
        super().__init__(run_name=self.view.status()["name"], choices=choices(parameters), **self._lists())
        self._watched.listen(self._show)

    def close(self) -> None:
        """Stops listening and takes the panel from the page."""
        self._watched.close()
        super().close()

    def _lists(self) -> dict[str, Any]:
        with self.view.lock:
            notes = [note for note in self.view.lists["notes"] if note["level"] == "error"]
            return {"files": list(self.view.lists["exports"]), "notes": notes[-5:]}

    def _show(self) -> None:
        lists = self._lists()
        if (lists["files"], lists["notes"]) != (self.files, self.notes):
            self.files, self.notes = lists["files"], lists["notes"]

    def do_gguf(self, types: list[str]) -> None:
        """GGUF files of these types."""
        unknown = [name for name in types if name not in CHOICES]
        if unknown or not types:
            raise NbtuneError("choose a type of file" if not types else f"there is no type {unknown[0]!r}")
        self._work("gguf", lambda: self.run.export.gguf(*types))

    def do_make(self, what: str) -> None:
        """`adapter`, `merged` or `ollama`."""
        if what not in ("adapter", "merged", "ollama"):
            raise NbtuneError(f"this panel cannot make {what!r}")
        self._work(what, lambda: getattr(self.run.export, what)())

    def do_push(self, repo: str, what: str = "adapter", private: bool = True) -> None:
        """Uploads with a model card."""
        self._work("push", lambda: self.run.push_to_hub(repo, what=what, private=private))

    def _work(self, name: str, work: Callable[[], Any]) -> None:
        if self.working:
            raise NbtuneError(f"{self.working} is still being made", fix="wait for it")
        self.working = name
        done = threading.Event()

        def body() -> None:
            try:
                work()
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


def choices(parameters: int) -> list[dict[str, Any]]:
    """Types with bytes, the smallest card (GiB) that holds file and some context, quality, and seconds to make."""
    found = []
    for name, (bits, quality) in CHOICES.items():
        size = int(parameters * bits / 8)
        needs = size * 1.1 + 2**30  # with buffers and a context of some thousand tokens
        fits = next((card for card in CARDS if needs <= 0.92 * card * 2**30), None)
        seconds = parameters / _SPEED.get(name, _SLOW)
        found.append({"type": name, "bytes": size, "fits": fits, "quality": quality, "seconds": seconds})
    return found
