"""What `%nbtune` can do: each command with its flags, its sentence, and the call it stands for."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from nbtune.notebook.flags import Parser, finetune_parser

__all__ = ["COMMANDS", "GGUF_TYPES", "Command", "embedded_sets", "nbtune_help", "parser"]

GGUF_TYPES = (
    *("f32", "f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q5_k_s", "q5_1", "q5_0", "q4_k_m", "q4_k_s", "q4_1", "q4_0"),
    *("iq4_nl", "iq4_xs", "q3_k_l", "q3_k_m", "q3_k_s", "q2_k"),
)
DTYPES = ("bfloat16", "float16", "float32")
KINDS = ("adapter", "merged", "gguf")


@dataclass(frozen=True)
class Command:
    """One command: `call` is the line of Python that does the same."""

    help: str
    call: str
    fill: Callable[[Parser], None] | None = None
    takes_run: bool = True


def _run_flag(to: Parser) -> None:
    to.add_argument("run", nargs="?", metavar="RUN", help="name or id; unset: the living run, or else the latest")
    to.add_argument("--runs", metavar="DIR", help="where run folders are; unset: NBTUNE_RUNS, or ./runs")


def _runs(to: Parser) -> None:
    to.add_argument("--runs", metavar="DIR", help="where run folders are; unset: NBTUNE_RUNS, or ./runs")


def _follow(to: Parser) -> None:
    _run_flag(to)
    to.add_argument("--wait", action="store_true", help="stay in the cell until the run has ended")


def _resume(to: Parser) -> None:
    _follow(to)
    to.add_argument("--detach", action="store_true", help="in a process of its own, which survives the kernel")


def _judged(to: Parser) -> None:
    to.add_argument("--importance", action="store_true", help="spend bits where the run's held-out rows feel them")
    to.add_argument(
        "--verify",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="compare GGUF files with the model in llama.cpp; unset: where there is one",
    )


def _export(to: Parser) -> None:
    _run_flag(to)
    to.add_argument("--gguf", nargs="+", metavar="TYPE", default=[], help="GGUF files, such as q8_0, q4_k_m or f16")
    to.add_argument("--merged", action="store_true", help="the whole model as safetensors")
    to.add_argument("--dtype", metavar="DTYPE", choices=DTYPES, default=DTYPES[0], help="its numbers; unset: bfloat16")
    to.add_argument("--adapter", action="store_true", help="the adapter as safetensors")
    to.add_argument(
        "--adapter-gguf", action="store_true", help="the adapter for llama.cpp's --lora and Ollama's ADAPTER"
    )
    to.add_argument("--ollama", action="store_true", help="a GGUF file with its Modelfile")
    to.add_argument("--ollama-type", metavar="TYPE", default="q8_0", help="its type; unset: q8_0")
    to.add_argument("--out", metavar="DIR", help="where the files go; unset: exports/ in the run's folder")
    _judged(to)


def _push(to: Parser) -> None:
    to.add_argument("run", metavar="RUN", help="name or id")
    to.add_argument("repo", metavar="REPO", help="owner/name on the Hub")
    to.add_argument("--what", metavar="KIND", choices=KINDS, default=KINDS[0], help="adapter, merged or gguf")
    to.add_argument("--gguf", nargs="+", metavar="TYPE", default=[], help="GGUF files instead of the adapter")
    to.add_argument("--public", action="store_true", help="everybody may see it; unset: private")
    to.add_argument("--branch", metavar="NAME", help="a branch, made where there is none; unset: the main one")
    to.add_argument("--pr", action="store_true", help="open a pull request instead of committing")
    to.add_argument("--message", metavar="TEXT", help="of the commit")
    to.add_argument("--card", metavar="FILE", help="a model card of your own, instead of the one made of the run")
    _judged(to)
    to.add_argument("--runs", metavar="DIR", help="where run folders are; unset: NBTUNE_RUNS, or ./runs")


def _chat(to: Parser) -> None:
    _run_flag(to)
    to.add_argument("--prompt", metavar="TEXT", help="ask this, and show what base and tuned model answer")
    to.add_argument("--beside", metavar="RUN", help="compare with this run, instead of with the base model")


def _script(to: Parser) -> None:
    _run_flag(to)
    to.add_argument("--out", metavar="DIR", help="write NAME.py and NAME.yaml here instead")


def _compare(to: Parser) -> None:
    to.add_argument("run", nargs="+", metavar="RUN", help="names or ids of two or more runs")
    to.add_argument("--runs", metavar="DIR", help="where run folders are; unset: NBTUNE_RUNS, or ./runs")


def _losses(to: Parser) -> None:
    _run_flag(to)
    to.add_argument("--again", action="store_true", help="measure also what is measured already")


def _trust(to: Parser) -> None:
    _run_flag(to)
    to.add_argument("--yes", action="store_true", help="allow it; unset: only say what it wants")


def _data(to: Parser) -> None:
    to.add_argument("source", nargs="+", metavar="SOURCE", help="a variable of the notebook, a file, a Hub id")
    to.add_argument("--model", metavar="MODEL", default="nbtune/tiny", help="whose tokenizer and template")


def _doctor(to: Parser) -> None:
    to.add_argument("--offline", action="store_true", help="also what is missing to work without a network")


COMMANDS: dict[str, Command] = {
    "runs": Command("a table of the runs, newest first", "nbtune.runs()", _runs, takes_run=False),
    "attach": Command("show a run's monitor here", "nbtune.attach(RUN).monitor()", _follow),
    "stop": Command("stop at the next step and save", "nbtune.attach(RUN).stop()", _run_flag),
    "pause": Command("hold at the next step", "nbtune.attach(RUN).pause()", _run_flag),
    "unpause": Command("go on", "nbtune.attach(RUN).unpause()", _run_flag),
    "resume": Command("go on from the last checkpoint", "nbtune.attach(RUN).resume()", _resume),
    "export": Command("take files home", "nbtune.attach(RUN).export.gguf(TYPE, …)", _export),
    "push": Command("upload to the Hub, with a model card", "nbtune.attach(RUN).push_to_hub(REPO)", _push),
    "chat": Command("talk to the model", "nbtune.widgets.chat(RUN)", _chat),
    "losses": Command("the rows with the highest and lowest loss", "nbtune.attach(RUN).losses()", _losses),
    "compare": Command("losses of runs on one chart", "nbtune.widgets.compare([RUN, …])", _compare),
    "plan": Command("what a run would cost; the flags of %%finetune", "nbtune.plan(SPEC)", None, takes_run=False),
    "script": Command("the run as a Python script, in a new cell", "nbtune.attach(RUN).script()", _script),
    "trust": Command("allow what a run's folder wants to run here", "nbtune.trust(RUN)", _trust),
    "data": Command(
        "how rows are read and what is trained", "nbtune.system_report.examine_rows(SPEC)", _data, takes_run=False
    ),
    "doctor": Command(
        "this machine, its packages, and what to mend", "nbtune.system_report.examine()", _doctor, takes_run=False
    ),
}


@cache
def parser(name: str) -> Parser:
    """The parser of a command's flags."""
    if name == "plan":
        return finetune_parser("%nbtune plan")
    made = Parser(prog=f"%nbtune {name}")
    fill = COMMANDS[name].fill
    if fill is not None:
        fill(made)
    return made


def nbtune_help() -> str:
    """What `%nbtune?` shows."""
    lines = ["Runs from the keyboard.", "", "Usage: %nbtune COMMAND … [flags]", ""]
    for name, command in COMMANDS.items():
        actions = [] if name == "plan" else [each for each in parser(name).actions() if each.dest != "runs"]
        taken = [_argument(each) for each in actions if not each.option_strings]
        lines.append(f"  {' '.join([name, *taken]):<21}{command.help}")
        for action in actions:
            if action.option_strings:
                metavar = "" if action.nargs == 0 else str(action.metavar)
                lines.append(f"      {f'{action.option_strings[0]} {metavar}'.strip():<20} {action.help}")
    lines += ["", "With `--runs DIR`, any of them looks for runs there instead of in NBTUNE_RUNS or ./runs."]
    lines += ["[RUN] left out means the living run, or else the latest. In Python: run = nbtune.attach(RUN)."]
    return "\n".join(lines)


def _argument(action: argparse.Action) -> str:
    return {"?": "[{}]", "+": "{} …"}.get(str(action.nargs), "{}").format(action.metavar)


def embedded_sets() -> list[str]:
    """Names of the sets that come with nbtune."""
    from nbtune.data.sources.builtin import SETS

    return sorted(SETS)
