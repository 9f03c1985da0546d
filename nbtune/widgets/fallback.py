"""When the page cannot show panels: text and a picture instead, within seconds, and the command that mends it.

A panel that is shown says hello. One that does not has most often a JupyterLab in another environment than the kernel,
without anywidget and ipywidgets: its place stays empty, or holds an error box. Then this says so below it, and, for a
run, how it goes on.
"""

from __future__ import annotations

import base64
import html
import os
import shlex
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nbtune.widgets.sanitize import without_home

PATIENCE = 3.5  # seconds for a page to say hello
LATE = 600.0  # seconds in which a page that is slow may still say it, of a panel that has nothing to go on with
EVERY = 1.0  # seconds between two updates of the text
PICTURE_EVERY = 4.0
_NEEDED = {"anywidget": "anywidget", "@jupyter-widgets/jupyterlab-manager": "ipywidgets"}


class Shown:
    """Text, and a picture where there is one, as an output without any widget."""

    def __init__(self, text: str, png: bytes = b"") -> None:
        self.text, self.png = text, png

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        picture = ""
        if self.png:
            data = base64.b64encode(self.png).decode("ascii")
            picture = f'<img alt="Loss over steps" src="data:image/png;base64,{data}">'
        text = f"<pre style='margin:0;white-space:pre-wrap;font-family:monospace'>{html.escape(self.text)}</pre>"
        return {"text/plain": self.text, "text/html": text + picture}


def has_page(shell: Any = None) -> bool:
    """Return whether a notebook page shows the running cell: it has sent the cell's id along. Kaggle says by itself who
    looks on.

    Args:
        shell: IPython's; None: the one that there is.
    """
    from IPython import get_ipython

    shell = get_ipython() if shell is None else shell  # type: ignore[no-untyped-call]
    if getattr(shell, "kernel", None) is None:
        return False
    if kind := kaggle():
        return kind == "Interactive"
    parent = shell.get_parent() if hasattr(shell, "get_parent") else getattr(shell, "parent_header", {})
    return bool((parent or {}).get("metadata", {}).get("cellId"))


def kaggle() -> str:
    """Return Interactive in Kaggle's editor, Batch where it saves and runs all (a papermill without
    a page), else ""."""
    return os.environ.get("KAGGLE_KERNEL_RUN_TYPE", "")


def stand_in(said_hello: threading.Event, look: Callable[[bool], tuple[Shown, bool]] | None) -> None:
    """Make an empty output in the cell that shows the panel, and wait for the page in a thread of its own.

    The output has to be there from the start: a page drops what a thread displays anew once its cell is done.

    Args:
        said_hello: set when the page has shown the panel; it ends the text, too.
        look: asked again and again (with whether a picture is due) for what to show, and whether it may still change;
            None: only what is missing is said.
    """
    from IPython.display import display

    handle = display(Shown(""), display_id=True)
    threading.Thread(target=_wait, args=(said_hello, look, handle), name="nbtune-no-page", daemon=True).start()


def _wait(said_hello: threading.Event, look: Callable[[bool], tuple[Shown, bool]] | None, handle: Any) -> None:
    if said_hello.wait(PATIENCE):
        return
    advice = command()
    handle.update(Shown(advice))
    more, due = look is not None, 0.0
    while more and look is not None:
        picture = time.monotonic() >= due
        due = time.monotonic() + PICTURE_EVERY if picture else due
        shown, more = look(picture)
        handle.update(Shown(f"{shown.text}\n\n{advice}", shown.png))
        if said_hello.wait(EVERY):
            break
    if said_hello.wait(LATE):  # a page that was slow shows the panel all the same
        handle.update(Shown(""))


def command() -> str:
    """Return what to do about it, for the environment that the Jupyter server runs in."""
    python = _server()
    missing = _missing(python) if python is not None else list(_NEEDED.values())
    where = without_home(python) if python is not None else "python"
    if not missing:
        return "This page does not show nbtune's panels: reload it, or open the notebook anew."
    packages = " ".join(missing)
    place = "" if python is not None else " (with the python that runs your Jupyter server)"
    return (
        f"This page does not show nbtune's panels: the Jupyter server's environment lacks {' and '.join(missing)}.\n"
        f"Install them there{place}, then reload the page:\n\n    {_quoted(where)} -m pip install {packages}"
    )


def _quoted(path: str) -> str:
    return path if path.startswith("~/") and " " not in path else shlex.quote(path)


def _server() -> Path | None:
    """Return the python of the process that started this kernel, by the name under which its environment has it."""
    import psutil

    try:
        words = psutil.Process(int(os.environ.get("JPY_PARENT_PID") or os.getppid())).cmdline()
    except (psutil.Error, ValueError):
        return None
    python = Path(words[0]) if words else Path()
    return python if python.is_absolute() and "python" in python.name else None


def _missing(python: Path) -> list[str]:
    extensions = python.parent.parent / "share" / "jupyter" / "labextensions"
    return [package for name, package in _NEEDED.items() if not (extensions / name).exists()]
