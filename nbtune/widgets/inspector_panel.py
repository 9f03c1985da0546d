"""The inspector: how rows are read, and which of their tokens are trained."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import traitlets

from nbtune.data.formats.detect import FORMATS
from nbtune.engine.run_model import AtStep
from nbtune.errors import NbtuneError
from nbtune.spec import RunSpec
from nbtune.store.run_handle import RunHandle
from nbtune.store.run_reader import RunReader
from nbtune.widgets.chat_models import Answerers
from nbtune.widgets.panel import Panel
from nbtune.widgets.row_inspection import Inspection
from nbtune.widgets.sanitize import clean
from nbtune.widgets.uploads import keep

Losses = Sequence[float | None]


class Inspector(Panel):
    """Rows one by one: raw, rendered, as tokens; what is trained is coloured and underlined.

    Args:
        rows: rows themselves (a DataFrame, a list), a file, a Hub id, one of nbtune's sets, a `RunSpec`, or a run (its
            rows, with their losses).
        namespace: where variables named in `rows` are looked up.
        row: the row that is shown first, counted from 0.
        losses: of some rows (by number) the loss of each token, None where there is none; told beside the tokens.
        run: a run, or one at a checkpoint (``run.at(100)``): the tokens' losses are asked of it, row by row.
        fields: more of the spec, such as ``model="…"`` or ``train_on="all"``.

    `spec` is what the panel's choices came to: ``nbtune.finetune(panel.spec, rows=…)`` trains on what was seen.
    """

    panel = "inspector"
    summary = traitlets.Dict().tag(sync=True)
    row = traitlets.Dict().tag(sync=True)
    judges = traitlets.List().tag(sync=True)
    judge = traitlets.Unicode("").tag(sync=True)

    def __init__(
        self,
        rows: Any,
        namespace: Mapping[str, Any] | None = None,
        *,
        row: int = 0,
        losses: Mapping[int, Losses] | None = None,
        run: RunHandle | AtStep | None = None,
        **fields: Any,
    ) -> None:
        self._reading = threading.Lock()
        self.losses: dict[int, Losses] = dict(losses or {})
        self._past: list[Inspection] = []
        model_run: Any = rows if run is None and isinstance(rows, RunReader) else run
        self._who = Answerers(model_run)
        self.inspection = Inspection.of(rows, namespace, **fields)
        shown = self._shown(self.inspection, row)
        super().__init__(**shown, judges=self._who.choices(), judge=self._who.keys[1] if model_run is not None else "")
        if model_run is not None:
            self.in_background(self._judge, self._failed)

    @property
    def spec(self) -> RunSpec:
        """The spec with the reading that is shown."""
        return self.inspection.spec

    def _shown(self, inspection: Inspection, index: int) -> dict[str, Any]:
        summary = inspection.summary() | {"formats": sorted(FORMATS), "undo": len(self._past)}
        return {"summary": summary, "row": self._row(inspection, index) if summary["rows"] else {}}

    def _row(self, inspection: Inspection, index: int) -> dict[str, Any]:
        """Return a row, with its tokens' losses where they are known."""
        row = inspection.row(max(0, min(len(inspection) - 1, int(index))))
        losses_known = self.losses.get(row["index"])
        if losses_known is None:
            return row
        losses = [None if loss is None or math.isnan(loss) else round(float(loss), 4) for loss in losses_known]
        return row | {"losses": losses[: len(row["tokens"])]}

    def do_row(self, index: int) -> None:
        """Show a row; its losses come when they are known."""
        self.row = self._row(self.inspection, index)
        if self.judge and self.row["index"] not in self.losses:
            self.in_background(self._judge, self._failed)

    def do_search(self, text: str, back: bool = False) -> bool:
        """Show the next row that holds `text`; False if none does."""
        index = self.inspection.search(str(text), self.row["index"], back=back)
        if index is not None:
            self.do_row(index)
        return index is not None

    def do_read(self, source: int, format: str | None, columns: dict[str, str]) -> None:
        """Read a source otherwise."""
        self._change(lambda: self.inspection.with_reading(source=source, format=format, columns=columns))

    def do_upload(self, name: str, buffers: Any) -> str:
        """Show the rows of a file that was dropped here, and keep it in the working folder; return its name."""
        kept, spec = keep(name, buffers), self.inspection.spec
        self._change(lambda: Inspection.of(f"file:{kept}", model=spec.model, train_on=spec.train_on))
        return kept

    def do_train_on(self, rule: str) -> None:
        """Set another rule for what is trained."""
        self._change(lambda: self.inspection.with_training(rule))

    def do_span(self, first: int, last: int, train: bool) -> None:
        """Add a rule for the text of the tokens first..last (both counted) of the row that is shown."""
        index = self.row["index"]
        self._change(lambda: self.inspection.with_span(self.inspection.text_of(index, first, last), bool(train)))

    def do_text(self, text: str, train: bool) -> None:
        """Add a rule for a text of the row that is shown, as it is rendered.

        Raises:
            NbtuneError: it does not stand there.
        """
        if str(text) not in self.row.get("rendered", ""):
            raise NbtuneError("that text does not stand in the row", fix="select it among the tokens")
        self._change(lambda: self.inspection.with_span(str(text), bool(train)))

    def do_drop(self, rule: int) -> None:
        """Take a rule away."""
        self._change(lambda: self.inspection.without_span(int(rule)))

    def do_undo(self) -> None:
        """Take the last change back."""
        if self._past:
            self._change(self._past[-1], back=True)

    def _change(self, make: Callable[[], Inspection] | Inspection, *, back: bool = False) -> None:
        def work() -> None:
            with self._reading:
                inspection = make if isinstance(make, Inspection) else make()
                if back:
                    self._past.pop()
                else:
                    self._past.append(self.inspection)
                shown = self._shown(inspection, self.row.get("index", 0))
                self.inspection = inspection
                with self.hold_sync():
                    self.row, self.summary = shown["row"], shown["summary"]

        self.in_background(work, self._failed)

    # --- losses -----------------------------------------------------------------------------------------------------

    def do_look(self) -> None:
        """Look which runs and checkpoints there are by now."""
        choices = self._who.choices()
        if choices != self.judges:
            self.judges = choices

    def do_judge(self, key: str) -> None:
        """Take the losses of this run or checkpoint, by its key in `judges`; "": none."""
        if key and key not in {judge["key"] for judge in self._who.choices()}:
            raise NbtuneError("that run or checkpoint is not there any more")
        self.losses.clear()
        self.judge = str(key)
        self.row = self._row(self.inspection, self.row["index"])
        if key:
            self.in_background(self._judge, self._failed)

    def _judge(self) -> None:
        """Ask for the losses of the row that is shown: one forward."""
        with self._reading:
            index, key, inspection = self.row.get("index"), self.judge, self.inspection
            if index is None or index in self.losses or not key or self.row.get("error"):
                return
            self.losses[index] = self._who.losses(key, inspection.ids(index), inspection.spec.model)
            if self.judge == key and self.row["index"] == index:
                self.row = self._row(self.inspection, index)

    def _failed(self, error: BaseException) -> None:
        finding = {"level": "error", "text": clean(self.words(error)), "fix": "", "passing": True}
        lasting = [found for found in self.summary.get("findings", []) if not found.get("passing")]
        self.summary = self.summary | {"findings": [*lasting, finding]}
