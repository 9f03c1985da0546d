"""The inspector: how rows are read, and which of their tokens are trained."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

import traitlets

from nbtune.data.formats import FORMATS
from nbtune.spec import RunSpec
from nbtune.widgets.inspection import Inspection
from nbtune.widgets.panel import Panel
from nbtune.widgets.plain import clean

__all__ = ["Inspector"]


class Inspector(Panel):
    """Rows one by one: raw, rendered, as tokens; what is trained is coloured and underlined.

    Args:
        rows: rows themselves (a DataFrame, a list), a file, a Hub id, one of nbtune's sets, or a `RunSpec`.
        namespace: where variables named in `rows` are looked up.
        fields: more of the spec, such as ``model="…"`` or ``train_on="all"``.

    `spec` is what the panel's choices came to: ``nbtune.finetune(panel.spec, rows=…)`` trains on what was seen.
    """

    panel = "inspector"
    summary = traitlets.Dict().tag(sync=True)
    row = traitlets.Dict().tag(sync=True)

    def __init__(self, rows: Any, namespace: Mapping[str, Any] | None = None, **fields: Any) -> None:
        self._reading = threading.Lock()
        self.inspection = Inspection.of(rows, namespace, **fields)
        super().__init__(**self._shown(self.inspection, 0))

    @property
    def spec(self) -> RunSpec:
        """The spec with the reading that is shown."""
        return self.inspection.spec

    def _shown(self, inspection: Inspection, index: int) -> dict[str, Any]:
        summary = inspection.summary() | {"formats": sorted(FORMATS)}
        return {"summary": summary, "row": inspection.row(index) if summary["rows"] else {}}

    def do_row(self, index: int) -> None:
        """Shows a row."""
        self.row = self.inspection.row(max(0, min(len(self.inspection) - 1, int(index))))

    def do_search(self, text: str, back: bool = False) -> bool:
        """Shows the next row that holds `text`; False if none does."""
        index = self.inspection.search(str(text), self.row["index"], back=back)
        if index is not None:
            self.do_row(index)
        return index is not None

    def do_read(self, source: int, format: str | None, columns: dict[str, str]) -> None:
        """Reads a source otherwise."""
        self._change(lambda: self.inspection.with_reading(source=source, format=format, columns=columns))

    def do_train_on(self, rule: str) -> None:
        """Another rule for what is trained."""
        self._change(lambda: self.inspection.with_training(rule))

    def _change(self, make: Callable[[], Inspection]) -> None:
        def work() -> None:
            with self._reading:
                inspection = make()
                shown = self._shown(inspection, self.row.get("index", 0))
                self.inspection = inspection
                with self.hold_sync():
                    self.row, self.summary = shown["row"], shown["summary"]

        self.in_background(work, self._failed)

    def _failed(self, error: BaseException) -> None:
        finding = {"level": "error", "text": clean(self.words(error)), "fix": ""}
        self.summary = self.summary | {"findings": [finding]}
