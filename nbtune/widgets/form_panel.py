"""The form: a spec by clicking, with the same spec as YAML beside it, what it will cost, and a start button."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import traitlets

from nbtune import device
from nbtune.data.sources.files import ending
from nbtune.errors import DataError, NbtuneError, SpecError
from nbtune.spec import RunSpec, from_mapping, from_yaml, parse_value, placing, to_yaml
from nbtune.store.folder import following
from nbtune.widgets import form_data, form_models
from nbtune.widgets.form_errors import described, unusual
from nbtune.widgets.form_fields import CARE, GOALS, GROUPS, fields, preset
from nbtune.widgets.panel import Panel
from nbtune.widgets.row_inspection import Inspection
from nbtune.widgets.run_status import has_vram
from nbtune.widgets.sanitize import clean, without_home
from nbtune.widgets.uploads import keep


class Form(Panel):
    """A spec by clicking, in three steps: rows, model, training.

    Args:
        plan: ``plan(spec, rows=namespace)`` says what a spec will cost; with ``machine=name``, on one that is not here.
        start: ``start(spec, name=…, rows=namespace)`` starts it and returns the run.
        namespace: the notebook's variables; those that hold rows are offered as data.
        values: what is filled in at first, by dotted key.

    `spec` is the last valid spec, `run` what was started last; each run's monitor stays below the form.
    """

    panel = "form"
    setup = traitlets.Dict().tag(sync=True)
    values = traitlets.Dict().tag(sync=True)
    checked = traitlets.Dict().tag(sync=True)
    costs = traitlets.Dict().tag(sync=True)
    reading = traitlets.Dict().tag(sync=True)
    monitors = traitlets.List().tag(sync=True)
    judged = traitlets.List().tag(sync=True)
    machine = traitlets.Unicode("").tag(sync=True)
    name = traitlets.Unicode("run").tag(sync=True)  # of the next run

    def __init__(
        self,
        plan: Callable[..., Any],
        start: Callable[..., Any],
        namespace: Mapping[str, Any] | None = None,
        values: Mapping[str, Any] | None = None,
    ) -> None:
        self._plan, self._start, self.namespace = plan, start, namespace
        self._newest, self._planning, self._looking = 0, threading.Lock(), threading.Lock()
        self._judging = threading.Lock()
        self._rows_of: RunSpec | None = None
        self.spec: RunSpec | None = None
        self.run: Any = None
        first = {"model": form_models.TOY, **(values or {})}
        self._offered = form_models.offers()
        super().__init__(setup=self._setup(self._offered), values=first)
        self._titles = {field["key"]: str(field["title"]) for field in self.setup["fields"]}
        self.do_check(dict(first))
        self._judge("")

    @property
    def filled(self) -> dict[str, Any]:
        """What it is filled in with, by dotted key; nothing where that is no valid spec yet."""
        return {} if self.spec is None else _flat(self.spec)

    def do_machine(self, name: str) -> None:
        """Say what fits, and what the spec costs, on a machine that is not here; of no name: on this one."""
        if name == self.machine:
            return
        if name:
            device.machine(name)  # raises where there is none
        self.machine = name
        self._judge(name)
        if self.spec is not None and not self.checked.get("error"):
            self._reckon(self.spec, self.values)

    def _judge(self, name: str) -> None:
        self.in_background(lambda: self._judge_each(name), lambda error: None)

    def _judge_each(self, name: str) -> None:
        verdicts: list[dict[str, Any]] = []
        with self._judging:
            for one in form_models.judged(self._offered, name):
                if name != self.machine:
                    return  # another one was chosen meanwhile
                verdicts.append({**one, "machine": name})
                if len(verdicts) % 4 == 1 and not name:
                    self.judged = list(verdicts)
            self.judged = verdicts

    def _setup(self, offered: list[form_models.Offer]) -> dict[str, Any]:
        from nbtune.data.sources.variables import is_rows, is_stream

        named = {k: v for k, v in (self.namespace or {}).items() if not k.startswith("_") and k not in ("In", "Out")}
        rows = sorted(name for name, value in named.items() if is_rows(value) and (is_stream(value) or len(value)))
        there = {p.name: ending(p) for p in Path.cwd().glob("*")}
        files = sorted(name for name, end in there.items() if end and not end.startswith((".txt", ".md")))
        body = {"fields": fields(), "goals": list(GOALS), "care": list(CARE), "groups": list(GROUPS)}
        body |= {"models": [offer.name for offer in offered], "machines": form_models.machines()}
        kinds = {"variable": rows, "file": files[:30], "example": _sets()}
        return body | {"data": [{"name": name, "kind": kind} for kind, names in kinds.items() for name in names]}

    def do_preset(self, goal: str, care: str) -> dict[str, Any]:
        """Fill in a preset; return its keys, None where a value is taken away."""
        return preset(goal, care)

    def do_check(self, values: dict[str, Any]) -> None:
        """Check fields (strings as typed, by dotted key) and show the YAML that they come to."""
        begun = bool(str(values.get("data") or "").strip())
        try:
            self._accept(_spec_of(values), values)
        except NbtuneError as error:
            description = described(error, values, self._titles, _is_valid if begun else None)
            self.checked = {"yaml": self.checked.get("yaml", ""), "error": description, "begun": begun}
            if not begun:
                self._rows_of, self.reading = None, {}

    def do_yaml(self, text: str) -> None:
        """Check a YAML text and fill the fields from it."""
        try:
            spec = from_yaml(text, name="the YAML")
        except NbtuneError as error:
            self.checked = {"yaml": text, "error": described(error, {}, self._titles)}
            return
        self.values = _flat(spec)
        self._accept(spec, self.values, text)

    def do_read(self, source: int, format: str | None, columns: dict[str, str]) -> dict[str, Any]:
        """Read the columns of one of the sources otherwise; return the fields' values."""
        if self.spec is None:
            raise SpecError("there are no rows yet")
        spec = form_data.with_columns(self.spec, int(source), format, columns)
        self.values = _flat(spec)
        self._accept(spec, self.values)
        return dict(self.values)

    def _accept(self, spec: RunSpec, values: Mapping[str, Any], text: str = "") -> None:
        self.spec = spec
        self.checked = {"yaml": text or to_yaml(spec), "error": None}
        self._reckon(spec, values)
        if not form_data.read_alike(spec, self._rows_of):
            self._rows_of = spec
            self.reading = {**self.reading, "state": "working"}
            self.in_background(lambda: self._look(spec), lambda error: self._look_failed(error, spec))

    def _reckon(self, spec: RunSpec, values: Mapping[str, Any]) -> None:
        self._newest += 1
        number = self._newest
        self.costs = {"state": "working"}
        self.in_background(lambda: self._cost(spec, number), lambda error: self._costs_failed(error, number, values))

    def _look(self, spec: RunSpec) -> None:
        with self._looking:
            if self._rows_of is not spec:
                return  # other rows were chosen meanwhile
            shown = form_data.preview(Inspection(spec, self.namespace))
        if self._rows_of is spec:
            self.reading = {"state": "known", **shown}

    def _look_failed(self, error: BaseException, spec: RunSpec) -> None:
        if self._rows_of is spec:
            self.reading = {"state": "failed", "error": described(error, {}, self._titles)}

    def _cost(self, spec: RunSpec, number: int) -> None:
        with self._planning:
            if number != self._newest:
                return  # another key was pressed meanwhile
            elsewhere = {"machine": self.machine} if self.machine else {}
            with placing(str(self.checked["yaml"]), name="the YAML"):
                plan = self._plan(spec, rows=self.namespace, **elsewhere)
        if number == self._newest:
            rows = [[clean(name, 60), clean(without_home(value), 600)] for name, value in plan.rows_of_explanation()]
            numbers = {"peak": plan.peak_bytes, "available": plan.available_bytes, "seconds": plan.seconds}
            download = {"download": plan.download_bytes, "steps": plan.total_steps}
            more = {"chosen": _chosen(plan), "vram": has_vram(plan), "trainable": plan.trainable_parameters}
            more |= {"rate": plan.learning_rate, "batch": _batch(plan), "train": plan.rows}
            more |= {"model": spec.model, "packing": _packing(plan), "unusual": unusual(plan.warnings, self._titles)}
            self.costs = {"state": "known", "rows": rows, **numbers, **download, **more}

    def _costs_failed(self, error: BaseException, number: int, values: Mapping[str, Any]) -> None:
        if number != self._newest:
            return
        description = described(error, values, self._titles)
        self.costs = {"state": "failed", "error": description}
        if isinstance(error, SpecError | DataError):  # of the rows: nothing to start with
            self.checked = {**self.checked, "error": description}

    def do_upload(self, name: str, buffers: Any) -> str:
        """Write a file that was dropped into the working folder (never over another one); return its name."""
        return keep(name, buffers)

    def do_start(self, name: str = "run") -> None:
        """Start the run; its monitor appears below."""
        if self.spec is None or self.checked.get("error"):
            raise SpecError("the form has something to mend first")
        spec, self.name = self.spec, following(name)
        self.in_background(lambda: self._begin(spec, name), self._start_failed)

    def _begin(self, spec: RunSpec, name: str) -> None:
        self.run = self._start(spec, name=name, rows=self.namespace)
        if self.run.name != name:  # somebody else's run of that name is at work
            self.name = following(self.run.name)
        self.monitors = [f"IPY_MODEL_{self.inside(self.run.monitor())}", *self.monitors]

    def _start_failed(self, error: BaseException) -> None:
        self.costs = {"state": "failed", "error": described(error, {}, self._titles)}


def _packing(plan: Any) -> str:
    """Return whether short rows share a sequence, and if not why, as the page has a sentence for it; "": as it was
    tried."""
    holds = plan.abilities.packing.holds
    if plan.packing:
        return "on" if holds else ""
    return {True: "off", False: "leaks", None: "unknown"}[holds]


def _spec_of(values: Mapping[str, Any]) -> RunSpec:
    body: dict[str, Any] = {}
    for key, value in values.items():
        _put(body, key, _read(key, value))
    return from_mapping(body, name="the form")


def _is_valid(values: Mapping[str, Any]) -> bool:
    try:
        _spec_of(values)
    except NbtuneError:
        return False
    return True


def _chosen(plan: Any) -> dict[str, str]:
    """Return what the plan chose for fields that were left to it, by dotted key; with the reason where it gives one."""
    return {
        "learning_rate": plan.explained_rate(),
        "steps": f"{plan.total_steps:,}",
        "sequence_len": f"{plan.sequence_len:,}",
        "batch_size": f"{_batch(plan):,}",
        "micro_batch_size": f"{plan.micro_batch_size:,}",
        "gradient_accumulation_steps": f"{plan.gradient_accumulation_steps:,}",
        "eval.every": f"{plan.eval_every:,}",
        "dtype": f"{plan.dtype}: {plan.dtype_reason}",
        "device": plan.device_name,
        "weights": plan.placed(),
        "activations": plan.activations,
    }


def _batch(plan: Any) -> int:
    return int(plan.micro_batch_size * plan.gradient_accumulation_steps)


_TEXTS = ("model", "data")


def _read(key: str, value: Any) -> Any:
    """Return a field's value from what was typed: YAML, but for names, unless one is written as a mapping or a list."""
    if not isinstance(value, str) or (key in _TEXTS and not value.startswith(("{", "["))):
        return value
    return parse_value(value)


def _put(body: dict[str, Any], key: str, value: Any) -> None:
    if value is None or value == "":
        return
    *parts, last = key.split(".")
    for part in parts:
        body = body.setdefault(part, {})
    body[last] = value


def _flat(spec: RunSpec) -> dict[str, Any]:
    """Return what a spec sets, by dotted key; lists, sources and mappings that are one field as the YAML has them."""
    from nbtune.spec.yaml_loader import load

    flat: dict[str, Any] = {}
    whole = {field["key"] for field in fields()}
    for key, value in (load(to_yaml(spec)) or {}).items():
        if isinstance(value, dict) and key not in whole:
            flat |= {f"{key}.{inner}": each for inner, each in value.items()}
        else:
            flat[key] = value
    return flat


def _sets() -> list[str]:
    from nbtune.data.sources.builtin import SETS

    return sorted(SETS)
