"""The home: a new run, and all runs that are there: to open, compare, resume, delete."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import traitlets

from nbtune.errors import NbtuneError
from nbtune.store import folder
from nbtune.store.run_handle import RunHandle
from nbtune.store.run_reader import RunReader
from nbtune.widgets.compare_panel import Compare
from nbtune.widgets.form_panel import Form
from nbtune.widgets.monitor_panel import BESIDE
from nbtune.widgets.panel import Panel
from nbtune.widgets.runs_overview import Overview


class Home(Panel):
    """All runs of a folder. One thing is open at a time, in place of the list.

    Args:
        attach: ``attach(folder)`` returns the handle of a run.
        plan, start: as for the form.
        namespace: the notebook's variables.
        root: the folder of runs.
    """

    panel = "home"
    runs = traitlets.List().tag(sync=True)
    found = traitlets.Int(-1).tag(sync=True)  # how many runs there are; -1: nobody has looked yet
    opened = traitlets.Dict().tag(sync=True)  # what is open instead of the list: its kind, of which run, its model's id
    trouble = traitlets.Unicode("").tag(sync=True)

    def __init__(
        self,
        attach: Callable[[Path], RunHandle],
        plan: Callable[..., Any],
        start: Callable[..., Any],
        namespace: Mapping[str, Any] | None = None,
        root: Path | None = None,
    ) -> None:
        self._attach, self._plan, self._start, self._namespace = attach, plan, start, namespace
        self.root = folder.runs_root() if root is None else root
        self._overview, self._opening = Overview(self.root), threading.Lock()
        self._open: Panel | None = None
        self._filled: dict[str, Any] = {}
        super().__init__()
        self.do_look()

    def do_look(self) -> None:
        """Look which runs there are by now, and how far they are; the page asks for it while somebody sees the list."""
        self.in_background(lambda: self._overview.look(self._tell), self._failed)

    def _tell(self, runs: list[dict[str, Any]]) -> None:
        if runs != self.runs:
            self.runs = runs
        self.found = self._overview.found

    # --- what is open -----------------------------------------------------------------------------------------------

    def do_new(self) -> None:
        """Show the form, as it was filled in last."""
        self._show("new", "", lambda: Form(self._plan, self._start, self._namespace, self._filled or None))

    def do_open(self, key: str, what: str = "monitor") -> None:
        """Show a run's monitor, or one of the panels that a monitor opens."""
        path = self._path(key)
        if what not in ("monitor", *BESIDE):
            raise NbtuneError(f"a home does not open {what!r}")

        def make() -> Panel:
            run = self._attach(path)
            opened: Panel = run.monitor() if what == "monitor" else BESIDE[what](run)
            return opened

        self._show(what, folder.name_of(path)[0], make)

    def do_compare(self, keys: list[str]) -> None:
        """Show some runs on one chart."""
        runs = [RunReader(self._path(key)) for key in keys]
        self._show("compare", "", lambda: Compare(runs))

    def do_resume(self, key: str) -> None:
        """Let a run go on from its last checkpoint, and show it."""
        path = self._path(key)
        self._show("monitor", folder.name_of(path)[0], lambda: self._attach(path).resume().monitor())

    def do_close(self) -> None:
        """Put away what is open: the list comes back."""
        with self._opening:
            self._put_away()
        self.do_look()

    def do_delete(self, keys: list[str]) -> None:
        """Delete runs with all that is in their folders."""
        paths = [self._path(key) for key in keys]

        def delete() -> None:
            try:
                for path in paths:
                    self._attach(path).delete()
            finally:
                self._overview.look(self._tell)

        self.trouble = ""
        self.in_background(delete, self._failed)

    def _path(self, key: str) -> Path:
        if key not in self._overview:
            raise NbtuneError("that run is not here any more")
        return self.root / key

    def _show(self, what: str, name: str, make: Callable[[], Panel]) -> None:
        def show() -> None:
            made = make()
            with self._opening:
                self._put_away()
                self._open = made
                self.opened = {"what": what, "name": name, "model": self.inside(made)}

        self.trouble = ""
        self.in_background(show, self._failed)

    def _put_away(self) -> None:
        former, self._open, self.opened = self._open, None, {}
        if isinstance(former, Form):
            self._filled = former.filled
        if former is not None:
            former.close()

    def _failed(self, error: BaseException) -> None:
        self.trouble = self.words(error)
