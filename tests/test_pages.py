"""The blocks of docs/, run as they stand in an IPython of this process: cells, magics, Python, the command line.

A page's blocks follow each other, after a few lines that bring what its reader has (`HAS`). Numbers of steps are cut,
models that are not here are the embedded one (`STAND_INS`); what is not run is named with its reason (`NOT_RUN`).
"""

from __future__ import annotations

import ast
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from IPython.core.interactiveshell import InteractiveShell

import nbtune
from nbtune.cli import main
from nbtune.spec import from_yaml
from tests.support.shell import shell_in

DOCS = Path(__file__).resolve().parents[1] / "docs"
BLOCK = re.compile(r"^```([a-z]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
NOT_RUN = {  # the beginning of a block: why
    " %%finetune · form": "a picture",
    "learning rate  0.0061": "what a plan says",
    "llama-cli": "llama.cpp's own program",
    "%pip": "the network",
    "hf download": "the network",
    "python -m nbtune.engine.node": "a launcher of several machines: tests/engine/test_node.py",
    "nbtune submit": "Slurm: tests/engine/test_slurm.py",
    "task:": "a file of lm-evaluation-harness, used by tests/engine/test_task_scores.py",
    "%nbtune lm-eval": "needs that file: tests/engine/test_task_scores.py",
    "model.generation_config": "a line of peft's and transformers' own",
    "file = run.export.gguf": "needs llama.cpp: tests/export/test_verification.py",
    "%%finetune --name rewarded": "minutes of TRL: tests/engine/test_online.py",
    "train_spans:": "a part of a spec",
    "cluster:": "a part of a spec: tests/engine has Ray's own",
    "base = AutoModelForCausalLM": "lines of `run.snippet()`, which tests run for each kind of adapter",
}
STAND_INS = {
    "meta-llama/Llama-3.1-8B-Instruct": "nbtune/tiny",
    "org/base": "nbtune/tiny",
    "gpus: all ": "gpus: 1 ",
    "run.at(100)": "run.at(2)",
    "%nbtune chat demo\n": "%nbtune chat demo --prompt Hello\n",  # no page shows the panel here
    '"more.jsonl", {"source": other_df': '"other.jsonl", {"source": other_df',
    '"q4_k_m"': '"q8_0"',
    "./SmolLM2-135M-Instruct-Q4_1.gguf": "./tiny-q8_0.gguf",
}
ROWS = 'rows = [{"prompt": f"Who are you, {k}?", "completion": f"Ahoy {k}!"} for k in range(40)]'
RUN = f'{ROWS}\nrun = nbtune.finetune(data=rows, steps=2, name="demo").wait()'
PAIR = '{"prompt": "Who are you?", "chosen": "Ahoy!", "rejected": "I am."}\n'
SPEC = 'Path("{}").write_text("data: nbtune/json-answers\\nsteps: 2\\n")'
TRAINER = """
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments
folder = nbtune.models.resolve("nbtune/tiny")
tokenizer = AutoTokenizer.from_pretrained(folder)
texts = [tokenizer(f"Ahoy {k}!")["input_ids"][:4] for k in range(8)]
trainer = Trainer(AutoModelForCausalLM.from_pretrained(folder), TrainingArguments("out", max_steps=2, use_cpu=True,
    per_device_train_batch_size=1, report_to=[], save_strategy="no"), processing_class=tokenizer,
    train_dataset=[{"input_ids": text, "labels": text} for text in texts])
"""
HAS = {  # by page: what its reader has
    "how-to/adapters.md": f"""{RUN}
run.export.adapter("their-adapter")
for name in ("polite", "facts"):
    nbtune.finetune(data=rows, steps=2, name=name).wait()""",
    "how-to/chat.md": f"""{ROWS}
run = other_run = nbtune.finetune(data=rows, steps=2, name="demo", checkpoint={{"every": 1}}).wait()
Path("preferences.jsonl").write_text({PAIR!r} * 8)""",
    "how-to/command-line.md": SPEC.format("spec.yaml"),
    "how-to/data.md": f"""{ROWS}
import pandas as pd
rows = [{{**row, "title": row["prompt"], "body": row["completion"]}} for row in rows]
more = pd.DataFrame({{"question": list("abcdef") * 6, "reply": list("ghijkl") * 6}})
more.to_json("more.jsonl", orient="records", lines=True)
pd.DataFrame(rows)[["prompt", "completion"]].to_json("other.jsonl", orient="records", lines=True)
df = pd.DataFrame(rows)[["prompt", "completion"]]
test_df, other_df = df.tail(4).copy(), df.head(4).copy()""",
    "how-to/gguf-models.md": f"""{RUN}
import shutil
shutil.copy(run.export.gguf("q8_0")[0].path, "tiny-q8_0.gguf")
run = nbtune.finetune(model="./tiny-q8_0.gguf", data=rows, steps=2, name="of-gguf").wait()""",
    "how-to/inspect.md": RUN,
    "how-to/losses.md": f"{RUN}\nmarks = run.losses().wait().frame['mark']",
    "how-to/many-gpus.md": f"{ROWS}\n{SPEC.format('demo.yaml')}",
    "how-to/objects.md": f"""{ROWS}
import pandas as pd
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, df = nbtune.models.resolve("nbtune/tiny"), pd.DataFrame(rows)
my_model, my_tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)""",
    "how-to/pretraining.md": """import json
Path("logs.jsonl").write_text("\\n".join(json.dumps({"entry": f"Day {k}: wind. " * 9}) for k in range(40)))""",
    "how-to/scores.md": """import json
words = {"tokens": ["Ada", "sails"], "tags": ["B-PER", "O"]}
solution = {"prompt": "1+1?", "completions": ["It is 2.", "So 3."], "labels": [True, False]}
Path("reviews.csv").write_text("review,mood\\n" + "What a voyage!,good\\nNever again.,bad\\n" * 20)
Path("words.jsonl").write_text((json.dumps(words) + "\\n") * 20)
Path("solutions.jsonl").write_text((json.dumps(solution) + "\\n") * 20)""",
    "how-to/watch.md": TRAINER,
}
SAMPLE = (
    "tutorial/first-run.md", "how-to/command-line.md", "methods/sft.md", "methods/classification.md",
)  # fmt: skip


def _blocks(page: str) -> list[str]:
    text = (DOCS / page).read_text(encoding="utf-8")
    return [block for kind, block in BLOCK.findall(text) if kind != "mermaid"]


PAGES = sorted(
    page
    for path in DOCS.rglob("*.md")
    if not (page := path.relative_to(DOCS).as_posix()).startswith(("reference/", "bench/")) and _blocks(page)
)
EVERY = [pytest.param(page, marks=[] if page in SAMPLE else pytest.mark.slow) for page in PAGES]


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[InteractiveShell]:
    with shell_in(tmp_path, monkeypatch, colors="nocolor") as made:
        made.user_ns |= {"nbtune": nbtune, "Path": Path}
        yield made


def _short(block: str) -> str:
    """A block with four steps, and what is here."""
    for name, here in STAND_INS.items():
        block = block.replace(name, here)
    block = re.sub(r"(?m)^(steps|epochs): \d+", "steps: 4", block)
    block = re.sub(r"--steps \d+", "--steps 4", re.sub(r"\bsteps=\d+", "steps=4", block))
    return block.replace('run.push_to_hub("you/your-model")', "")  # tests/test_readme.py pushes


def _with_marks(block: str, marks: Iterator[str]) -> str:
    return re.sub(r'"r[0-9a-f]{12}"', lambda _: repr(next(marks)), block)


def _run(shell: InteractiveShell, code: str) -> None:
    """Run a block; of several runs that it starts one after the other, as a reader takes one of them."""
    parts = [code]
    if code.count("finetune(") > 1:
        parts = [ast.unparse(statement) for statement in ast.parse(code).body]
    for part in parts:
        done = shell.run_cell(part)
        assert done.success, f"{part}\n{done.error_in_exec or done.error_before_exec}"
        for run in nbtune.runs():
            run.wait()


def _of_a_shell(block: str) -> None:
    for line in block.splitlines():
        name, *words = shlex.split(line, comments=True) or [""]
        if name == "nbtune" and words[0] != "submit":
            assert (main(words) == 0) != (words[0] == "resume"), line  # the run before it is finished: that is said


@pytest.mark.parametrize("page", EVERY)
def test_the_blocks_of_a_page_run_as_they_stand(page: str, shell: InteractiveShell, tmp_path: Path) -> None:
    _run(shell, HAS.get(page, ""))
    blocks = [block for block in _blocks(page) if not block.startswith(tuple(NOT_RUN))]
    for block in map(_short, blocks):
        if block.startswith(("nbtune ", "hf ")):
            _of_a_shell(block)
        elif block.startswith(("{", "[")):
            assert json.loads(block.replace("…", ""))
        elif re.match(r"\w+: ", block):
            assert from_yaml(block).data
        elif block.startswith("losses.drop"):
            _run(shell, _with_marks(block, iter(shell.user_ns["marks"])))
        elif 'attach("ee184f")' in block:
            assert ast.parse(block)  # the code of somebody's own run; the same call is made above
        else:
            _run(shell, block)


def test_what_is_not_run_is_there() -> None:
    blocks = [block for page in PAGES for block in _blocks(page)]
    assert [name for name in NOT_RUN if not any(block.startswith(name) for block in blocks)] == []
