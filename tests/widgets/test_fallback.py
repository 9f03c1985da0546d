"""The text in a panel's place goes when the page shows the panel after all."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from nbtune.widgets import fallback


class Place:
    """An output of a cell: what was written into it, one after the other; tells when there is something."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.written = threading.Event()

    def update(self, shown: Any) -> None:
        self.said.append(shown.text)
        self.written.set()


@pytest.mark.parametrize(
    "look", [None, lambda picture: (fallback.Shown("Run a: finished"), False)], ids=["form", "run"]
)
def test_a_page_that_is_slow_takes_the_text_away(monkeypatch: pytest.MonkeyPatch, look: Any) -> None:
    monkeypatch.setattr(fallback, "PATIENCE", 0)
    monkeypatch.setattr(fallback, "EVERY", 0)
    said_hello, place = threading.Event(), Place()
    thread = threading.Thread(target=fallback._wait, args=(said_hello, look, place))
    thread.start()
    assert place.written.wait(240)
    assert "does not show" in place.said[0]
    said_hello.set()
    thread.join(240)
    assert not thread.is_alive()
    assert place.said[-1] == ""
