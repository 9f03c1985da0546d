"""The comparison: the losses of several runs on one chart, and what their specs differ in."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterable, Sequence
from typing import Any

import traitlets

from nbtune.errors import NbtuneError
from nbtune.store.folder import placed
from nbtune.store.run_handle import RunHandle
from nbtune.store.run_reader import RunReader
from nbtune.untrusted import open_file
from nbtune.widgets.panel import Panel
from nbtune.widgets.run_state import Watched
from nbtune.widgets.sanitize import clean, without_home

ROWS = 256  # of a run, as a picture: 22 KB
EVERY = 1.0  # seconds between two updates
MOST = 12


class Compare(Panel):
    """Several runs on one chart, live where they live.

    Args:
        runs: two to twelve runs.
    Raises:
        NbtuneError: there is nothing to compare.
    """

    panel = "compare"
    specs = traitlets.List().tag(sync=True)
    pictures = traitlets.List().tag(sync=True)
    columns = traitlets.List().tag(sync=True)
    apart = traitlets.Bool(False).tag(sync=True)  # their losses are of different tokens

    def __init__(self, runs: Iterable[RunReader | RunHandle]) -> None:
        self._changed, self._over = threading.Event(), threading.Event()
        self._watched: list[Watched] = []
        self.runs = list(runs)
        if not 2 <= len(self.runs) <= MOST:
            raise NbtuneError(f"{len(self.runs)} runs cannot be compared", fix=f"name two to {MOST} runs")
        self._watched = [Watched(run) for run in self.runs]
        self._changed.set()
        super().__init__(specs=differences(self.runs), apart=of_different_tokens(self.runs))
        for watched in self._watched:
            watched.listen(self._changed.set)
        threading.Thread(target=self._tell, name="nbtune-compare", daemon=True).start()

    def get_state(self, key: Any = None, drop_defaults: bool = False) -> dict[str, Any]:
        """Return the widget's state with a picture of now."""
        state = super().get_state(key, drop_defaults)
        if "pictures" in state or "columns" in state:
            fresh = dict(zip(("pictures", "columns"), self._pictures(), strict=True))
            state.update({name: value for name, value in fresh.items() if name in state})
        return state

    def close(self) -> None:
        """Stop listening and take the panel from the page."""
        self._over.set()
        self._changed.set()
        for watched in self._watched:
            watched.close()
        super().close()

    def _pictures(self) -> tuple[list[dict[str, Any]], list[bytes]]:
        both = [watched.view.snapshot(ROWS) for watched in self._watched]
        wanted = ("rows", "evals", "status")
        return [{name: body[name] for name in wanted} for body, _ in both], [rows for _, rows in both]

    def _tell(self) -> None:
        while not self._over.wait(EVERY):
            self._changed.wait()
            self._changed.clear()
            if not self._over.is_set():
                self.pictures, self.columns = self._pictures()


def of_different_tokens(runs: Sequence[RunReader | RunHandle]) -> bool:
    """Return whether the runs cut text into different tokens: a loss a token of one says nothing beside another's.

    Runs that speak by one tokenizer are alike; of several the vocabularies are compared, where the runs have kept them.
    """
    speaking: dict[str, list[RunReader | RunHandle]] = {}
    for run in runs:
        speaking.setdefault(placed(run.spec, run.folder).speaks, []).append(run)
    if len(speaking) == 1:
        return False
    return len({next(filter(None, map(_vocabulary, group)), name) for name, group in speaking.items()}) > 1


def _vocabulary(run: RunReader | RunHandle) -> str:
    """Return what is another for another vocabulary; nothing where the run has kept none."""
    for folder in ("adapter", "tokenizer"):
        try:
            with open_file(run.folder / folder / "tokenizer.json") as file:
                body = json.load(file)
            told = {"model": body["model"], "normalizer": body.get("normalizer"), "cut": body.get("pre_tokenizer")}
            return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
        except (OSError, LookupError, TypeError, ValueError, RecursionError):
            continue
    return ""


def differences(runs: Sequence[RunReader | RunHandle]) -> list[list[str]]:
    """Return what the specs of runs differ in: rows of a dotted key and its value for each run, as text."""
    flat = [_flat(run.spec.model_dump(mode="json")) for run in runs]
    keys = list(dict.fromkeys(key for spec in flat for key in spec))
    rows = [[key, *(_word(spec.get(key)) for spec in flat)] for key in keys]
    return [row for row in rows if len(set(row[1:])) > 1]


def _word(value: Any) -> str:
    if value is None or value == []:
        return ""
    if isinstance(value, float):
        value = f"{value:.8g}"  # 0.1 + 0.2 is 0.3
    elif isinstance(value, list):
        value = ", ".join(map(str, value))
    return clean(without_home(value), 120)


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict) and value:
        return {k: v for key, inner in value.items() for k, v in _flat(inner, f"{prefix}{key}.").items()}
    if isinstance(value, list) and value and isinstance(value[0], dict):
        numbered = {str(number): entry for number, entry in enumerate(value)} if len(value) > 1 else value[0]
        return _flat(numbered, prefix)
    return {prefix.rstrip("."): value}
