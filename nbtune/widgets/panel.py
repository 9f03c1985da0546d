"""What all panels share: their built module, Plotly on request, and buttons that work while a cell runs."""

from __future__ import annotations

import hashlib
import threading
import weakref
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import anywidget
import traitlets

from nbtune.errors import NbtuneError
from nbtune.widgets import fallback
from nbtune.widgets.sanitize import clean

STATIC = Path(__file__).parent / "static"


@cache
def asset(name: str) -> str:
    """Return the text of a built file of `widgets/static`.

    Raises:
        NbtuneError: it was not built.
    """
    path = STATIC / name
    if not path.is_file():
        raise NbtuneError(
            f"the panels' JavaScript is not there ({name})",
            place="nbtune.widgets",
            fix="build it once: `cd js && npm ci && npm run build` (a wheel brings it along)",
        )
    return path.read_text(encoding="utf-8")


class Panel(anywidget.AnyWidget):
    """The base of every panel.

    The page sends ``{"t": "do", "id": …, "do": name, …}``; the method ``do_<name>`` is called with the rest and its
    answer, or its error's text, goes back as ``{"t": "ack", "id": …}``. It may be called in any thread (a subshell's,
    while a cell runs in the main one), so it must return at once: what takes longer goes through `in_background`.
    """

    panel = ""  # the name of its module in static/
    _inside = traitlets.Instance(weakref.WeakSet, args=())  # ipywidgets keeps those that are open

    def __init__(self, **traits: Any) -> None:
        self._esm = asset(f"{self.panel}.js")
        self._css = asset("panels.css")
        self._said_hello, self._awaited = threading.Event(), False
        super().__init__(_anywidget_id=_style_id(), **traits)
        self.on_msg(self._hear)
        _reply_anywhere(self.comm)

    def close(self) -> None:
        """Take the panel from the page, and the panels that are shown in it."""
        super().close()
        for panel in list(self._inside):
            panel.close()

    def inside(self, panel: Panel) -> str:
        """Return the model of a panel that is shown in this one, and closed with it."""
        model = str(panel.model_id)
        self._inside.add(panel)
        if self.comm is None:  # this one was closed while that one was made
            panel.close()
        return model

    def _hear(self, _widget: Any, content: Any, buffers: Any) -> None:
        kind = content.get("t") if isinstance(content, Mapping) else None
        self._said_hello.set()
        if kind == "plotly?":
            self.send({"t": "plotly"}, [_plotly()])
        elif kind == "state?":  # of a page that was too slow to hear what was said since
            self.send_state([name for name in self.keys if not name.startswith("_")])
        elif kind == "do":
            self._do(dict(content), buffers)
        elif kind is not None:
            self.hear(dict(content), buffers)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: a panel of nbtune>"  # no address: a notebook run twice is the same

    _ipython_display_ = None  # ipywidgets 7 shows by this, and never asks for the bundle below

    def _repr_mimebundle_(self, **options: Any) -> Any:
        if self.comm is None:  # it was closed
            return None
        if not self._awaited and fallback.has_page():
            self._awaited = True
            fallback.stand_in(self._said_hello, self.in_words)
        return super()._repr_mimebundle_(**options)

    in_words: Callable[[bool], tuple[fallback.Shown, bool]] | None = None
    """What a page is shown that cannot show the panel, given whether a picture is due; and whether it may change."""

    def hear(self, content: dict[str, Any], buffers: Any) -> None:
        """Hear any other message of the page."""

    def _do(self, content: dict[str, Any], buffers: Any) -> None:
        number, name = content.pop("id", None), str(content.pop("do", ""))
        del content["t"]
        action: Callable[..., Any] | None = getattr(self, f"do_{name}", None)
        answer: dict[str, Any] = {"t": "ack", "id": number}
        try:
            if action is None:
                raise NbtuneError(f"this panel cannot {name!r}")
            answer["value"] = action(**content, **({"buffers": buffers} if buffers else {}))
        except Exception as error:  # noqa: BLE001  # whatever went wrong belongs on the page, not in the server's log
            answer["error"] = self.words(error)
        self.send(answer)

    @staticmethod
    def words(error: BaseException) -> str:
        """Return an error as one short text for people."""
        return clean(str(error) if isinstance(error, NbtuneError) else f"{type(error).__name__}: {error}", 1000)

    def in_background(self, work: Callable[[], Any], failed: Callable[[BaseException], None]) -> None:
        """Run `work` in a thread of its own; `failed` hears of an error."""

        def body() -> None:
            try:
                work()
            except Exception as error:  # noqa: BLE001  # a thread has nobody else to tell
                failed(error)

        threading.Thread(target=body, name=f"nbtune-{self.panel}", daemon=True).start()


@cache
def _style_id() -> str:
    """Return the name under which a page keeps the panels' style: a page has one style of a name.

    anywidget's own is the panel's class. Each class then brought a copy of what all share, and the copy that came last
    overrode the panels before it. A style of another version has another name: a notebook that was saved long ago
    doesn't take away what newer panels need.
    """
    return f"nbtune-{hashlib.sha256(asset('panels.css').encode()).hexdigest()[:12]}"


@cache
def _plotly() -> bytes:
    asset("LICENSES.txt")  # says how to build when nothing is there
    return (STATIC / "plotly.mjs.gz").read_bytes()


def _reply_anywhere(comm: Any) -> None:
    """Let clicks be handled in the subshell that the page sent them to.

    ipykernel 7.4 sends a comm's message to the subshell that last *published* on that comm, which is the main shell:
    a click waited until the running cell was done. On this instance we give the front-end's own choice back. Older
    versions have no such attribute and need nothing.
    """
    if hasattr(comm, "_reply_subshell_for"):
        comm._reply_subshell_for = lambda _data, default: default
