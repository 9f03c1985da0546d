"""A bare page of Chromium with live panels: the kernel's real widgets, the page's real modules, no Jupyter between.

    with LivePage(chromium) as page:
        page.show(monitor(run))
        page.look("dark", 320)

Comms of this process lead into the page and back. Colours and type are those of JupyterLab's own themes.
"""

from __future__ import annotations

import base64
import json
import queue
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar

import comm
from comm.base_comm import BaseComm

REPO = Path(__file__).resolve().parents[2]
THEMES = Path(sys.prefix) / "share" / "jupyter" / "lab" / "themes" / "@jupyterlab"
QUIET = 0.5  # seconds without a message, after which a page has come to rest

_SHELL = """<!doctype html><html lang="en"><head><title>panels</title><style id="theme"></style>
<style>body { margin: 0; background: var(--jp-layout-color1); font-family: var(--jp-ui-font-family); }</style></head>
<body><main id="host"></main></body></html>"""


class _Comm(BaseComm):
    """A comm whose other end is the page."""

    said: ClassVar[queue.Queue[dict[str, Any]]] = queue.Queue()
    all: ClassVar[dict[str, _Comm]] = {}

    def publish_msg(self, msg_type: str, data: Any = None, metadata: Any = None, buffers: Any = None, **_: Any) -> None:
        data = data or {}
        self.all[self.comm_id] = self
        kind = {"comm_open": "open", "comm_close": "close"}.get(msg_type, data.get("method", ""))
        state = json.loads(json.dumps(data.get("state", {})))
        packed = [base64.b64encode(bytes(each)).decode() for each in buffers or []]
        if paths := data.get("buffer_paths"):
            state["$bytes"] = [[list(path), text] for path, text in zip(paths, packed, strict=True)]
        said = {"id": self.comm_id, "kind": kind, "state": state, "content": data.get("content"), "buffers": packed}
        self.said.put(said)


class LivePage:
    """A page of a browser (`playwright`'s) that shows one panel at a time."""

    def __init__(self, chromium: Any) -> None:
        self.page = chromium.new_page(viewport={"width": 1400, "height": 1000})
        self.complaints: list[str] = []
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", lambda said: said.type == "error" and self.complaints.append(said.text))
        self.themes = {
            look: (THEMES / f"theme-{look}-extension" / "index.css").read_text(encoding="utf-8")
            for look in ("light", "dark")
        }

    def __enter__(self) -> LivePage:
        self._create, self._manager = comm.create_comm, comm.get_comm_manager()
        comm.create_comm = _Comm  # widgets made from now on speak with this page
        self.page.set_content(_SHELL)
        self.page.expose_function("kernel", self._hear)
        self.page.add_script_tag(content=Path(__file__).with_suffix(".js").read_text(encoding="utf-8"))
        self.look("light", 1400)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        comm.create_comm = self._create
        self.page.close()

    @staticmethod
    def _hear(number: str, content: str) -> None:
        if (known := _Comm.all.get(number)) is not None:
            known.handle_msg({"content": {"data": {"method": "custom", "content": json.loads(content)}}, "buffers": []})

    def show(self, widget: Any, *, beside: bool = False) -> Any:
        """Mount a panel, in place of those that are there or below them; return the first one as a locator."""
        self._deliver()
        self.page.evaluate("([id, beside]) => mount(id, beside)", [widget.model_id, beside])
        self.rest()
        return self.page.locator("#host .nbt").first

    def clear(self) -> None:
        """Take all panels away, and what they brought into the page."""
        self.page.evaluate("() => clear()")

    def _deliver(self) -> int:
        said = []
        while True:
            try:
                said.append(_Comm.said.get_nowait())
            except queue.Empty:
                break
        if said:
            self.page.evaluate("(said) => deliver(said)", said)
        return len(said)

    def rest(self, until: str = "", seconds: float = 60) -> None:
        """Let kernel and page speak until nothing has been said for a while, and a selector is there.

        Raises:
            TimeoutError: it never was.
        """
        end, quiet = time.monotonic() + seconds, time.monotonic()
        while True:
            if self._deliver():
                quiet = time.monotonic()
            self.page.wait_for_timeout(30)  # messages of the page come in meanwhile
            there = not until or self.page.locator(until).count() > 0
            if there and time.monotonic() - quiet > QUIET:
                return
            if time.monotonic() > end:
                if not there:
                    raise TimeoutError(f"no {until}")
                return

    def click(self, selector: str, until: str = "") -> None:
        """Click what is seen of a selector first, and wait for what comes of it."""
        self.page.locator(f"{selector} >> visible=true").first.click()
        self.rest(until)

    def look(self, theme: str, width: int) -> None:
        """Show the panel in a theme and so many pixels wide."""
        self.page.evaluate(
            """([css, light]) => {
                document.getElementById("theme").textContent = css;
                document.body.dataset.jpThemeLight = light;
            }""",
            [self.themes[theme], str(theme == "light").lower()],
        )
        self.page.set_viewport_size({"width": width, "height": 1000})
        self.rest()
