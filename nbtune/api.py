"""The door: plan, finetune, runs, attach, repeat: what cell, form, command line and scripts call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from nbtune.data.sources.resolve import with_template
from nbtune.data.sources.snapshot import copy_snapshot
from nbtune.engine import beginnings, job_files, objects, warm_start
from nbtune.engine.launcher import launched_on
from nbtune.models.names import refuse_no_models
from nbtune.planner import Plan
from nbtune.run import Run, begin
from nbtune.spec import RunSpec, placing
from nbtune.spec.idle import refuse_idle
from nbtune.store import folder as run_folder
from nbtune.store import run_consent
from nbtune.store.export_script import spec_to_repeat

if TYPE_CHECKING:
    from nbtune.data import Source

Spec = RunSpec | Mapping[str, Any] | str | None


def _sources(spec: RunSpec, rows: Mapping[str, Any]) -> list[Source]:
    from nbtune import data

    sources = data.with_rewards(data.resolve(spec.data, rows, base_dir=Path.cwd()), spec, rows)
    if spec.eval.data is not None:
        sources += data.resolve([spec.eval.data], rows, base_dir=Path.cwd(), role="eval")
    data.look(sources, spec)
    return sources


def validate(
    spec: Spec = None,
    *,
    rows: Mapping[str, Any] | None = None,
    runs_dir: str | Path | None = None,
    first_line: int = 1,
    **fields: Any,
) -> RunSpec:
    """Return whether a request can be meant: its keys and values, what it names on this machine, and the first rows of
    its data. Loads nothing else, and asks no network.

        spec = nbtune.validate(data=[{"prompt": "Hi", "completion": "Ahoy!"}], steps=2)

    Args:
        spec, rows, runs_dir, first_line, fields: as in `finetune`.
    Returns:
        the spec; rows that were handed over are named in it (``var:rows``).
    Raises:
        SpecError, DataError: with the line of a YAML text, what was wrong, and what to write instead.
    """
    run_spec, variables = _named(spec, fields, rows, first_line)
    from nbtune import data

    with _placing(spec, first_line):
        things = objects.Objects.of(run_spec, variables)
        refuse_no_models(run_spec)
        beginnings.named_runs(data.labels_at_hand(things.spec, _sources(run_spec, variables)), runs_dir)
    _count_processes(run_spec)
    return run_spec


def _named(spec: Spec, fields: dict[str, Any], rows: Any, first_line: int) -> tuple[RunSpec, Mapping[str, Any]]:
    with _placing(spec, first_line):
        run_spec, variables = objects.named(spec, fields, rows, first_line)
        refuse_idle(run_spec)
        return run_spec, variables


def _count_processes(spec: RunSpec) -> None:
    """Refuse more devices, or processes of a CPU, than there are; torch is asked only where `gpus` was set."""
    if spec.gpus not in (1, "all"):
        from nbtune import device

        device.choose_cards(spec.gpus, spec.device)


def _placing(spec: Spec, first_line: int) -> Any:
    """Name, in errors about a key, its line, where the spec came as text."""
    return placing(spec if isinstance(spec, str) else None, first_line=first_line)


def plan(
    spec: Spec = None,
    *,
    machine: str | None = None,
    nodes: int = 1,
    network: float | None = None,
    rows: Mapping[str, Any] | None = None,
    runs_dir: str | Path | None = None,
    first_line: int = 1,
    **fields: Any,
) -> Plan:
    """Return what a run would cost, without loading the model.

        plan = nbtune.plan(data=[{"prompt": "Hi", "completion": "Ahoy!"}], steps=2)

    Args:
        spec, rows, runs_dir, first_line, fields: as in `finetune`.
        machine: plan for one that is not here: ``t4``, ``colab``, ``rtx4090``, ``8xh100``, ``mac-32``, ``24GB`` …
            (`nbtune.device.MACHINES`).
        nodes: how many such machines share each step, with all of their GPUs where `gpus` says nothing.
        network: Gbit a second that each of them sends to the others; unset: as they are usually sold.
    Raises:
        NbtuneError: as `finetune`, before any work.
    """
    from nbtune import data
    from nbtune.engine.planned import elsewhere, planned

    where = elsewhere(machine, nodes, network)
    asked, variables = _named(spec, fields, rows, first_line)
    with _placing(spec, first_line):
        sources, things = _sources(asked, variables), objects.Objects.of(asked, variables)
        begins = beginnings.named_runs(data.labels_at_hand(things.spec, sources), runs_dir)
    with things.described() as run_spec:
        if where is not None:  # a model that was handed over lies here: there it need not
            run_spec = run_spec.model_copy(update={"device": asked.device, "dtype": asked.dtype})
        with _placing(spec, first_line):
            if where is None:
                beginnings.look_at(begins, run_spec)
            return planned(run_spec, sources, where)


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
        fields: of the spec. `model` and `tokenizer` may be loaded ones, of transformers or peft: they train, and stay
            as they are (docs/how-to/objects.md). `data` (and ``eval={"data": …}``) is a name, a source or a list of
            these; or rows themselves: a list of dicts, a dict of columns, a DataFrame (pandas, polars), a
            `datasets.Dataset` or `IterableDataset`, an iterator, a function with `yield`. The spec names all of them
            (``var:rows``), and the run keeps rows in its folder.
    Raises:
        SpecError, DataError, HubError: before any work, with place and fix; nothing is left behind.
        TrainError: the name is in use by a run with another spec, or on other rows.
    """
    asked = _Asked(spec, rows, first_line, fields, detach)
    return asked.start(name, run_folder.runs_root(runs_dir), on_busy)


def submit(
    spec: Spec = None,
    *,
    slurm: str | Mapping[str, Any],
    send: bool = True,
    name: str = "run",
    rows: Mapping[str, Any] | None = None,
    runs_dir: str | Path | None = None,
    first_line: int = 1,
    **fields: Any,
) -> Run:
    """Train as a job of Slurm: write its file into the run's folder, and give it to `sbatch`, where that is.

        rows = [{"prompt": "Hi", "completion": "Ahoy!"}]
        run = nbtune.submit(data=rows, device="cpu", steps=2, slurm="partition=debug,nodes=2", send=False)

    Args:
        spec, name, rows, first_line, fields: as in `finetune`. The machine that asks needs no GPU.
        slurm: what to ask for: ``"partition=gpu,nodes=2,gpus=8"``, or a mapping; `gpus` are those of a node. One that
            begins with ``skypilot``, ``kubeflow`` or ``hf-jobs`` makes a file for that tool, and sends nothing.
        send: False leaves that to you: `sbatch` with the file, or torchrun with the folder.
        runs_dir: as in `finetune`; all nodes must see it.
    Returns:
        the run; without `sbatch` its last word says what to do.
    Raises:
        SpecError: an option of the job is not known, or what is no such value; else as `finetune`.
        TrainError: Slurm refuses the job.
    """
    asked = _Asked(spec, rows, first_line, fields, True)
    job = replace(job_of(asked.spec, slurm), sent=send)
    return asked.start(name, run_folder.runs_root(runs_dir), "attach", job)


def job_of(spec: RunSpec, asked: str | Mapping[str, Any] | list[str]) -> job_files.Job:
    """Return the job that options mean for a spec; see `submit`."""
    return job_files.job_of(asked, spec)


def job_file(spec: RunSpec, asked: str | list[str], *, name: str = "run", runs_dir: str | Path | None = None) -> str:
    """Return the file that `submit` would give to `sbatch`; nothing is written.

    Args:
        spec: the run's.
        asked: the options of the job.
        name, runs_dir: as in `submit`.
    """
    run_folder.check_name(name)
    job = job_of(spec, asked)
    if isinstance(job, job_files.ExportedJob):
        job_files.refuse_what_stays(spec, ())
    return job.text(run_folder.runs_root(runs_dir) / f"{name}-000000", spec)


class _Asked:
    """A request for a run: a spec, and the things that it names.

    Args:
        spec, rows, first_line, fields, detach: as in `finetune`.
    """

    def __init__(self, spec: Spec, rows: Any, first_line: int, fields: dict[str, Any], detach: bool) -> None:
        given, self.variables = _named(spec, fields, rows, first_line)
        self.detach = detach
        self._places = partial(_placing, spec, first_line)
        with self._places():
            self.things = objects.Objects.of(given, self.variables, detach=detach)
        self.spec = with_template(warm_start.portable(self.things.spec))

    def start(
        self, name: str, root: Path, on_busy: Literal["attach", "restart", "queue"], job: job_files.Job | None = None
    ) -> Run:
        """Start the run here, or as a job, once all of it was looked at; or attach to the one that works."""
        from nbtune import data

        busy = next((run for run in runs(root) if run.name == name and run.alive), None)
        if busy is not None and on_busy == "attach":
            warm_start.check_same(busy.folder, self.spec, self.variables)
            self.things.check_same(busy.folder)
            return busy
        with self._places():
            sources = _sources(self.spec, self.variables)
        if job is None:
            _count_processes(self.spec)
        with self._places(), self.things.described() as local:
            begins = beginnings.named_runs(data.labels_at_hand(self.spec, sources), root)
            beginnings.look_at(begins, local)
        travels = isinstance(job, job_files.ExportedJob)
        if travels:
            job_files.refuse_what_stays(self.spec, sources)
        if busy is not None and on_busy == "restart":
            busy.stop(wait=True)

        def fill(made: Path) -> None:
            data.snapshot(sources, made / "data", travels=travels)
            self.things.keep(made)
            if begins.run is not None:
                objects.same_base(begins.run, made)
            begins.take_along(made)

        return begin(root, name, self.spec, fill, detach=self.detach, job=job)


def form(namespace: Mapping[str, Any] | None = None) -> Any:
    """Return a form to fill in instead of a spec to write.

        nbtune.form(globals())

    Args:
        namespace: where it finds rows by name.
    """
    from nbtune import widgets

    return widgets.form(plan, partial(_beside, runs_dir=None), namespace)


def home(namespace: Mapping[str, Any] | None = None, runs_dir: str | Path | None = None) -> Any:
    """Return all runs as one panel: to open, chat with, compare, resume, take home, delete; and the form for a new one.

        nbtune.home(globals())

    Args:
        namespace: where the form finds rows by name.
        runs_dir: where runs are; ``NBTUNE_RUNS`` or ``./runs`` by default.
    """
    from nbtune import widgets

    root = run_folder.runs_root(runs_dir)
    return widgets.home(attach, partial(plan, runs_dir=root), partial(_beside, runs_dir=root), namespace, root)


def _beside(spec: RunSpec, *, name: str, runs_dir: Path | None, **more: Any) -> Run:
    """Start a run for who clicks: where one of that name is at work (another notebook's), it gets the next name."""
    working = {run.name for run in runs(runs_dir) if run.alive}
    while name in working:
        name = run_folder.following(name)
    return finetune(spec, name=name, runs_dir=runs_dir, **more)


def inspect(rows: Any, namespace: Mapping[str, Any] | None = None, **fields: Any) -> Any:
    """Return what of some rows is trained, token by token; fields of the spec as in `finetune`.

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
        objects.take_along(old, made)
        warm_start.same_beginning(old, made)

    return begin(root, name or run_folder.name_of(old)[0], spec_to_repeat(old), fill)


def runs(runs_dir: str | Path | None = None) -> list[Run]:
    """Return the runs that are there, newest first.

        newest = nbtune.runs()[0]

    Args:
        runs_dir: where they are; ``NBTUNE_RUNS`` or ``./runs`` by default.
    """
    return [_handle(path) for path in run_folder.all_folders(run_folder.runs_root(runs_dir))]


def attach(which: str | Path, runs_dir: str | Path | None = None) -> Run:
    """Return the handle of a run: by name (its newest), id, folder name or path.

        run = nbtune.attach("demo")

    Raises:
        TrainError: there is none.
    """
    return _handle(run_folder.find(which, run_folder.runs_root(runs_dir)))


def watch(
    trainer: Any, name: str | None = None, runs_dir: str | Path | None = None, *, samples: Sequence[str] = ()
) -> Run | None:
    """Show what another library's trainer does as a run, from its next `train()` on: a line before that call.

        nbtune.watch(trainer, "mine")
        trainer.train()

    Nothing of the trainer is changed: a callback is added to it, its losses are what they would be. A second `train()`
    is a second run of the name; one that goes on from a checkpoint of the trainer's goes on in the same folder.

    Args:
        trainer: of transformers, TRL or Unsloth (any `transformers.Trainer`).
        name, runs_dir: as in `finetune`; the trainer's class by default.
        samples: prompts to ask before, at evaluations and at the end; by default two of its rows now and then.
    Returns:
        its handle; None in all processes but the first.
    Raises:
        SpecError, TrainError: it is no trainer, or no run can be kept there by that name.
    """
    from nbtune import widgets
    from nbtune.engine.watching import watched

    show = lambda made: widgets.beside_trainer(_handle(made))  # noqa: E731
    folder = watched(trainer, name, run_folder.runs_root(runs_dir), tuple(samples), show)
    return None if folder is None else _handle(folder)


def _handle(path: Path) -> Run:
    return Run(path, launched_on(path))
