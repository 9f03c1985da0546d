"""The commands: each reads its request, calls one public function, and says what came back."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

import nbtune
from nbtune.cli.listing import list_runs, run_facts
from nbtune.cli.output import following, request, result, say, shown, table, watch_losses, work
from nbtune.cli.spec_file import placed, spec_of
from nbtune.cli.wait import done, until_begun, until_ended
from nbtune.errors import SpecError
from nbtune.events import ENDED

__all__ = ["app"]

app = typer.Typer(
    name="nbtune",
    help="Fine-tune language models: the same runs as in a notebook, from a shell.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

SpecFile = Annotated[Path, typer.Argument(metavar="SPEC", help="A YAML file: the same text as a cell's body.")]
Which = Annotated[str, typer.Argument(metavar="RUN", help="Name (its newest run), id, or folder.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A key that wins over the file, as adapter.r=8.")
]
Runs = Annotated[
    Path | None, typer.Option("--runs", metavar="DIR", help="Where runs are; by default NBTUNE_RUNS, or ./runs.")
]
Detach = Annotated[
    bool, typer.Option("--detach", help="In a process of its own: return once it has begun, and leave it alone.")
]
Importance = Annotated[
    bool, typer.Option("--importance", help="Spend the bits of GGUF files where the run's held-out rows feel them.")
]
Verify = Annotated[
    bool | None,
    typer.Option("--verify/--no-verify", help="Compare GGUF files with the model; where llama.cpp is, by default."),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON line a result on stdout.")]


def _version(wanted: bool) -> None:
    if wanted:
        print(nbtune.__version__)
        raise typer.Exit


@app.callback()
def top(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
    traceback: Annotated[bool, typer.Option("--traceback", help="On an error, show where (with any command).")] = False,
) -> None:
    """Fine-tune language models: the same runs as in a notebook, from a shell."""


@app.command()
def train(
    spec: SpecFile,
    name: Annotated[str, typer.Option("--name", help="What the run is called.")] = "run",
    set_: Set = None,
    restart: Annotated[bool, typer.Option("--restart", help="Stop and save a living run of this name first.")] = False,
    queue: Annotated[bool, typer.Option("--queue", help="Start when a living run of this name has ended.")] = False,
    detach: Detach = False,
    runs: Runs = None,
    as_json: Json = False,
) -> None:
    """Train, and wait until it has ended. The first Ctrl-C stops and saves, the second leaves."""
    with request():
        if restart and queue:
            raise SpecError("`--restart` and `--queue` exclude each other", fix="keep one")
        asked = spec_of(spec, set_)
    with work():
        with request(), placed(spec):
            on_busy: Literal["attach", "restart", "queue"] = "restart" if restart else "queue" if queue else "attach"
            run = nbtune.finetune(asked, name=name, runs_dir=runs, on_busy=on_busy, detach=detach)
        until_begun(run) if detach else until_ended(run)
    done(run, as_json, detached=detach)


@app.command()
def plan(spec: SpecFile, set_: Set = None, as_json: Json = False) -> None:
    """What a run would cost: memory, disk, download, time, and why."""
    with work(), request():
        asked = spec_of(spec, set_)
        with placed(spec):
            made = nbtune.plan(asked)
    result(made.model_dump(mode="json"), as_json=as_json, text=made.explain())


@app.command()
def validate(spec: SpecFile, set_: Set = None, as_json: Json = False) -> None:
    """Whether a spec can be meant: its keys and values, and the first rows of its data. Loads no model."""
    from nbtune.spec import to_yaml

    with work(), request():
        asked = spec_of(spec, set_)
        with placed(spec):
            nbtune.validate(asked)
    facts = asked.model_dump(mode="json", exclude_defaults=True)
    result({"spec": facts}, as_json=as_json, text=f"{to_yaml(asked).rstrip()}\n# {spec.name} is fine")


@app.command()
def runs(runs: Runs = None, as_json: Json = False) -> None:
    """The runs that are there, newest first."""
    list_runs(nbtune.runs(runs), as_json=as_json)


@app.command()
def trust(
    run: Which,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    runs: Runs = None,
    as_json: Json = False,
) -> None:
    """Allow what a run's folder wants to run here: the functions of its data, its model's own code."""
    from nbtune.store.run_consent import questions

    with request():
        folder = nbtune.attach(run, runs).folder
        asked = questions(folder)
        for words in asked:
            say(f"it wants {words}")
        if asked and not yes and not (sys.stdin.isatty() and typer.confirm("Allow this, as yourself?", err=True)):
            raise SpecError("nothing was allowed", fix="answer y, or give `--yes`")
        nbtune.trust(folder)
    text = "allowed for this folder" if asked else "there is nothing to allow: it runs nothing of its own"
    result({"folder": shown(folder), "allowed": asked}, as_json=as_json, text=text)


@app.command()
def resume(run: Which, detach: Detach = False, runs: Runs = None, as_json: Json = False) -> None:
    """Go on from the last checkpoint, and wait until it has ended."""
    with work():
        with request():
            found = nbtune.attach(run, runs).resume(detach=detach)
        until_begun(found) if detach else until_ended(found)
    done(found, as_json, detached=detach)


@app.command()
def stop(
    run: Which,
    wait: Annotated[bool, typer.Option("--wait", help="Until it has ended.")] = False,
    runs: Runs = None,
    as_json: Json = False,
) -> None:
    """Stop at the next step and save, in whichever process it trains."""
    with request():
        found = nbtune.attach(run, runs)
    if found.state not in ENDED:
        found.stop(wait=wait)
    text = f"{found.name} is {found.state}" if found.state in ENDED else f"{found.name} stops at its next step"
    result(run_facts(found), as_json=as_json, text=text)


@app.command()
def attach(run: Which, runs: Runs = None, as_json: Json = False) -> None:
    """Watch a run until it has ended. Ctrl-C stops the watching, not the run."""
    with request():
        found = nbtune.attach(run, runs)
    with following(found):
        found.wait()
    done(found, as_json)


@app.command()
def chat(
    run: Which,
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", help="Ask this and leave.")] = None,
    base: Annotated[bool, typer.Option("--base", help="Ask the base model, without what was learnt.")] = False,
    max_new_tokens: Annotated[int, typer.Option(help="The answer's length at most.")] = 256,
    runs: Runs = None,
    as_json: Json = False,
) -> None:
    """Talk to a run's model; also while it trains, at the next step. An empty line or Ctrl-D leaves."""
    with request():
        found = nbtune.attach(run, runs)
    messages: list[dict[str, Any]] = []
    for text in [prompt] if prompt is not None else _typed():
        messages.append({"role": "user", "content": text})
        with work():
            answer = found.generate(messages, max_new_tokens=max_new_tokens, base=base)
        messages.append({"role": "assistant", "content": answer})
        result({"prompt": text, "answer": answer}, as_json=as_json, text=answer)


@app.command()
def losses(
    run: Which,
    count: Annotated[int, typer.Option("-n", "--count", min=1, help="Rows that are shown of each end.")] = 10,
    by: Annotated[
        Literal["loss", "base", "learnt", "tokens"], typer.Option("--by", help="What rows are sorted by.")
    ] = "loss",
    again: Annotated[bool, typer.Option("--again", help="Measure also what is measured already.")] = False,
    runs: Runs = None,
    as_json: Json = False,
) -> None:
    """The rows with the highest and lowest loss. `--json`: all of them, highest first. Ctrl-C stops the measuring."""
    with request():
        found = nbtune.attach(run, runs)
    with work():
        measured = found.losses(again=again)
        watch_losses(measured)
    if as_json:
        for row in measured.sorted(by):
            result({**vars(row), "learnt": row.learnt}, as_json=True, text="")
        return
    print(measured.said())
    for title, lowest in (("highest", False), ("lowest", True)):
        print(f"\n{title} {by}:\n{table(*measured.table(by, count=count, lowest=lowest))}")


@app.command()
def export(
    which: Annotated[str, typer.Argument(metavar="RUN|MODEL", help="A run, or a model's folder or Hub id.")],
    gguf: Annotated[
        list[str] | None, typer.Option("--gguf", metavar="TYPE...", help="GGUF files: f16, bf16, q8_0, …")
    ] = None,
    merged: Annotated[bool, typer.Option("--merged", help="The whole model as safetensors.")] = False,
    dtype: Annotated[
        Literal["bfloat16", "float16", "float32"],
        typer.Option(metavar="DTYPE", help="Of the merged model, as float16."),
    ] = "bfloat16",
    adapter: Annotated[bool, typer.Option("--adapter", help="The adapter as safetensors.")] = False,
    adapter_gguf: Annotated[
        bool, typer.Option("--adapter-gguf", help="The adapter for llama.cpp's --lora and Ollama's ADAPTER.")
    ] = False,
    ollama: Annotated[bool, typer.Option("--ollama", help="A GGUF file with its Modelfile.")] = False,
    ollama_type: Annotated[str, typer.Option(metavar="TYPE", help="Type of Ollama's file.")] = "q8_0",
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="By default exports/ in the run's folder.")] = None,
    importance: Importance = False,
    verify: Verify = None,
    runs: Runs = None,
    as_json: Json = False,
) -> None:
    """Take files home."""
    from nbtune.export import take_home

    kinds: dict[str, Any] = {"gguf": gguf or (), "adapter": adapter, "adapter_gguf": adapter_gguf}
    kinds |= {"merged": dtype if merged else "", "ollama": ollama_type if ollama else ""}
    if not any(kinds.values()):
        with request():
            raise SpecError("nothing to export was named", fix="add --gguf q8_0, --merged, --adapter or --ollama")
    with work():
        with request():
            exporter = _exporter(which, [*(gguf or []), ollama_type], runs)
        files = take_home(exporter, out=out, importance=importance, verify=verify, **kinds)
    for file in files:
        facts = {"path": shown(file.path), "type": file.type, "bytes": file.bytes, "notes": list(file.notes)}
        facts["quality"] = file.quality.facts() if file.quality else None
        text = "\n".join(
            [f"{shown(file.path)}  {file.bytes / 2**20:,.1f} MiB", *(f"  {line}" for line in file.remarks)]
        )
        result(facts, as_json=as_json, text=text)


@app.command()
def push(
    run: Which,
    repo: Annotated[str, typer.Argument(metavar="REPO", help="owner/name on the Hub.")],
    public: Annotated[bool, typer.Option("--public", help="Everybody may see it; private by default.")] = False,
    what: Annotated[
        Literal["adapter", "merged", "gguf"], typer.Option(metavar="KIND", help="adapter, merged or gguf.")
    ] = "adapter",
    gguf: Annotated[list[str] | None, typer.Option("--gguf", metavar="TYPE...", help="GGUF files instead.")] = None,
    branch: Annotated[str | None, typer.Option(metavar="NAME", help="A branch, made where there is none.")] = None,
    pull_request: Annotated[bool, typer.Option("--pr", help="Open a pull request instead of committing.")] = False,
    message: Annotated[str, typer.Option(metavar="TEXT", help="Of the commit.")] = "Upload with nbtune",
    card: Annotated[Path | None, typer.Option(metavar="FILE", help="A model card of your own.")] = None,
    importance: Importance = False,
    verify: Verify = None,
    runs: Runs = None,
    as_json: Json = False,
) -> None:
    """Upload the adapter, the merged model or GGUF files with a card, with huggingface_hub's own login or HF_TOKEN."""
    with work():
        with request():
            found = nbtune.attach(run, runs)
        more: dict[str, Any] = {"revision": branch, "create_pr": pull_request, "message": message, "card": card}
        more |= {"importance": importance, "verify": verify} | ({"types": gguf} if gguf else {})
        url = found.push_to_hub(repo, what="gguf" if gguf else what, private=not public, **more)
    result({"url": url}, as_json=as_json, text=url)


@app.command()
def script(
    run: Which,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Write NAME.py and NAME.yaml here instead.")] = None,
    yaml: Annotated[bool, typer.Option("--yaml", help="Print the YAML instead of the script.")] = False,
    runs: Runs = None,
    as_json: Json = False,
) -> None:
    """Print a Python script that trains a run again: its spec to change, the same rows, the same losses."""
    from nbtune.store.export_script import written

    with request():
        found = nbtune.attach(run, runs)
        if out is not None:
            made = [shown(path) for path in written(found.folder, out)]
            texts = dict(zip(("script", "yaml"), made, strict=True))
            text = "\n".join(made)
        else:
            texts = {"script": found.script(), "yaml": found.yaml()}
            text = texts["yaml" if yaml else "script"].rstrip("\n")
    result(texts, as_json=as_json, text=text)


@app.command()
def data(
    source: Annotated[list[str], typer.Argument(metavar="SOURCE...", help="Files, folders, Hub ids, nbtune's sets.")],
    model: Annotated[str | None, typer.Option(metavar="MODEL", help="Whose tokenizer and template.")] = None,
    spec: Annotated[Path | None, typer.Option(metavar="SPEC", help="A YAML file whose other keys count.")] = None,
    as_json: Json = False,
) -> None:
    """How rows are read, and which of their tokens are trained."""
    from nbtune.spec import from_mapping
    from nbtune.system_report import examine_rows

    with work(), request():
        body: dict[str, Any] = {"data": list(source), **({"model": model} if model else {})}
        rows = examine_rows(spec_of(spec, None, body) if spec else from_mapping(body))
    if as_json:
        for row in rows.each():
            result(row, as_json=True, text="")
    else:
        print(rows.report)


@app.command()
def doctor(
    offline: Annotated[bool, typer.Option("--offline", help="Also what is missing to work without a network.")] = False,
    as_json: Json = False,
) -> None:
    """This machine, its packages, and what to mend. Exit 1 if something must be mended."""
    from nbtune.system_report import examine as examine_machine

    findings = examine_machine(offline=offline)
    for finding in findings:
        fix = f"\n  → {finding.fix}" if finding.fix else ""
        text = f"{finding.mark} {finding.topic}: {finding.text}{fix}"
        result(finding.to_dict(), as_json=as_json, text=text)
    if any(finding.status == "problem" for finding in findings):
        raise typer.Exit(1)


@app.command()
def cache(
    prune: Annotated[
        float | None,
        typer.Option(
            "--prune",
            metavar="GIB",
            min=0,
            help="Throw prepared data away, what was not used for longest first, until so much is left; 0: all of it.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """What lies in the caches: models and data sets of the Hub, prepared data. Only prepared data is ever pruned."""
    from nbtune.system_report import cached

    if prune is not None:
        from nbtune.data.prepare.cache import prune as throw_away

        freed = throw_away(int(prune * 2**30))
        result({"freed": freed}, as_json=as_json, text=f"{freed / 2**20:,.1f} MiB of prepared data thrown away")
    entries = cached()
    for entry in entries:
        result(
            entry.to_dict(), as_json=as_json, text=f"{entry.bytes / 2**20:>10,.1f} MiB  {entry.kind:<8} {entry.name}"
        )
    if not as_json:
        say(f"{sum(entry.bytes for entry in entries) / 2**30:,.2f} GiB in all")


def _exporter(which: str, types: list[str], runs: Path | None) -> Any:
    from nbtune.cli.export_model import exporter
    from nbtune.export.gguf.types import type_named

    for kind in types:
        type_named(kind)  # refused before any work
    return exporter(which, runs)


def _typed() -> Any:
    """Lines from the keyboard, or from a pipe."""
    while True:
        if sys.stdin.isatty():
            say("> ")
        line = sys.stdin.readline()
        if not line.strip():
            return
        yield line.rstrip("\n")
