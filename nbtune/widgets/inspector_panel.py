"""The inspector: how rows are read, and which of their tokens are trained."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import traitlets

from nbtune.data.formats import FORMATS
from nbtune.spec import RunSpec
from nbtune.widgets.inspection import Inspection
from nbtune.widgets.panel import Panel
from nbtune.widgets.plain import clean

__all__ = ["Inspector"]

Losses = Sequence[float | None]


class Inspector(Panel):
    """Rows one by one: raw, rendered, as tokens; what is trained is coloured and underlined.

    Args:
        rows: rows themselves (a DataFrame, a list), a file, a Hub id, one of nbtune's sets, or a `RunSpec`.
        namespace: where variables named in `rows` are looked up.
        row: the row that is shown first, counted from 0.
        losses: of some rows (by number) the loss of each token, None where there is none; told beside the tokens.
        fields: more of the spec, such as ``model="…"`` or ``train_on="all"``.

    `spec` is what the panel's choices came to: ``nbtune.finetune(panel.spec, rows=…)`` trains on what was seen.
    """

    panel = "inspector"
    summary = traitlets.Dict().tag(sync=True)
    row = traitlets.Dict().tag(sync=True)

    def __init__(
        self,
        rows: Any,
        namespace: Mapping[str, Any] | None = None,
        *,
        row: int = 0,
        losses: Mapping[int, Losses] | None = None,
        **fields: Any,
    ) -> None:
        self._reading = threading.Lock()
        self.losses: dict[int, Losses] = dict(losses or {})
        self.inspection = Inspection.of(rows, namespace, **fields)
        super().__init__(**self._shown(self.inspection, row))

    @property
    def spec(self) -> RunSpec:
        """The spec with the reading that is shown."""
        return self.inspection.spec

    def _shown(self, inspection: Inspection, index: int) -> dict[str, Any]:
        summary = inspection.summary() | {"formats": sorted(FORMATS)}
        return {"summary": summary, "row": self._row(inspection, index) if summary["rows"] else {}}

    def _row(self, inspection: Inspection, index: int) -> dict[str, Any]:
        """A row, with its tokens' losses where they are known."""
        row = inspection.row(max(0, min(len(inspection) - 1, int(index))))
        known = self.losses.get(row["index"])
        if known is None:
            return row
        told = [None if loss is None or math.isnan(loss) else round(float(loss), 4) for loss in known]
        return row | {"losses": told[: len(row["tokens"])]}

    def do_row(self, index: int) -> None:
        """Shows a row."""
        self.row = self._row(self.inspection, index)

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
