"""The form: a spec by clicking, with the same spec as YAML beside it, what it will cost, and a start button."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import traitlets

from nbtune.errors import DataError, NbtuneError, SpecError
from nbtune.spec import RunSpec, from_mapping, from_yaml, parse_value, placing, to_yaml
from nbtune.widgets import form_models
from nbtune.widgets.base import Panel
from nbtune.widgets.form_fields import CARE, GOALS, fields, preset
from nbtune.widgets.sanitize import clean, without_home
from nbtune.widgets.uploads import keep


class Form(Panel):
    """A spec by clicking.

    Args:
        plan: ``plan(spec, rows=namespace)`` says what a spec will cost.
        start: ``start(spec, name=…, rows=namespace)`` starts it and returns the run.
        namespace: the notebook's variables; those that hold rows are offered as data.
        values: what is filled in at first, by dotted key.

    `spec` is the last valid spec, `run` what was started.
    """

    panel = "form"
    setup = traitlets.Dict().tag(sync=True)
    values = traitlets.Dict().tag(sync=True)
    checked = traitlets.Dict().tag(sync=True)
    costs = traitlets.Dict().tag(sync=True)
    child = traitlets.Unicode("").tag(sync=True)
    judged = traitlets.List().tag(sync=True)

    def __init__(
        self,
        plan: Callable[..., Any],
        start: Callable[..., Any],
        namespace: Mapping[str, Any] | None = None,
        values: Mapping[str, Any] | None = None,
    ) -> None:
        self._plan, self._start, self.namespace = plan, start, namespace
        self._newest, self._planning = 0, threading.Lock()
        self.spec: RunSpec | None = None
        self.run: Any = None
        first = {"model": "nbtune/tiny", **(values or {})}
        super().__init__(setup=self._setup(), values=first)
        self.do_check(dict(first))
        if len(self.setup["models"]) > 1:  # to be chosen from: what each needs, once it is known
            self.in_background(self._judge, lambda error: None)

    def _judge(self) -> None:
        for found in form_models.judge(self.setup["models"]):
            self.judged = [*self.judged, found]

    def _setup(self) -> dict[str, Any]:
        from nbtune.data.sources.rows import is_rows

        named = {k: v for k, v in (self.namespace or {}).items() if not k.startswith("_") and k not in ("In", "Out")}
        rows = sorted(name for name, value in named.items() if is_rows(value) and len(value))
        files = sorted(p.name for p in Path.cwd().glob("*") if p.suffix in (".jsonl", ".json", ".csv", ".parquet"))
        body = {
            "fields": fields(),
            "goals": list(GOALS),
            "care": list(CARE),
            "models": form_models.names(),
        }
        return body | {"data": [*rows, *files[:30], *_sets()]}

    def do_preset(self, goal: str, care: str) -> dict[str, Any]:
        """Fill in a preset; return its keys, None where a value is taken away."""
        return preset(goal, care)

    def do_check(self, values: dict[str, Any]) -> None:
        """Check fields (strings as typed, by dotted key) and show the YAML that they come to."""
        body: dict[str, Any] = {}
        begun = bool(str(values.get("data") or "").strip())
        try:
            for key, value in values.items():
                _put(body, key, _read(key, value))
            self._accept(from_mapping(body, name="the form"), values)
        except NbtuneError as error:
            self.checked = {"yaml": self.checked.get("yaml", ""), "error": _error(error), "begun": begun}

    def do_yaml(self, text: str) -> None:
        """Check a YAML text and fill the fields from it."""
        try:
            spec = from_yaml(text, name="the YAML")
        except NbtuneError as error:
            self.checked = {"yaml": text, "error": _error(error)}
            return
        self.values = _flat(spec)
        self._accept(spec, self.values, text)

    def _accept(self, spec: RunSpec, values: Mapping[str, Any], text: str = "") -> None:
        self.spec = spec
        self.checked = {"yaml": text or to_yaml(spec), "error": None}
        self._newest += 1
        number = self._newest
        self.costs = {"state": "working"}
        self.in_background(lambda: self._cost(spec, number), lambda error: self._costs_failed(error, number))

    def _cost(self, spec: RunSpec, number: int) -> None:
        with self._planning:
            if number != self._newest:
                return  # another key was pressed meanwhile
            with placing(str(self.checked["yaml"]), name="the YAML"):
                plan = self._plan(spec, rows=self.namespace)
        if number == self._newest:
            rows = [[clean(name, 60), clean(without_home(value), 600)] for name, value in plan.rows_of_explanation()]
            numbers = {"peak": plan.peak_bytes, "available": plan.available_bytes, "seconds": plan.seconds}
            download = {"download": plan.download_bytes, "steps": plan.total_steps}
            more = {"chosen": _chosen(plan), "gpu": plan.device != "cpu"}
            self.costs = {"state": "known", "rows": rows, **numbers, **download, **more}

    def _costs_failed(self, error: BaseException, number: int) -> None:
        if number != self._newest:
            return
        self.costs = {"state": "failed", "error": _error(error)}
        if isinstance(error, SpecError | DataError):  # of the rows: nothing to start with
            self.checked = {**self.checked, "error": _error(error)}

    def do_upload(self, name: str, buffers: Any) -> str:
        """Write a file that was dropped into the working folder (never over another one); return its name."""
        return keep(name, buffers)

    def do_start(self, name: str = "run") -> None:
        """Start the run; its monitor appears below."""
        if self.spec is None or self.checked.get("error"):
            raise SpecError("the form has something to mend first")
        spec = self.spec
        self.in_background(lambda: self._begin(spec, name), self._start_failed)

    def _begin(self, spec: RunSpec, name: str) -> None:
        self.run = self._start(spec, name=name, rows=self.namespace)
        monitor = self.run.monitor()
        self.child = f"IPY_MODEL_{monitor.model_id}"

    def _start_failed(self, error: BaseException) -> None:
        self.costs = {"state": "failed", "error": _error(error)}


def _chosen(plan: Any) -> dict[str, str]:
    """Return what the plan chose for fields that were left to it, by dotted key; with the reason where it gives one."""
    return {
        "learning_rate": plan.explained_rate(),
        "steps": f"{plan.total_steps:,}",
        "sequence_len": f"{plan.sequence_len:,}",
        "batch_size": f"{plan.micro_batch_size * plan.gradient_accumulation_steps:,}",
        "micro_batch_size": f"{plan.micro_batch_size:,}",
        "gradient_accumulation_steps": f"{plan.gradient_accumulation_steps:,}",
        "eval.every": f"{plan.eval_every:,}",
        "dtype": f"{plan.dtype}: {plan.dtype_reason}",
        "device": plan.device_name,
        "weights": plan.placed(),
        "activations": plan.activations,
    }


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
    """Return what a spec sets, by dotted key; lists and sources as the YAML has them."""
    from nbtune.spec.yaml_loader import load

    flat: dict[str, Any] = {}
    for key, value in (load(to_yaml(spec)) or {}).items():
        if isinstance(value, dict) and key != "data":
            flat |= {f"{key}.{inner}": each for inner, each in value.items()}
        else:
            flat[key] = value
    return flat


def _error(error: BaseException) -> dict[str, str]:
    if isinstance(error, NbtuneError):
        return {"cause": clean(error.cause, 600), "place": clean(error.place, 200), "fix": clean(error.fix, 600)}
    return {"cause": clean(f"{type(error).__name__}: {error}", 600), "place": "", "fix": ""}


def _sets() -> list[str]:
    from nbtune.data.sources.builtin import SETS

    return sorted(SETS)
