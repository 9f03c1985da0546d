"""The door: plan, finetune, runs, attach, repeat, and the Run they return. Cell, form, CLI and scripts call these."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from nbtune.data.sources.snapshot import copy_snapshot, refuse_links
from nbtune.engine import warm_start
from nbtune.engine.launcher import launch, needs_own_process
from nbtune.engine.run import Run as StoredRun
from nbtune.errors import NbtuneError, SpecError, TrainError
from nbtune.events import Eval, Sample, Step
from nbtune.export.exporter import Exporter
from nbtune.planner import Plan, make_plan
from nbtune.spec import RunSpec, from_mapping, placing
from nbtune.store import folder as run_folder
from nbtune.store import run_consent
from nbtune.store.export_script import as_script, as_yaml, spec_to_repeat
from nbtune.store.files import as_train_error

if TYPE_CHECKING:
    from nbtune.data import Source

__all__ = ["Exporter", "Run", "attach", "finetune", "form", "inspect", "plan", "repeat", "runs", "validate"]

Spec = RunSpec | Mapping[str, Any] | str | None


class Run(StoredRun):
    """A run with everything a person does with one. `%%finetune`, `finetune` and `attach` return it."""

    @property
    def export(self) -> Exporter:
        """Take it home: ``run.export.gguf("q8_0")``, ``.merged()``, ``.adapter()``, ``.ollama()``."""
        return Exporter(self)

    def push_to_hub(
        self, repo_id: str, *, what: str = "adapter", private: bool = True, card: str | Path | None = None, **more: Any
    ) -> str:
        """Push with a model card; returns the address. The token is huggingface_hub's own login or HF_TOKEN.

        Args:
            repo_id: ``owner/name``.
            what: ``adapter``, ``merged`` or ``gguf``.
            private: whether a new repository is.
            card: a model card of your own instead of `model_card`'s: its text, or a file ending in .md.
            more: `types`, `importance`, `verify` of GGUF files (see ``run.export.gguf``), and the options of
                `nbtune.export.push_folder`, such as `revision` or `create_pr`.
        Raises:
            HubError: with what to do about it; nothing half done is left.
        """
        return self.export.push(repo_id, what=what, private=private, card=card, facts=self.facts_for_card, **more)

    def model_card(self, repo_id: str, *, what: str = "adapter") -> str:
        """The model card that a push would write, to be read, or changed and given to `push_to_hub`."""
        return self.export.card(repo_id, what, self.facts_for_card(draw=False))

    def facts_for_card(self, *, draw: bool = True) -> dict[str, Any]:
        """What the model card tells of this run; without `draw`, of the curve only that there is one."""
        from nbtune import widgets
        from nbtune.export.model_card import data_lines

        history = self.history
        evals = history["eval_loss"].dropna()
        data, datasets = data_lines([source.source for source in self.spec.data])
        return {
            "name": self.name,
            "spec": (self.folder / "spec.yaml").read_text(encoding="utf-8"),
            "method": self.spec.method,
            "steps": self.step,
            "loss": float(history["loss"].iloc[-1]) if len(history) else None,
            "eval_loss": float(evals.iloc[-1]) if len(evals) else None,
            "samples": [(e.prompt, e.answer) for e in self.events() if isinstance(e, Sample) and e.step == self.step],
            "evals": [(e.step, e.loss) for e in self.events() if isinstance(e, Eval)],
            "data": data,
            "datasets": datasets,
            "curve": (widgets.report(self).png() if draw else True) if len(history) else None,
        }

    def figure(self) -> Any:
        """The loss as a Plotly figure."""
        from nbtune import widgets

        return widgets.figure(self)

    def monitor(self) -> Any:
        """The live panel."""
        from nbtune import widgets

        return widgets.monitor(self)

    def _repr_html_(self) -> str:
        from nbtune.widgets.html import card

        return card(self, self._last(Step))

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        from nbtune.widgets.html import words

        # in a list, or in another value: one line
        printer.text(repr(self) if printer.indentation or len(printer.stack) > 1 else words(self, self._last(Step)))

    def chat(self, other: Run | None = None, *, system: str = "") -> Any:
        """Base and tuned side by side, or this run beside another one."""
        from nbtune import widgets

        return widgets.chat(self, other, system=system)

    def losses(self, *, base: bool | None = None, limit: int | None = 10_000, again: bool = False) -> Any:
        """The rows with the highest and the lowest loss, measured in the background; what is measured stays.

        Args:
            base: measure the base, too, and so what was learnt; None: where there is an adapter.
            limit: of more rows so many are measured, evenly spread; None: all.
            again: measure also what is measured already.
        """
        from nbtune import widgets

        return widgets.losses(self, base=base, limit=limit, again=again)

    def go_on(self, *, name: str | None = None, detach: bool = False, **fields: Any) -> Run:
        """A new run that begins with what this one has learnt, on its rows; this one stays as it is.

        Args:
            name: of the new run; this one's by default.
            detach: in a process of its own, which survives this one.
            fields: what is different in its spec, such as ``row_weights={…}`` or ``steps=50``.
        Raises:
            SpecError: the fields ask for other rows, another model or another adapter.
            TrainError: this run is at work, or has nothing saved yet.
        """
        if self.alive:
            raise TrainError(f"the run `{self.name}` is at work", fix="stop it first: it is saved then")
        if {"data", "start_from"} & set(fields):
            raise SpecError("`go_on` trains on the rows of its run", fix=f"nbtune.finetune(…, start_from={self.id!r})")
        run_consent.check(self.folder, code=not fields.get("trust_remote_code"))
        own = self.spec if "method" in fields else spec_to_repeat(self.folder)  # another method, another rate
        spec, given = own.model_dump(mode="python", exclude_unset=True), dict(fields)
        for key, other in (("steps", "epochs"), ("epochs", "steps")):
            if given.get(key) is not None:
                spec.pop(other, None)
        asked = from_mapping({**spec, **given, "start_from": self.folder.name})
        warm_start.check(self.folder, asked)

        def fill(made: Path) -> None:
            copy_snapshot(self.folder / "data", made / "data")
            warm_start.take_along(self.folder, made)

        return _begin(self.folder.parent, name or self.name, asked, fill, detach=detach)

    def resume(self, *, step: int | None = None, detach: bool = False, own_process: bool = False) -> Run:
        """See `nbtune.engine.run.Run.resume`."""
        super().resume(step=step, detach=detach, own_process=own_process or needs_own_process(self.spec))
        return self

    def wait(self, timeout: float | None = None) -> Run:
        """See `nbtune.engine.run.Run.wait`."""
        super().wait(timeout)
        return self

    def snippet(self) -> str:
        """The few lines that use the model elsewhere."""
        spec = self.spec
        own = "import nbtune\n" if spec.model == "nbtune/tiny" else ""
        name, ends = "", ""
        if (self.folder / "adapter" / "generation_config.json").is_file():  # answers end where the base's do not
            name = ", GenerationConfig"
            ends = f"\nmodel.generation_config = GenerationConfig.from_pretrained({self._shown_folder()!r})"
        return (
            f"{own}from peft import PeftModel\n"
            f"from transformers import AutoModelForCausalLM, AutoTokenizer{name}\n\n"
            f"base = AutoModelForCausalLM.from_pretrained({_base_for_snippet(spec.model)})\n"
            f"model = PeftModel.from_pretrained(base, {self._shown_folder()!r})\n"
            f"tokenizer = AutoTokenizer.from_pretrained({self._shown_folder()!r}){ends}"
        )

    def script(self) -> str:
        """Python that trains it again, with its spec to change: the same rows, the same losses."""
        return as_script(self.folder)

    def yaml(self) -> str:
        """Its spec for a cell or a file, with rows of variables named as the files that the run wrote them to."""
        return as_yaml(self.folder)

    def _shown_folder(self) -> str:
        adapter = self.folder / "adapter"
        try:
            return adapter.relative_to(Path.cwd()).as_posix()
        except ValueError:
            return f"{self.folder.parent.name}/{self.folder.name}/adapter"


def _base_for_snippet(model: str) -> str:
    return 'nbtune.models.resolve("nbtune/tiny")' if model == "nbtune/tiny" else repr(model)


def _sources(spec: RunSpec, rows: Mapping[str, Any]) -> list[Source]:
    from nbtune import data

    sources = data.resolve(spec.data, rows, base_dir=Path.cwd())
    if spec.eval.data is not None:
        sources += data.resolve([spec.eval.data], rows, base_dir=Path.cwd(), role="eval")
    data.look(sources, spec)
    return sources


def validate(
    spec: Spec = None, *, rows: Mapping[str, Any] | None = None, first_line: int = 1, **fields: Any
) -> RunSpec:
    """Whether a request can be meant: its keys and values, and the first rows of its data. Loads nothing else.

        spec = nbtune.validate(data=[{"prompt": "Hi", "completion": "Ahoy!"}], steps=2)

    Args:
        spec, rows, first_line, fields: as in `finetune`.
    Returns:
        the spec; rows that were handed over are named in it (``var:rows``).
    Raises:
        SpecError, DataError: with the line of a YAML text, what was wrong, and what to write instead.
    """
    from nbtune import data

    asked, variables = data.asked(spec, fields, rows, first_line)
    with _placing(spec, first_line):
        _sources(asked, variables)
    return asked


def _placing(spec: Spec, first_line: int) -> Any:
    """Errors about a key name its line, where the spec came as text."""
    return placing(spec if isinstance(spec, str) else None, first_line=first_line)


def plan(spec: Spec = None, *, rows: Mapping[str, Any] | None = None, first_line: int = 1, **fields: Any) -> Plan:
    """What a run would cost, without loading the model.

        plan = nbtune.plan(data=[{"prompt": "Hi", "completion": "Ahoy!"}], steps=2)

    Args:
        spec, rows, first_line, fields: as in `finetune`.
    Raises:
        NbtuneError: as `finetune`, before any work.
    """
    from nbtune import data, device, models

    asked, variables = data.asked(spec, fields, rows, first_line)
    with _placing(spec, first_line):
        sources = _sources(asked, variables)
    facts = models.model_facts(asked.model)
    tokenizer = models.load_tokenizer(asked.model, trust_remote_code=asked.trust_remote_code)
    measured, chosen = data.measure(sources, tokenizer, asked), device.choose_cards(asked.gpus, asked.device)
    where = device.describe(device.pick(asked.device, chosen[0] if isinstance(asked.gpus, tuple) else None))
    missing = models.missing_bytes(asked.model, facts.weights_bytes)
    return make_plan(asked, facts, measured, where, download_bytes=missing, devices=len(chosen))


def finetune(
    spec: Spec = None,
    *,
    name: str = "run",
    rows: Mapping[str, Any] | None = None,
    runs_dir: str | Path | None = None,
    on_busy: Literal["attach", "restart", "queue"] = "attach",
    detach: bool = False,
    first_line: int = 1,
    **fields: Any,
) -> Run:
    """Train in the background, and return at once.

        run = nbtune.finetune(data=[{"prompt": "Hi", "completion": "Ahoy!"}], steps=2, name="demo")
        run.wait()

    Args:
        spec: a `RunSpec`, a mapping, or YAML text; or fields by name, which win over it.
        name: the run's; several runs may share it, their folders differ.
        rows: where variables named by `data:` are looked up (a notebook's namespace).
        runs_dir: where runs are kept; ``NBTUNE_RUNS`` or ``./runs`` by default.
        on_busy: when a run of this name is at work: attach to it (refused if the spec or the rows have changed),
            restart it with this spec, or queue behind it.
        detach: train in a process of its own, which survives the kernel.
        first_line: number of the YAML's first line in what the user sees.
        fields: of the spec. `data` (and ``eval={"data": …}``) is a name, a source or a list of these; or rows
            themselves: a list of dicts, a dict of columns, a DataFrame (pandas, polars), a `datasets.Dataset`. The
            spec names them (``var:rows``), and the run keeps them in its folder.
    Raises:
        SpecError, DataError, HubError: before any work, with place and fix; nothing is left behind.
        TrainError: the name is in use by a run with another spec, or on other rows.
    """
    from nbtune import data, models

    given, variables = data.asked(spec, fields, rows, first_line)
    asked = data.with_template(warm_start.portable(given))
    root = run_folder.runs_root(runs_dir)
    busy = next((run for run in runs(root) if run.name == name and run.alive), None)
    if busy is not None and on_busy == "attach":
        warm_start.check_same(busy.folder, asked, variables)
        return busy
    with _placing(spec, first_line):
        sources = _sources(asked, variables)
    models.resolve(asked.model, weights=False, trust_remote_code=asked.trust_remote_code)
    older = run_folder.find(asked.start_from, root) if asked.start_from is not None else None
    if older is not None:
        warm_start.check(older, asked)
    if busy is not None and on_busy == "restart":
        busy.stop(wait=True)

    def fill(made: Path) -> None:
        data.snapshot(sources, made / "data")
        if older is not None:
            warm_start.take_along(older, made)

    return _begin(root, name, asked, fill, detach=detach)


def _begin(root: Path, name: str, spec: RunSpec, fill: Callable[[Path], None], *, detach: bool = False) -> Run:
    """Makes a run's folder, puts in what `fill` does, and starts it; a folder that cannot be filled goes again."""
    made = run_folder.create(root, name, spec)
    try:
        fill(made)
        if spec.trust_remote_code:  # this user says it, here and now: what resumes this run later may know
            run_consent.allow_code(made, spec)
    except (NbtuneError, OSError) as error:
        shutil.rmtree(made, ignore_errors=True)
        if isinstance(error, NbtuneError):
            raise
        raise as_train_error(error, "the rows could not be written down", place=root.name) from error
    return Run(made, launch(made, detach=detach, own_process=needs_own_process(spec)))


def form(namespace: Mapping[str, Any] | None = None) -> Any:
    """A form to fill in instead of a spec to write.

        nbtune.form(globals())

    Args:
        namespace: where it finds rows by name.
    """
    from nbtune import widgets

    return widgets.form(plan, finetune, namespace)


def inspect(rows: Any, namespace: Mapping[str, Any] | None = None, **fields: Any) -> Any:
    """What of some rows is trained, token by token; fields of the spec as in `finetune`.

        nbtune.inspect([{"prompt": "Hi", "completion": "Ahoy!"}], train_on="all")

    ``row=17`` shows that row first; ``losses={17: [None, 2.1, …]}`` tells each token's loss beside it.

    Args:
        rows: what `data` may be in `finetune`; or a spec, as a `RunSpec` or a mapping with a key `data`; or a run.
        namespace: where variables are looked up by name.
    """
    from nbtune import widgets

    return widgets.inspect(rows, namespace, **fields)


def repeat(which: str | Path, *, name: str | None = None, runs_dir: str | Path | None = None) -> Run:
    """Train a run again from its folder alone: same spec, same rows, same losses, in a new folder.

        nbtune.repeat("demo").wait()

    Args:
        which: as in `attach`.
        name: of the new run; the old one's by default.
        runs_dir: where names are looked up and the new one goes; beside the old one by default.
    """
    root = run_folder.runs_root(runs_dir)
    old = run_folder.find(which, root)
    root = old.parent if runs_dir is None else root
    run_consent.check(old)

    def fill(made: Path) -> None:
        copy_snapshot(old / "data", made / "data")
        if (old / "start").exists():
            refuse_links(old / "start", old)
            shutil.copytree(old / "start", made / "start", dirs_exist_ok=True)

    return _begin(root, name or run_folder.name_of(old)[0], spec_to_repeat(old), fill)


def runs(runs_dir: str | Path | None = None) -> list[Run]:
    """The runs that are there, newest first.

        newest = nbtune.runs()[0]

    Args:
        runs_dir: where they are; ``NBTUNE_RUNS`` or ``./runs`` by default.
    """
    return [_handle(path) for path in run_folder.all_folders(run_folder.runs_root(runs_dir))]


def attach(which: str | Path, runs_dir: str | Path | None = None) -> Run:
    """The handle of a run: by name (its newest), id, folder name or path.

        run = nbtune.attach("demo")

    Raises:
        TrainError: there is none.
    """
    return _handle(run_folder.find(which, run_folder.runs_root(runs_dir)))


def _handle(path: Path) -> Run:
    from nbtune.engine.launcher import launched_on

    return Run(path, launched_on(path))
