"""What the README tells a newcomer to type, run as it stands: the cell and the Python in a kernel, the shell's lines.

Nothing is copied from it here: the blocks are read from README.md itself. Pushing goes to a Hub of the tests' own.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from nbtune.data.sources import builtin
from tests.notebook.kernel import Kernel
from tests.support.every import some
from tests.support.fake_hub import FakeHub, client_environment

REPO = Path(__file__).resolve().parents[1]
README = (REPO / "README.md").read_text(encoding="utf-8")
ASKED, ENOUGH = 50, 0.9


@dataclass(frozen=True)
class Lines:
    """What a reader copies."""

    load: str
    cell: str
    python: str
    shell: list[str]

    @property
    def body(self) -> str:
        """The spec: the cell without its first line."""
        return self.cell.split("\n", 1)[1]

    def cut(self, steps: int) -> Lines:
        """The same with a flag more, for a run of so many steps."""
        first, body = self.cell.split("\n", 1)
        shell = [f"{line} --set steps={steps}" if " train " in line else line for line in self.shell]
        return Lines(self.load, f"{first} --steps {steps}\n{body}", self.python, shell)


def _lines() -> Lines:
    section = README.split("## What it looks like")[1].split("\n## ")[0]
    blocks = re.findall(r"^```([a-z]*)\n(.*?)^```", section, flags=re.MULTILINE | re.DOTALL)
    (load,) = [text for _, text in blocks if text.startswith("%load_ext")]
    (cell,) = [text for _, text in blocks if text.startswith("%%finetune")]
    (python,) = [text for kind, text in blocks if kind == "python"]
    (sentence,) = [line for line in section.splitlines() if line.startswith("The same from a shell:")]
    return Lines(load, cell, python, re.findall(r"`(nbtune [^`]+)`", sentence))


def _pushed_to(python: str) -> str:
    (target,) = re.findall(r'push_to_hub\("([^"]+)"', python)
    return str(target)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A Hub whose user is the README's, and the environment of somebody who is logged in there."""
    with FakeHub(user=_pushed_to(_lines().python).split("/")[0]) as served:
        outside = client_environment(served, tmp_path)
        for name in set(os.environ) - set(outside):
            monkeypatch.delenv(name)
        for name, value in outside.items():
            monkeypatch.setenv(name, value)
        yield served


def _run_in_a_kernel(lines: Lines, kernel: Kernel) -> dict[str, str]:
    """Runs the three blocks; what each line of the Python returned."""
    for code in (lines.load, lines.cell):
        reply = kernel.run(code)
        assert reply.status == "ok", reply.text
    said = {}
    for statement in ast.parse(lines.python).body:
        line = ast.unparse(statement)
        reply = kernel.run(line, timeout=600)
        assert reply.status == "ok", reply.text
        results = [m["content"]["data"] for m in reply.messages if m["msg_type"] == "execute_result"]
        said[line.split("(")[0]] = "\n".join(data["text/plain"] for data in results)  # displays are updated meanwhile
    return said


def _run_in_a_shell(lines: Lines, folder: Path) -> None:
    """Runs the shell's lines with the command that is installed beside this Python."""
    (folder / "spec.yaml").write_text(lines.body, encoding="utf-8")
    command = shutil.which("nbtune", path=str(Path(sys.executable).parent))
    assert command, "nbtune is not installed beside this Python"
    for line in some(lines.shell):
        name, *arguments = shlex.split(line)
        assert name == "nbtune"
        done = subprocess.run(
            [command, *arguments], cwd=folder, capture_output=True, text=True, timeout=600, check=False
        )
        assert done.returncode == 0, f"{line}: {done.stderr[-2000:]}"


def _files(folder: Path, pattern: str) -> list[Path]:
    return sorted(folder.glob(pattern))


def test_its_cell_and_python_run_as_they_stand_but_for_the_steps(hub: FakeHub, tmp_path: Path) -> None:
    lines = _lines().cut(steps=2)
    with Kernel(tmp_path) as kernel:
        said = _run_in_a_kernel(lines, kernel)
    assert set(said) == {"run.wait", "run.generate", "run.export.gguf", "run.push_to_hub"}
    assert _files(tmp_path, "runs/demo-*/exports/**/*q8_0.gguf")
    assert "adapter_model.safetensors" in hub.files(_pushed_to(lines.python))


@pytest.mark.slow
def test_its_shell_lines_run_as_they_stand_but_for_the_steps(tmp_path: Path) -> None:
    lines = _lines().cut(steps=2)
    assert [line.split()[1] for line in lines.shell] == ["train", "export"]
    _run_in_a_shell(lines, tmp_path)
    assert _files(tmp_path, "runs/demo-*/exports/**/*q8_0.gguf")


def test_its_recipe_leaves_the_learning_rate_to_the_plan() -> None:
    assert "learning_rate" not in _lines().cell


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_its_recipe_teaches(hub: FakeHub, tmp_path: Path) -> None:
    """The whole of it: at least nine of ten prompts that were held out are answered as they ask."""
    with Kernel(tmp_path) as kernel:
        said = _run_in_a_kernel(_lines(), kernel)
    assert json.loads(ast.literal_eval(said["run.generate"]))
    (folder,) = _files(tmp_path, "runs/demo-*")
    assert _share_of_held_out_answers(folder) >= ENOUGH


def _share_of_held_out_answers(folder: Path) -> float:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from nbtune import models

    base = models.resolve("nbtune/tiny")
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder / "adapter")
    text = builtin.path("nbtune/json-answers", heldout=True).read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()][:ASKED]
    assert len(rows) == ASKED
    return sum(_is_asked_shape(_answer(model, tokenizer, row["prompt"]), row["keys"]) for row in rows) / len(rows)


def _answer(model: Any, tokenizer: Any, prompt: str) -> str:
    from nbtune.generate.sampling import answer

    return answer(model, tokenizer, prompt, max_new_tokens=64)


def _is_asked_shape(answer: str, keys: list[str]) -> bool:
    try:
        value = json.loads(answer)
    except ValueError:
        return False
    return isinstance(value, dict) and set(value) == set(keys) and all(isinstance(v, str) for v in value.values())
