"""The table of commands. An entry is all that a new command needs: its function is called with what it takes, by name,
and what comes back is shown, as a line, a table or JSON.

A door that does more for a command has a function of its name: in `nbtune/cli/actions.py`, in
`nbtune/notebook/magics.py`. Sentences are those of `nbtune COMMAND --help`, `%nbtune?` and the reference pages.
"""

from __future__ import annotations

from pathlib import Path

from nbtune.commands.command import CELL, SHELL, Argument, Command, Door, flag, switch, word


def commands_of(door: Door) -> dict[str, Command]:
    """Return the commands of a door by name, in the order of the table; in a cell those of `%nbtune`.

    >>> list(commands_of("cell"))[:3]
    ['plan', 'submit', 'validate']
    """
    return {
        name: command
        for name, command in COMMANDS.items()
        if door in command.doors and not (door == "cell" and command.magic)
    }


# -- what several of them take ------------------------------------------------------------------------------------

_SHOWN = "a cell shows tables and panels, and Python has the values"

SPEC = word(
    "SPEC",
    "A YAML file: the same text as a cell's body; `-`: what comes on stdin.",
    kind=Path,
    doors=SHELL,
    why="in a cell the body is the spec",
)
SET = flag(
    "--set KEY=VALUE", "A key that wins over the file, or over the body of a cell, as adapter.r=8.", many="again"
)
RUN = word("RUN", "Name (its newest run), id, or folder.", offers="runs", optional_in=CELL)
RUNS = flag("--runs DIR", "Where runs are; by default NBTUNE_RUNS, or ./runs.", kind=Path)
MACHINE = flag(
    "--machine NAME",
    "Plan for a machine that is not here: t4, colab, rtx4090, 8xh100, mac-32, 24GB …",
    offers="machines",
)
NODES = flag(
    "--nodes N",
    "Plan for so many such machines, and all of their GPUs where `gpus` says nothing.",
    kind=int,
    default=1,
    minimum=1,
)
NETWORK = flag("--network GBIT", "Gbit a second to each of the others; by default as they are sold.", kind=float)
TABLE = switch("--table", "What fits: lengths, rows at once, 16 or 4 bits, each with its memory and its speed.")
QUIET = switch("-q, --quiet", "Say warnings and errors alone.", doors=SHELL, why=_SHOWN)
_ELSEWHERE = (MACHINE, NODES, NETWORK, TABLE)
JSON = switch("--json", "One JSON line a result on stdout.", doors=SHELL, why=_SHOWN)
STAY = switch(
    "--wait", "Stay in the cell until the run has ended.", doors=CELL, why="in a shell the command waits by itself"
)
_FOLLOWED = (RUNS, QUIET, JSON)
DETACH = switch(
    "--detach", "In a process of its own, which outlives this one: return once it has begun, and leave it alone."
)
GGUF: dict[str, str] = {"many": "words", "offers": "gguf"}
IMPORTANCE = switch("--importance", "Spend the bits of GGUF files where the run's held-out rows feel them.")
VERIFY = switch("--verify", "Compare GGUF files with the model; where llama.cpp is, by default.", default=None)


# -- the commands -------------------------------------------------------------------------------------------------

_TRAIN = Command(
    name="train",
    sentence="Train.",
    in_shell=", and wait until it has ended. The first Ctrl-C stops and saves, the second leaves.",
    function="nbtune.finetune",
    code="nbtune.finetune(SPEC)",
    magic="%%finetune",
    body=True,
    takes=(
        SPEC,
        flag("--name", "What the run is called.", default="run", offers="runs"),
        STAY,
        switch("--dry-run", "Show the plan, train nothing."),
        *_ELSEWHERE,
        SET,
        switch("--restart", "Stop and save a living run of this name first."),
        switch("--queue", "Start when a living run of this name has ended."),
        DETACH,
        *_FOLLOWED,
    ),
)


def _of_spec(name: str, sentence: str, *takes: Argument) -> Command:
    """Return a command that only asks something of a spec."""
    function = f"nbtune.{name.replace('-', '_')}"
    takes = (SPEC, *takes, SET, RUNS, JSON)
    return Command(name=name, sentence=sentence, function=function, code=f"{function}(SPEC)", body=True, takes=takes)


_PLAN = _of_spec("plan", "What a run would cost: memory, disk, download, time, and why.", *_ELSEWHERE)
_LR_FIND = _of_spec(
    "lr-find", "Propose a learning rate, from a short sweep on a copy: the curve, and where the loss falls fastest."
)
_VALIDATE = _of_spec(
    "validate", "Whether a spec can be meant: its keys and values, and the first rows of its data. Loads no model."
)
_LM_EVAL = Command(
    name="lm-eval",
    sentence="Ask a run's model the tasks of lm-evaluation-harness, and its base as well: a table.",
    function="nbtune.lm_eval",
    code="nbtune.lm_eval(RUN, TASKS)",
    takes=(
        RUN,
        flag("--tasks TASK", "Their names.", many="words"),
        flag("--include-path DIR", "A folder of task files of your own.", kind=Path),
        flag("--num-fewshot N", "Examples before each question; by default as the task says.", kind=int, minimum=0),
        flag("--limit N", "Only the first so many questions of each task.", kind=int, minimum=1),
        flag("--batch-size N", "Questions at a time.", kind=int, default=1, minimum=1),
        switch("--chat", "Put questions into the model's chat template."),
        RUNS,
        JSON,
    ),
)
_SUBMIT = Command(
    name="submit",
    sentence="Train as a job of Slurm, on one machine or several.",
    in_shell="The job's file stays in the run's folder; where there is no `sbatch`, what to do is said.",
    in_cell="Its monitor comes up, and `run` is its handle.",
    function="nbtune.submit",
    code="nbtune.submit(SPEC, slurm=OPTIONS)",
    body=True,
    takes=(
        SPEC,
        flag(
            "--slurm OPTIONS",
            "What to ask for: partition=gpu,nodes=2,gpus=8 (those of a node), time, account, mem, cpus …",
            many="again",
        ),
        flag("--job TOOL,OPTIONS", "A file for skypilot, kubeflow or hf-jobs, which you send: skypilot,gpus=H100:8."),
        switch("--print", "Print the job's file, write and send nothing."),
        switch("--unsent", "Make the run's folder with the job's file in it, and leave the sending to you."),
        flag("--name", "What the run is called.", default="run", offers="runs"),
        STAY,
        SET,
        RUNS,
        JSON,
    ),
)
_RUNS = Command(
    name="runs", sentence="The runs that are there, newest first.", function="nbtune.runs", takes=(RUNS, JSON)
)
_TRUST = Command(
    name="trust",
    sentence="Allow what a run's folder wants to run here: the functions of its data, its model's own code.",
    in_cell="Without `--yes` it only says what that is.",
    function="nbtune.trust",
    code="nbtune.trust(RUN)",
    takes=(RUN, switch("--yes", "Do not ask."), RUNS, JSON),
)
_RESUME = Command(
    name="resume",
    sentence="Go on from the last checkpoint.",
    in_shell=", and wait until it has ended.",
    function="nbtune.Run.resume",
    takes=(RUN, STAY, DETACH, *_FOLLOWED),
)
_STOP = Command(
    name="stop",
    sentence="Stop at the next step and save, in whichever process it trains.",
    function="nbtune.Run.stop",
    said="{run} stops at its next step and is saved; `{nbtune} resume {run}` goes on",
    takes=(RUN, switch("--wait", "Until it has ended."), RUNS, JSON),
)
_PAUSE = Command(
    name="pause",
    sentence="Hold at the next step, with the model in memory.",
    function="nbtune.Run.pause",
    said="{run} holds at its next step; `{nbtune} unpause {run}` goes on",
    takes=(RUN, RUNS, JSON),
)
_UNPAUSE = Command(
    name="unpause",
    sentence="Let a run that is held go on.",
    function="nbtune.Run.unpause",
    said="{run} goes on",
    takes=(RUN, RUNS, JSON),
)
_ATTACH = Command(
    name="attach",
    sentence="Watch a run until it has ended.",
    in_shell="Ctrl-C stops the watching, not the run.",
    in_cell="Its monitor comes up, and `run` is its handle.",
    function="nbtune.attach",
    code="nbtune.attach(RUN).monitor()",
    takes=(RUN, STAY, *_FOLLOWED),
)
_CHAT = Command(
    name="chat",
    sentence="Talk to a run's model; also while it trains, at the next step.",
    in_shell="An empty line or Ctrl-D leaves.",
    function="nbtune.Run.chat",
    takes=(
        RUN,
        flag("-p, --prompt", "Ask this and leave."),
        switch(
            "--base",
            "Ask the base model, without what was learnt.",
            doors=SHELL,
            why="a cell shows the answers of both",
        ),
        flag(
            "--beside RUN",
            "Compare with this run, instead of with the base model.",
            offers="runs",
            doors=CELL,
            why="a shell asks one model at a time",
        ),
        flag("--max-new-tokens", "The answer's length at most.", kind=int, default=256),
        RUNS,
        JSON,
    ),
)
_LOSSES = Command(
    name="losses",
    sentence="The rows with the highest and lowest loss.",
    in_shell="`--json`: all of them, highest first. Ctrl-C stops the measuring.",
    in_cell="`losses` is their table.",
    function="nbtune.Run.losses",
    takes=(
        RUN,
        flag(
            "-n, --count", "Rows that are shown of each end.", kind=int, default=10, minimum=1, doors=SHELL, why=_SHOWN
        ),
        flag(
            "--by",
            "What rows are sorted by.",
            choices=("loss", "base", "learnt", "tokens"),
            default="loss",
            doors=SHELL,
            why=_SHOWN,
        ),
        switch("--again", "Measure also what is measured already."),
        RUNS,
        JSON,
    ),
)
_COMPARE = Command(
    name="compare",
    sentence="Losses of several runs beside each other.",
    in_cell="A chart, where there is a page.",
    function="nbtune.widgets.compare",
    code="nbtune.widgets.compare([RUN, …])",
    takes=(word("RUN", "Names, ids or folders of two or more runs.", many="words", offers="runs"), RUNS, JSON),
)
_EXPORT = Command(
    name="export",
    sentence="Take files home.",
    function="nbtune.export.take_home",
    code='nbtune.attach(RUN).export.gguf("q8_0")',
    takes=(
        word(
            "RUN|MODEL",
            "A run, or a model's folder or Hub id.",
            dest="run",
            offers="runs",
            optional_in=CELL,
        ),
        flag("--gguf TYPE", "GGUF files: f16, bf16, q8_0, …", **GGUF),
        switch("--merged", "The whole model as safetensors."),
        flag(
            "--dtype DTYPE",
            "Of the merged model; auto: the base's own.",
            choices=("auto", "bfloat16", "float16", "float32"),
            default="auto",
        ),
        switch("--adapter", "The adapter as safetensors."),
        switch("--adapter-gguf", "The adapter for llama.cpp's --lora and Ollama's ADAPTER."),
        switch("--ollama", "A GGUF file with its Modelfile."),
        flag("--ollama-type TYPE", "Type of Ollama's file.", offers="gguf", default="q8_0"),
        switch("--html", "A page that shows the run without a kernel, to be shown to others."),
        flag("--rows N", "So many rows of the data are in that page.", kind=int, default=3, minimum=0),
        flag("--out DIR", "By default exports/ in the run's folder.", kind=Path),
        IMPORTANCE,
        flag("--imatrix FILE", "Spend them as llama.cpp's `llama-imatrix` has measured.", kind=Path),
        VERIFY,
        RUNS,
        JSON,
    ),
)
_COMBINE = Command(
    name="combine",
    sentence="Write several LoRAs of one base as one: the weighted sum of what each adds.",
    function="nbtune.export.combine_adapters",
    code='nbtune.export.combine_adapters([RUN, …], [0.5, …], out="combined")',
    takes=(
        word("RUN", "Names, ids or folders of runs, or folders that peft wrote.", dest="adapters", many="words"),
        flag("--weights W", "How much of each; by default all.", kind=float, many="words"),
        flag("--out DIR", "The folder to make.", kind=Path, default=Path("combined")),
        RUNS,
        JSON,
    ),
)
_PUSH = Command(
    name="push",
    sentence="Upload the adapter, the merged model or GGUF files with a card, with huggingface_hub's own login or "
    "HF_TOKEN.",
    function="nbtune.Run.push_to_hub",
    code="nbtune.attach(RUN).push_to_hub(REPO)",
    takes=(
        word("RUN", RUN.help, offers="runs"),
        word("REPO", "owner/name on the Hub."),
        switch("--public", "Everybody may see it; private by default."),
        flag("--what KIND", "adapter, merged or gguf.", choices=("adapter", "merged", "gguf"), default="adapter"),
        flag("--gguf TYPE", "GGUF files instead.", **GGUF),
        flag("--branch NAME", "A branch, made where there is none."),
        switch("--pr", "Open a pull request instead of committing."),
        flag("--message TEXT", "Of the commit.", default="Upload with nbtune"),
        flag("--card FILE", "A model card of your own.", kind=Path),
        IMPORTANCE,
        VERIFY,
        RUNS,
        JSON,
    ),
)
_SCRIPT = Command(
    name="script",
    sentence="Print a Python script that trains a run again: its spec to change, the same rows, the same losses.",
    in_cell="In a notebook it stands in a new cell.",
    function="nbtune.Run.script",
    takes=(
        RUN,
        flag("--out DIR", "Write NAME.py and NAME.yaml here instead.", kind=Path),
        switch("--yaml", "Print the YAML instead of the script."),
        RUNS,
        JSON,
    ),
)
_DATA = Command(
    name="data",
    sentence="How rows are read, and which of their tokens are trained.",
    function="nbtune.inspect",
    code="nbtune.inspect(SOURCE)",
    takes=(
        word(
            "SOURCE",
            "Files, folders, Hub ids, nbtune's sets; in a notebook its variables, too.",
            many="words",
            offers="sources",
        ),
        flag("--model MODEL", "Whose tokenizer and template.", offers="models"),
        flag(
            "--spec SPEC",
            "A YAML file whose other keys count.",
            kind=Path,
            doors=SHELL,
            why="in a cell nbtune.inspect takes them",
        ),
        JSON,
    ),
)
_DOCTOR = Command(
    name="doctor",
    sentence="This machine, its packages, and what to mend.",
    in_shell="Exit 1 if something must be mended.",
    function="nbtune.system_report.examine",
    takes=(switch("--offline", "Also what is missing to work without a network."), JSON),
)
_CACHE = Command(
    name="cache",
    sentence="What lies in the caches: models and data sets of the Hub, decoded GGUF files, prepared data. Only "
    "prepared data is ever pruned.",
    function="nbtune.system_report.cached",
    takes=(
        flag(
            "--prune GIB",
            "Throw prepared data away, what was not used for longest first, until so much is left; 0: all of it.",
            kind=float,
            minimum=0,
        ),
        JSON,
    ),
)

COMMANDS: dict[str, Command] = {
    command.name: command
    for command in (
        *(_TRAIN, _PLAN, _SUBMIT, _VALIDATE, _LR_FIND),
        *(_RUNS, _TRUST, _RESUME, _STOP, _PAUSE, _UNPAUSE, _ATTACH, _CHAT, _LOSSES, _COMPARE, _LM_EVAL),
        *(_EXPORT, _COMBINE, _PUSH, _SCRIPT),
        *(_DATA, _DOCTOR, _CACHE),
    )
}
