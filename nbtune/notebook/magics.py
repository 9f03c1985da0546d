"""`%%finetune`, `%finetune` and `%nbtune`: parse, call one public function, show what came back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from IPython.core.magic import Magics, line_cell_magic, magics_class, no_var_expand
from IPython.display import display
from traitlets import Enum, Float, Unicode

import nbtune
from nbtune.commands import Command, commands_of
from nbtune.errors import SpecError, TrainError
from nbtune.events import ENDED, State
from nbtune.notebook import environment, flags, usage
from nbtune.notebook.display import Table, losses_table, runs_table, say, show_plan
from nbtune.notebook.display_run import follow, show_ended
from nbtune.spec import from_mapping, from_yaml, placing, to_yaml
from nbtune.store.folder import runs_root
from nbtune.untrusted import from_here, harmless


@magics_class
class NbtuneMagics(Magics):
    """Fine-tuning from a cell. `%config NbtuneMagics` shows what can be set."""

    wait = Enum(
        ("auto", "always", "never"),
        "auto",
        help="Whether a cell stays until its run has ended; auto: where no notebook page looks on.",
    ).tag(config=True)
    heartbeat = Float(
        10.0,
        help="While a run works, the kernel sends a sign of life every so many seconds, so that a hub that ends idle "
        "kernels does not end it; 0: none. A detached run needs no kernel, and sends none.",
    ).tag(config=True)
    runs_dir = Unicode("", help="Where run folders go; empty: NBTUNE_RUNS, or ./runs.").tag(config=True)
    variable = Unicode("run", help="The variable that gets the handle of the run; empty: none.").tag(config=True)

    @no_var_expand  # what stands in a line is what is meant: `{…}` of a prompt, or of a folder's name, is no code
    @line_cell_magic
    def finetune(self, line: str, cell: str | None = None) -> None:
        """Fine-tune a model; `%%finetune?` shows the text of `usage.finetune_help`."""
        request = flags.parse_finetune(line)
        if request.help:
            return say(usage.finetune_help())
        if cell is None and not request.overrides:
            return self._form()
        spec = self._spec(cell, request)
        rows = self.shell.user_ns
        with placing(cell, first_line=2):
            if request.dry_run:
                return self._plan(spec, request)
            run = nbtune.finetune(
                spec,
                name=request.name,
                rows=rows,
                runs_dir=self._runs_dir(request.runs_dir),
                on_busy=request.on_busy,
                detach=request.detach,
            )
        self._keep(run)
        if left := _left_behind(run):
            say(left)
        return follow(run, self.shell, asked=request.wait, setting=self.wait)

    @no_var_expand
    @line_cell_magic
    def nbtune(self, line: str, cell: str | None = None) -> None:
        """Show all runs; with a command, handle them from the keyboard. `%nbtune?` shows `usage.nbtune_help`."""
        name, _, rest = line.strip().partition(" ")
        if not name and cell is None:
            return self._home()
        if name in ("", "help", "--help"):
            return say(usage.nbtune_help())
        command = commands_of("cell").get(name)
        if command is None:
            raise SpecError(
                f"`%nbtune` has no command `{name}`",
                place=f"`%nbtune {line.strip()}`",
                fix=f"its commands: {', '.join(commands_of('cell'))}",
            )
        action: Callable[..., None] | None = getattr(self, f"_{name}", None)
        if not command.body:
            args = flags.parser(name).parse(rest)
            return self._call(command, args) if action is None else action(args)
        request = flags.parse_finetune(rest, f"%nbtune {name}")
        with placing(cell, first_line=2):
            spec = self._spec(cell, request)
            if action is not None:
                return action(spec, request)
            return self._show(command.public_function()(spec, rows=self.shell.user_ns))

    # What finetune needs ---------------------------------------------------------------------------------------------

    def _spec(self, cell: str | None, request: flags.Request) -> Any:
        if cell is None:
            return from_mapping(_nested(request.overrides), name="the line")
        return from_yaml(cell, request.overrides, name="the cell", first_line=2)

    def _keep(self, run: Any) -> None:
        if not self.variable:
            return
        former = self.shell.user_ns.get(self.variable)
        if former is None or isinstance(former, nbtune.Run):
            self.shell.user_ns[self.variable] = run
        else:
            say(f"`{self.variable}` is yours and stays; the handle is nbtune.attach({run.name!r})")

    def _runs_dir(self, given: Path | None) -> Path | str | None:
        return given or self.runs_dir or None

    def _form(self) -> None:
        if environment.has_page(self.shell):
            from nbtune.widgets import form

            return display(form(self._planned, self._start, self.shell.user_ns))
        data = next(
            (name for name, value in self.shell.user_ns.items() if _is_rows(name, value)), "nbtune/json-answers"
        )
        self.shell.set_next_input(
            "%%finetune --name demo\n"
            "model: nbtune/tiny            # a Hub id, a folder, or the embedded model\n"
            f"data: {data:<22} # a DataFrame or list by name, a file, a Hub id\n"
            "steps: 200\n"
        )
        return say("The next cell is a start: change it, then run it. `%%finetune?` says what else it may hold.")

    def _start(self, spec: Any, **options: Any) -> Any:
        """Return what the form's button calls."""
        run = nbtune.finetune(spec, runs_dir=self._runs_dir(None), **options)
        self._keep(run)
        return run

    # %nbtune ---------------------------------------------------------------------------------------------------------

    def _run(self, args: Any) -> Any:
        """Return the run that was named; without a name the living one, or else the latest."""
        runs_dir = self._runs_dir(args.runs)
        if args.run:
            return nbtune.attach(args.run, runs_dir=runs_dir)
        runs = nbtune.runs(runs_dir=runs_dir)
        if not runs:
            raise TrainError("there is no run yet", fix="start one: `%finetune` shows how")
        return next((run for run in runs if run.state not in ENDED), runs[0])

    def _home(self) -> None:
        """Show the panel of all runs; their table, and how to start one, where there is no page for it."""
        runs_dir = self._runs_dir(None)
        if environment.has_page(self.shell):
            from nbtune.widgets import home

            return display(home(self._handle, self._planned, self._start, self.shell.user_ns, runs_root(runs_dir)))
        display(runs_table(nbtune.runs(runs_dir=runs_dir)))
        return say("`%finetune` shows how to start a run, `%nbtune?` what else there is.")

    def _handle(self, path: Path) -> Any:
        """Return the handle of a run that is opened with a click: `run` in the lines of code that the page shows."""
        run = nbtune.attach(path)
        if isinstance(self.shell.user_ns.get(self.variable), nbtune.Run | None):
            self._keep(run)
        return run

    def _runs(self, args: Any) -> None:
        display(runs_table(nbtune.runs(runs_dir=self._runs_dir(args.runs))))

    def _attach(self, args: Any) -> None:
        run = self._run(args)
        self._keep(run)
        if run.state in ENDED:
            show_ended(run, self.shell)
        else:
            follow(run, self.shell, asked=args.wait, setting=self.wait)

    def _call(self, command: Command, args: Any) -> None:
        """Call the function of a command that has no method here, and show what came back."""
        run = self._run(args) if command.takes_run else None
        if run is not None and command.said and run.state in ENDED:
            return say(f"{run.name} is {run.state}.")
        value = command.call(args, lambda: run)
        if run is not None and command.said:
            return say(f"{command.said.format(run=run.name, nbtune='%nbtune')}.")
        return self._show(value)

    def _show(self, value: Any) -> None:
        if value is not None:
            display(value)

    def _resume(self, args: Any) -> None:
        run = self._run(args)
        if run.alive:  # in a process of its own, whose kernel may have gone
            say(f"{run.name} is at work.")
        else:
            run.resume(detach=args.detach)
        self._keep(run)
        follow(run, self.shell, asked=args.wait, setting=self.wait)

    def _export(self, args: Any) -> None:
        from nbtune.export.base_model import exporter_of

        def find(name: str) -> Any:
            return nbtune.attach(name, runs_dir=self._runs_dir(args.runs))

        files = _exported(exporter_of(args.run, find) if args.run else self._run(args).export, args)
        rows = [
            (file.type, f"{file.bytes / 2**20:,.1f} MiB", from_here(file.path), "; ".join(file.remarks))
            for file in files
        ]
        display(Table(("type", "size", "file", ""), rows, empty="nothing was exported"))

    def _push(self, args: Any) -> None:
        more = {"revision": args.branch, "create_pr": args.pr, "card": args.card, "message": args.message}
        more |= {"types": args.gguf} if args.gguf else {}
        what = "gguf" if args.gguf else args.what
        judged = {"importance": args.importance, "verify": args.verify}
        say(self._run(args).push_to_hub(args.repo, what=what, private=not args.public, **judged, **more))

    def _chat(self, args: Any) -> None:
        run = self._run(args)
        other = nbtune.attach(args.beside, runs_dir=self._runs_dir(args.runs)) if args.beside else None
        if args.prompt is not None:
            length = args.max_new_tokens
            answers = {"base": run.generate(args.prompt, base=True, max_new_tokens=length)}
            for asked in [run, *([other] if other is not None else [])]:
                answers[asked.name] = asked.generate(args.prompt, max_new_tokens=length)
            display(Table(tuple(answers), [tuple(answers.values())], empty=""))
        elif environment.has_page(self.shell):
            from nbtune.widgets import chat

            display(chat(run, other))
        else:
            raise SpecError(
                "there is no notebook page for the chat panel", fix=f"`%nbtune chat {run.name} --prompt 'Who are you?'`"
            )

    def _compare(self, args: Any) -> None:
        runs = [nbtune.attach(name, runs_dir=self._runs_dir(args.runs)) for name in args.run]
        if environment.has_page(self.shell):
            from nbtune.widgets import compare

            display(compare(runs))
        else:
            display(losses_table(runs))

    def _losses(self, args: Any) -> None:
        losses = self._run(args).losses(again=args.again)
        if "losses" not in self.shell.user_ns or hasattr(self.shell.user_ns["losses"], "sorted"):
            self.shell.user_ns["losses"] = losses
        display(losses)

    def _planned(self, spec: Any, **more: Any) -> Any:
        return nbtune.plan(spec, runs_dir=self._runs_dir(None), **more)

    def _plan(self, spec: Any, request: flags.Request) -> None:
        how: dict[str, Any] = {"rows": self.shell.user_ns, "runs_dir": self._runs_dir(request.runs_dir)}
        how |= {"machine": request.machine, "nodes": request.nodes, "network": request.network}
        plan = nbtune.plan(spec, **how)
        if request.table:
            return display(plan.table())
        show_plan(plan)

    def _submit(self, spec: Any, request: flags.Request) -> None:
        runs_dir = self._runs_dir(request.runs_dir)
        if request.print:
            from nbtune.api import job_file

            return say(job_file(spec, list(request.slurm), name=request.name, runs_dir=runs_dir).rstrip())
        how: dict[str, Any] = {"slurm": ",".join(request.slurm), "send": not request.unsent, "name": request.name}
        run = nbtune.submit(spec, rows=self.shell.user_ns, runs_dir=runs_dir, **how)
        self._keep(run)
        if run.state in ENDED:
            return say(f"{run.name} is {run.state}: {run.latest(State).detail}")
        return follow(run, self.shell, asked=request.wait, setting=self.wait)

    def _validate(self, spec: Any, _request: flags.Request) -> None:
        nbtune.validate(spec, rows=self.shell.user_ns)
        from nbtune.models.names import remarks

        said = "".join(f"\n# {remark}" for remark in remarks(spec))
        say(f"{to_yaml(spec).rstrip()}\n# the cell is fine{said}")

    def _script(self, args: Any) -> None:
        run = self._run(args)
        if args.out:
            from nbtune.store.export_script import written

            return say("\n".join(from_here(path) for path in written(run.folder, args.out)))
        self.shell.set_next_input(f"%%finetune --name {run.name}\n{run.yaml()}" if args.yaml else run.script())
        return say(
            f"The next cell trains {run.name} again, or what you make of its spec: same rows, same losses. As files: "
            f"`%nbtune script {run.name} --out .` (a script, and YAML for `%%finetune` or `nbtune train`)."
        )

    def _trust(self, args: Any) -> None:
        from nbtune.store.run_consent import allow, questions

        folder = self._run(args).folder
        wants = "".join(f"\nit wants {words}" for words in questions(folder))
        if wants and args.yes:
            allow(folder)
        name = harmless(folder.name, line=True)
        answer = "Allowed for this folder." if args.yes else f"`%nbtune trust {name} --yes` allows it, as yourself."
        say(f"{answer}{wants}" if wants else "There is nothing to allow: it runs nothing of its own.")

    def _data(self, args: Any) -> None:
        spec = from_mapping({"data": args.source, **({"model": args.model} if args.model else {})}, name="the line")
        if environment.has_page(self.shell):
            from nbtune.widgets import inspect

            display(inspect(spec, self.shell.user_ns))
        else:
            from nbtune.system_report import examine_rows

            say(str(examine_rows(spec, self.shell.user_ns).report))

    def _doctor(self, args: Any) -> None:
        from nbtune.system_report import examine

        findings = [
            (finding.mark, finding.topic, finding.text, finding.fix) for finding in examine(offline=args.offline)
        ]
        display(Table(("", "what", "found", "what to do"), findings, empty=""))

    def _cache(self, args: Any) -> None:
        from nbtune.system_report import cached

        if args.prune is not None:
            from nbtune.data.prepare.cache import prune

            say(f"{prune(int(args.prune * 2**30)) / 2**20:,.1f} MiB of prepared data thrown away.")
        kept = [(f"{entry.bytes / 2**20:,.1f} MiB", entry.kind, entry.name) for entry in cached()]
        display(Table(("size", "kind", "name"), kept, empty="Nothing is kept."))


# IPython asks an object for its help by `getdoc`: made when it is asked for, from the fields of the spec.
NbtuneMagics.finetune.getdoc = usage.finetune_help
NbtuneMagics.nbtune.getdoc = usage.nbtune_help


def _nested(overrides: dict[str, Any]) -> dict[str, Any]:
    body: dict[str, Any] = {}
    for key, value in overrides.items():
        *parents, last = key.split(".")
        inner = body
        for part in parents:
            inner = inner.setdefault(part, {})
        inner[last] = value
    return body


def _left_behind(run: Any) -> str:
    """Return that an earlier run of this name has not come to its end, if so: one may have wanted to go on with it."""
    same = [other for other in nbtune.runs(run.folder.parent) if other.name == run.name and other.id != run.id]
    if not same or same[0].state not in ("stopped", "interrupted") or not same[0].step:
        return ""
    older = same[0]
    return (
        f"This is a new run. The one before, {older.id}, was {older.state} at step {older.step:,} of "
        f"{older.total_steps:,}: `%nbtune resume {older.id}` goes on with it."
    )


def _is_rows(name: str, value: Any) -> bool:
    rows = isinstance(value, list) and bool(value) and isinstance(value[0], dict)
    return not name.startswith("_") and (rows or type(value).__name__ == "DataFrame")


def _exported(exporter: Any, args: Any) -> list[Any]:
    """Return what the flags ask for, or a q8_0 GGUF if they ask for nothing."""
    from nbtune.export import take_home

    kinds = {"adapter": args.adapter, "adapter_gguf": args.adapter_gguf, "gguf": args.gguf}
    kinds |= {"merged": args.dtype if args.merged else "", "ollama": args.ollama_type if args.ollama else ""}
    kinds["html"] = args.html
    if not any(kinds.values()):
        kinds["gguf"] = ["q8_0"]
    felt = args.imatrix or args.importance
    return take_home(exporter, out=args.out, rows=args.rows, importance=felt, verify=args.verify, **kinds)
