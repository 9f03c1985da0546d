"""The monitor: a run's charts and buttons in the page, live while it trains and complete after a reload."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from typing import Any

import traitlets

from nbtune.errors import NbtuneError
from nbtune.events import ENDED
from nbtune.keepalive import heart
from nbtune.store import folder
from nbtune.store.run_handle import RunHandle
from nbtune.store.run_reader import RunReader
from nbtune.widgets.fallback import Shown
from nbtune.widgets.panel import Panel
from nbtune.widgets.run_state import Cursor, Watched

LOOK = 1.0  # seconds between looks whether the run's process is still there
RARELY = 5.0  # the same, while nobody sees the panel
WATCH = 0.5  # seconds between looks at a run that has ended, while it is exported


def _chat(run: RunHandle) -> Panel:
    from nbtune.widgets.chat_panel import Chat

    return Chat(run)


def _export(run: RunHandle) -> Panel:
    from nbtune.widgets.export_panel import ExportPanel

    return ExportPanel(run)


def _losses(run: RunHandle) -> Panel:
    from nbtune.widgets.losses_panel import Losses

    return Losses(run).panel()


def _compare(run: RunHandle) -> Panel:
    from nbtune.widgets.compare_panel import Compare

    return Compare([run, *_others(run)])


def _others(run: RunHandle) -> list[RunReader]:
    """Return the newest other runs of its folder that have come as far as a loss.

    Raises:
        NbtuneError: there is none.
    """
    others = (RunReader(path) for path in folder.all_folders(run.folder.parent) if path != run.folder)
    some = list(itertools.islice((other for other in others if not other.trouble and other.step), BESIDES))
    if not some:
        raise NbtuneError("there is no other run to compare with", fix="start a second one")
    return some


BESIDES = 3  # other runs that a run is compared with
BESIDE: dict[str, Callable[[RunHandle], Panel]] = {
    "chat": _chat,
    "export": _export,
    "compare": _compare,
    "losses": _losses,
}
"""The panels that a monitor opens, by the name of their button."""


class Monitor(Panel):
    """Loss, evaluation, learning rate, speed, memory and time left of a run, with its buttons.

    Each page says whether somebody sees the panel there (``{"t": "seen", "page": …, "seen": …}``). While nobody does,
    nothing is made and nothing is sent, but for the end of the run; the first look brings all of it.

    Args:
        run: the run to show, and to tell what to do.

    Example:
        >>> nbtune.widgets.monitor(nbtune.attach("demo"))
        <Monitor: a panel of nbtune>
    """

    panel = "monitor"
    snapshot = traitlets.Dict().tag(sync=True)
    snapshot_rows = traitlets.Bytes().tag(sync=True)
    opened = traitlets.Dict().tag(sync=True)  # the panel that is shown in this one: its kind, and its model's id
    finish = traitlets.Unicode("").tag(sync=True)  # the model of the card that says what a run came to

    def __init__(self, run: RunHandle) -> None:
        self.run = run
        self._watched = Watched(run)
        self.view = self._watched.view
        self._cursor = Cursor()
        self._sending = threading.Lock()
        self._said = time.monotonic()
        self._over = threading.Event()
        self._beside: Panel | None = None
        self._card: Panel | None = None
        self._seeing, self._pages, self._opening = threading.RLock(), dict[str, bool](), threading.Lock()
        self.view.delta(self._cursor)  # the first picture, sent with the opening, has all of it
        super().__init__()
        self._watched.listen(self._tell)
        self._start_heart()

    def get_state(self, key: Any = None, drop_defaults: bool = False) -> dict[str, Any]:
        """Return the widget's state with a picture of now, so that a reloaded page or a second one is complete."""
        state = super().get_state(key, drop_defaults)
        if "snapshot" in state or "snapshot_rows" in state:
            body, rows = self.view.snapshot()
            fresh = {"snapshot": body, "snapshot_rows": rows}
            state.update({name: fresh[name] for name in fresh if name in state})
        return state

    def close(self) -> None:
        """Stop listening and take the panel from the page; the run goes on."""
        self._over.set()
        self._watched.close()
        super().close()

    def _tell(self) -> None:
        with self._sending:
            body, rows = self.view.delta(self._cursor)
            self._said = time.monotonic()
            self.send(body, [rows])
        if not body["status"]["live"]:
            self._keep()

    @property
    def seen(self) -> bool:
        """Somebody sees it, or no page has said yet that nobody does."""
        return not self._pages or any(self._pages.values())

    def _see(self, page: str, seen: bool) -> None:
        with self._seeing:
            before, self._pages[page] = self.seen, seen
            turned = self.seen != before
            if turned and not self.seen:
                return self._watched.rest()
            if turned:
                self._watched.catch_up()
                self._watched.listen(self._tell)
        if turned:
            self._tell()
        self._show_card()

    def _show_card(self) -> None:
        """Show what the run came to, as soon as somebody sees that it has ended."""
        from nbtune.widgets.finish_panel import Finish

        with self._seeing:
            done = self.run.state in ("finished", "stopped") and bool(self.run.step)
            if self._card is not None or not done or not any(self._pages.values()):
                return
            card = self._card = Finish(self.run, self.view)
        self.finish = self.inside(card)

    def _hide_card(self) -> None:
        with self._seeing:
            card, self._card = self._card, None
        self.finish = ""
        if card is not None:
            card.close()

    def _keep(self) -> None:
        """Assign the picture at the end: a notebook run without a page stores assigned traits only."""
        body, rows = self.view.snapshot()
        with self.hold_sync():
            self.snapshot_rows = rows
            self.snapshot = body

    def in_words(self, picture: bool) -> tuple[Shown, bool]:
        """Show, on a page that cannot show the panel, a line of text, and now and then a picture."""
        from nbtune.widgets.run_report import Report

        report = Report(self.run)
        self._png = report.png() if picture and len(report.view.series) else self._png
        lines = [report.title, *(f"  {name}: {value}" for name, value in report.facts())]
        commands = f"  %nbtune pause {self.run.name} · %nbtune stop {self.run.name}"
        live = report.status["live"]
        return Shown("\n".join([*lines, commands] if live else lines), self._png), live

    _png = b""

    def _start_heart(self) -> None:
        self._tell()
        threading.Thread(target=self._beat, name=f"nbtune-heart-{self.run.name}", daemon=True).start()

    def _beat(self) -> None:
        live = True
        while live and not self._over.wait(LOOK if self.seen else RARELY):
            live = self.run.state not in ENDED
            if not live:
                self._watched.catch_up()
                self.view.standing.look_again()
                self._tell()
                self._show_card()
            elif not self.seen:
                self._watched.catch_up()  # little by little: whoever looks again need not wait for an hour's steps
            elif 0 < heart.seconds <= time.monotonic() - self._said:
                self._said = time.monotonic()
                self.send({"t": "hb"})

    def hear(self, content: dict[str, Any], buffers: Any) -> None:
        if content["t"] == "seen":
            self._see(str(content.get("page", "")), bool(content["seen"]))
        elif content["t"] == "need":
            body, rows = self.view.snapshot()
            self.send(body, [rows])
        elif content["t"] == "range":  # somebody looks closer
            body, rows = self.view.detail(float(content["low"]), float(content["high"]))
            self.send(body, [rows])

    def do_pause(self) -> None:
        self.run.pause()

    def do_unpause(self) -> None:
        self.run.unpause()

    def do_stop(self) -> None:
        self.run.stop()

    def do_drop(self) -> None:
        """Stop without saving."""
        self.run.stop(save=False)

    def do_checkpoint(self) -> None:
        self.run.checkpoint()

    def do_sample(self) -> None:
        if not self.view.standing.asks:
            raise NbtuneError("there are no prompts to ask", fix="add `samples: [a question, …]`, or hold rows out")
        self.run.sample()

    def do_rate(self, rate: float) -> None:
        """Set another peak of the learning rate."""
        self.run.set_learning_rate(float(rate))

    def do_resume(self, step: int | None = None) -> None:
        self._work(lambda: self._resume(step))

    def _resume(self, step: int | None) -> None:
        self._hide_card()
        self.run.resume(step=step)
        with self._seeing:
            if self.seen:
                self._watched.listen(self._tell)
        self._start_heart()

    def do_open(self, what: str) -> None:
        """Show a panel of `BESIDE` below; it is closed by `do_close`."""
        if what not in BESIDE:
            raise NbtuneError(f"a monitor does not open {what!r}")
        if what == "compare":
            _others(self.run)  # that there is none is said beside the button
        self.in_background(lambda: self._open(what), self._failed)

    def _open(self, what: str) -> None:
        with self._opening:  # a second click waits for the first, whose panel it would close
            if self.opened.get("what") != what:
                self.do_close()
                self._beside = BESIDE[what](self.run)
            assert self._beside is not None
            self.opened = {"what": what, "model": self.inside(self._beside)}

    def do_close(self) -> None:
        """Put the panel away that was opened."""
        self.opened = {}
        if self._beside is not None:
            self._beside.close()
            self._beside = None

    def _work(self, work: Callable[[], Any]) -> None:
        """Work in the background; what the run says meanwhile is shown, though nobody pumps a run that has ended."""
        done = threading.Event()

        def body() -> None:
            try:
                work()
            finally:
                done.set()

        def watch() -> None:
            while not done.wait(WATCH):
                self._look()
            self._look()

        self.in_background(body, self._failed)
        self.in_background(watch, self._failed)

    def _look(self) -> None:
        if self._watched.catch_up():
            self._tell()

    def _failed(self, error: BaseException) -> None:
        if isinstance(error, NbtuneError):
            place = f"{error.place}: " if error.place else ""
            self.view.note(f"{place}{error.cause}", fix=error.fix)
        else:
            self.view.note(self.words(error))
        self._tell()
