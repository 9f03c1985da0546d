"""What each command does in a shell: it calls one public function, and says what came back.

A command of the table that has no function here calls its own, and its value is said (`perform`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import typer

import nbtune
from nbtune.cli.listing import list_runs, losses_table, run_facts
from nbtune.cli.output import following, request, result, say, shown, table, watch_losses, work
from nbtune.cli.spec_file import placed, spec_of
from nbtune.cli.wait import done, submitted, until_begun, until_ended
from nbtune.commands import Command
from nbtune.errors import SpecError
from nbtune.events import ENDED


def perform(command: Command, given: Any) -> None:
    """Do what was asked for.

    Args:
        command: of the table.
        given: a value for each of its arguments' `dest`.
    """
    action = ACTIONS.get(command.name)
    if action is not None:
        action(given)
    elif command.said:
        _ask_run(command, given)
    else:
        _call(command, given)


def _find(given: Any) -> Any:
    with request():
        return nbtune.attach(given.run, given.runs)


def _ask_run(command: Command, given: Any) -> None:
    """Ask for something that a run does at its next step, if it lives."""
    run = _find(given)
    if run.state not in ENDED:
        command.call(given, lambda: run)
    text = command.said.format(run=run.name, nbtune="nbtune")
    result(run_facts(run), as_json=given.json, text=f"{run.name} is {run.state}" if run.state in ENDED else text)


def _call(command: Command, given: Any) -> None:
    if command.body:
        return _call_with_spec(command, given)
    with work():
        value = command.call(given, lambda: _find(given))
    return _say(value, as_json=given.json)


def _call_with_spec(command: Command, given: Any) -> None:
    with work(), request():
        spec = spec_of(given.spec, given.set)
        with placed(given.spec):
            value = command.public_function()(spec)
    _say(value, as_json=given.json)


def _say(value: Any, *, as_json: bool) -> None:
    for each in value if isinstance(value, list) else [] if value is None else [value]:
        facts = each.to_dict() if hasattr(each, "to_dict") else each
        facts = facts if isinstance(facts, Mapping) else {"result": facts}
        result(facts, as_json=as_json, text=str(each))


# -- of a spec ----------------------------------------------------------------------------------------------------


def train(given: Any) -> None:
    """Train, and follow the run until it has ended, or with `--detach` until it has begun."""
    if given.dry_run:
        return plan(given)
    with request():
        if given.machine is not None or given.table or given.nodes != 1 or given.network is not None:
            what = "`--machine`, `--nodes`, `--network` and `--table` are for a plan"
            raise SpecError(f"{what}: this trains here", fix="add `--dry-run`")
        if given.restart and given.queue:
            raise SpecError("`--restart` and `--queue` exclude each other", fix="keep one")
        spec = spec_of(given.spec, given.set)
    with work():
        with request(), placed(given.spec):
            on_busy: Literal["attach", "restart", "queue"]
            on_busy = "restart" if given.restart else "queue" if given.queue else "attach"
            run = nbtune.finetune(spec, name=given.name, runs_dir=given.runs, on_busy=on_busy, detach=given.detach)
        until_begun(run) if given.detach else until_ended(run, quiet=given.quiet)
    return done(run, given.json, detached=given.detach, quiet=given.quiet)


def plan(given: Any) -> None:
    """Show a plan, and why."""
    with work(), request():
        spec = spec_of(given.spec, given.set)
        with placed(given.spec):
            how: dict[str, Any] = {"machine": given.machine, "nodes": given.nodes, "network": given.network}
            plan_made = nbtune.plan(spec, runs_dir=given.runs, **how)
    if given.table:
        ways = plan_made.table()
        return result({"ways": [vars(way) for way in ways]}, as_json=given.json, text=str(ways))
    result(plan_made.model_dump(mode="json"), as_json=given.json, text=plan_made.explain())


def submit(given: Any) -> None:
    """Give the run to Slurm, or show what it would be given."""
    from nbtune.api import job_file

    with work(), request():
        if given.job and given.slurm:
            raise SpecError("a job is Slurm's or another tool's", place="--job", fix="leave out --slurm, or --job")
        spec = spec_of(given.spec, given.set)
        if given.print:
            text = job_file(spec, given.job or given.slurm or [], name=given.name, runs_dir=given.runs)
        else:
            with placed(given.spec):
                options, where = given.job or ",".join(given.slurm or []), {"name": given.name, "runs_dir": given.runs}
                run = nbtune.submit(spec, slurm=options, send=not (given.unsent or given.job), **where)
    if given.print:
        return result({"file": text}, as_json=given.json, text=text.rstrip("\n"))
    submitted(run, given.json, sent=not (given.unsent or given.job))


def validate(given: Any) -> None:
    """Show the spec as it was understood."""
    from nbtune.models.names import remarks
    from nbtune.spec import to_yaml

    with work(), request():
        spec = spec_of(given.spec, given.set)
        with placed(given.spec):
            nbtune.validate(spec, runs_dir=given.runs)
    facts, said = spec.model_dump(mode="json", exclude_defaults=True), remarks(spec)
    for remark in said:
        say(f"nbtune: {remark}")
    result(
        {"spec": facts, "warnings": said},
        as_json=given.json,
        text=f"{to_yaml(spec).rstrip()}\n# {given.spec.name} is fine",
    )


# -- of runs ------------------------------------------------------------------------------------------------------


def runs(given: Any) -> None:
    """Show a table of runs."""
    list_runs(nbtune.runs(given.runs), as_json=given.json)


def trust(given: Any) -> None:
    """Show what a folder wants, ask, and give leave for it."""
    from nbtune.store.run_consent import questions

    with request():
        folder = nbtune.attach(given.run, given.runs).folder
        wishes = questions(folder)
        for words in wishes:
            say(f"it wants {words}")
        if (
            wishes
            and not given.yes
            and not (sys.stdin.isatty() and typer.confirm("Allow this, as yourself?", err=True))
        ):
            raise SpecError("nothing was allowed", fix="answer y, or give `--yes`")
        nbtune.trust(folder)
    text = "allowed for this folder" if wishes else "there is nothing to allow: it runs nothing of its own"
    result({"folder": shown(folder), "allowed": wishes}, as_json=given.json, text=text)


def resume(given: Any) -> None:
    """Let a run go on, and follow it until it has ended."""
    with work():
        with request():
            run = nbtune.attach(given.run, given.runs).resume(detach=given.detach)
        if run.submitted:
            return submitted(run, given.json)
        until_begun(run) if given.detach else until_ended(run, quiet=given.quiet)
    done(run, given.json, detached=given.detach, quiet=given.quiet)


def attach(given: Any) -> None:
    """Show a moving line until the run has ended."""
    run = _find(given)
    with following(run, quiet=given.quiet):
        run.wait()
    done(run, given.json, quiet=given.quiet)


def chat(given: Any) -> None:
    """Print an answer to the prompt, or one to each line that is typed."""
    run = _find(given)
    messages: list[dict[str, Any]] = []
    for text in [given.prompt] if given.prompt is not None else _typed():
        messages.append({"role": "user", "content": text})
        with work():
            answer = run.generate(messages, max_new_tokens=given.max_new_tokens, base=given.base)
        messages.append({"role": "assistant", "content": answer})
        result({"prompt": text, "answer": answer}, as_json=given.json, text=answer)


def _typed() -> Iterator[str]:
    """Yield lines from the keyboard, or from a pipe."""
    while True:
        if sys.stdin.isatty():
            say("> ")
        line = sys.stdin.readline()
        if not line.strip():
            return
        yield line.rstrip("\n")


def losses(given: Any) -> None:
    """Show both ends of the rows' losses; as JSON all of them."""
    run = _find(given)
    with work():
        measured = run.losses(again=given.again)
        watch_losses(measured)
    if given.json:
        for row in measured.sorted(given.by):
            result({**vars(row), "learnt": row.learnt}, as_json=True, text="")
        return
    print(measured.said())
    for title, lowest in (("highest", False), ("lowest", True)):
        print(f"\n{title} {given.by}:\n{table(*measured.table(given.by, count=given.count, lowest=lowest))}")


def compare(given: Any) -> None:
    """Show where the runs stand."""
    with request():
        named = [nbtune.attach(which, given.runs) for which in given.run]
    if given.json:
        for run in named:
            result(run_facts(run), as_json=True, text="")
    else:
        result({}, as_json=False, text=losses_table(named))


# -- what is taken home -------------------------------------------------------------------------------------------


def export(given: Any) -> None:
    """Write files of the kinds that are named."""
    from nbtune.export import take_home

    kinds: dict[str, Any] = {"gguf": given.gguf or (), "adapter": given.adapter, "adapter_gguf": given.adapter_gguf}
    kinds["merged"] = given.dtype if given.merged else ""
    kinds["ollama"] = given.ollama_type if given.ollama else ""
    kinds["html"] = given.html
    if not any(kinds.values()):
        with request():
            raise SpecError(
                "nothing to export was named", fix="add --gguf q8_0, --merged, --adapter, --ollama or --html"
            )
    with work():
        with request():
            exporter = _exporter(given.run, [*(given.gguf or []), given.ollama_type], given.runs)
        felt = given.imatrix or given.importance
        files = take_home(exporter, out=given.out, rows=given.rows, importance=felt, verify=given.verify, **kinds)
    for file in files:
        facts = {"path": shown(file.path), "type": file.type, "bytes": file.bytes, "notes": list(file.notes)}
        facts["quality"] = file.quality.facts() if file.quality else None
        size = f"{shown(file.path)}  {file.bytes / 2**20:,.1f} MiB"
        result(facts, as_json=given.json, text="\n".join([size, *(f"  {line}" for line in file.remarks)]))


def _exporter(which: str, types: list[str], runs_dir: Path | None) -> Any:
    from nbtune.export.base_model import exporter_of
    from nbtune.spec.gguf_types import type_named

    for kind in types:
        type_named(kind)  # refused before any work
    return exporter_of(which, lambda name: nbtune.attach(name, runs_dir))


def push(given: Any) -> None:
    """Upload, and print the address."""
    with work():
        run = _find(given)
        more: dict[str, Any] = {"revision": given.branch, "create_pr": given.pr, "message": given.message}
        more |= {"card": given.card, "importance": given.importance, "verify": given.verify}
        more |= {"types": given.gguf} if given.gguf else {}
        url = run.push_to_hub(given.repo, what="gguf" if given.gguf else given.what, private=not given.public, **more)
    result({"url": url}, as_json=given.json, text=url)


def script(given: Any) -> None:
    """Print a script that trains the run again, or where its files are."""
    from nbtune.store.export_script import written

    with request():
        run = nbtune.attach(given.run, given.runs)
        if given.out is not None:
            paths = [shown(path) for path in written(run.folder, given.out)]
            texts = dict(zip(("script", "yaml"), paths, strict=True))
            text = "\n".join(paths)
        else:
            texts = {"script": run.script(), "yaml": run.yaml()}
            text = texts["yaml" if given.yaml else "script"].rstrip("\n")
    result(texts, as_json=given.json, text=text)


# -- what is here -------------------------------------------------------------------------------------------------


def data(given: Any) -> None:
    """Print a report on rows; as JSON each of them with its tokens."""
    from nbtune.spec import from_mapping
    from nbtune.system_report import examine_rows

    with work(), request():
        body: dict[str, Any] = {"data": list(given.source), **({"model": given.model} if given.model else {})}
        rows = examine_rows(spec_of(given.spec, None, body) if given.spec else from_mapping(body))
    if given.json:
        for row in rows.each():
            result(row, as_json=True, text="")
    else:
        print(rows.report)


def doctor(given: Any) -> None:
    """Show what was found.

    Raises:
        typer.Exit: with 1, if something must be mended.
    """
    from nbtune.system_report import examine

    findings = examine(offline=given.offline)
    for finding in findings:
        fix = f"\n  → {finding.fix}" if finding.fix else ""
        text = f"{finding.mark} {finding.topic}: {finding.text}{fix}"
        result(finding.to_dict(), as_json=given.json, text=text)
    if any(finding.status == "problem" for finding in findings):
        raise typer.Exit(1)


def cache(given: Any) -> None:
    """Throw away what was to be, and show what is kept."""
    from nbtune.system_report import cached

    if given.prune is not None:
        from nbtune.data.prepare.cache import prune

        freed = prune(int(given.prune * 2**30))
        result({"freed": freed}, as_json=given.json, text=f"{freed / 2**20:,.1f} MiB of prepared data thrown away")
    entries = cached()
    for entry in entries:
        text = f"{entry.bytes / 2**20:>10,.1f} MiB  {entry.kind:<8} {entry.name}"
        result(entry.to_dict(), as_json=given.json, text=text)
    if not given.json:
        say(f"{sum(entry.bytes for entry in entries) / 2**30:,.2f} GiB in all")


ACTIONS: dict[str, Callable[[Any], None]] = {
    action.__name__: action
    for action in (
        *(train, plan, submit, validate, runs, trust, resume, attach, chat, losses, compare),
        *(export, push, script, data, doctor, cache),
    )
}
