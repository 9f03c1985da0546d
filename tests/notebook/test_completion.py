"""Completion through IPython's own completer, as a kernel asks it: flags on the line, keys and values in the body."""

from __future__ import annotations

from typing import Any

import pytest
from IPython.core.completer import provisionalcompleter
from jupyter_client.session import Session

from nbtune.notebook import matcher


def complete(shell: Any, text: str) -> list[str]:
    """What the text would become at its `|`."""
    position = text.index("|")
    text = text.replace("|", "")
    with provisionalcompleter():
        found = list(shell.Completer.completions(text, position))
    return [text[: one.start] + one.text + text[one.end :] for one in found]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("%%finetune --dry|", "%%finetune --dry-run"),
        ("%finetune --learn|", "%finetune --learning-rate"),
        ("%%finetune --dtype b|", "%%finetune --dtype bf16"),
        ("%%finetune --set adapter.use|", "%%finetune --set adapter.use_rslora="),
        ("%%finetune\nadap|", "%%finetune\nadapter: "),
        (
            "%%finetune --name x\ndata: rows\ngradient_acc|",
            "%%finetune --name x\ndata: rows\ngradient_accumulation_steps: ",
        ),
        ("%%finetune\ntrain_on: last|", "%%finetune\ntrain_on: last_answer"),
        ("%%finetune\nadapter: {type: ql|", "%%finetune\nadapter: {type: qlora"),
        ("%%finetune\nadapter: {type: lora, dro|", "%%finetune\nadapter: {type: lora, dropout: "),
        ("%%finetune\nadapter: ql|", "%%finetune\nadapter: qlora"),
        ("%%finetune\nadapter:\n  target|", "%%finetune\nadapter:\n  target_modules: "),
        ("%%finetune\neval:\n  data:\n    rev|", "%%finetune\neval:\n  data:\n    revision: "),
        ("%%finetune\ndata:\n  - source: x\n    wei|", "%%finetune\ndata:\n  - source: x\n    weight: "),
        ("%%finetune\nmodel: nbtune/t|", "%%finetune\nmodel: nbtune/tiny"),
        ("%%finetune\ndata: nbtune/js|", "%%finetune\ndata: nbtune/json-answers"),
        ("%%finetune\npacking: t|", "%%finetune\npacking: true"),
        ("%nbtune expo|", "%nbtune export"),
        ("%nbtune export demo --gguf q8|", "%nbtune export demo --gguf q8_0"),
        ("%nbtune export demo --mer|", "%nbtune export demo --merged"),
        ("%nbtune export demo --gguf q8_0 q4_k_|", "%nbtune export demo --gguf q8_0 q4_k_m"),
        ("%nbtune export demo --merged --dtype bfl|", "%nbtune export demo --merged --dtype bfloat16"),
        ("%nbtune export demo --ollama-type q5_k|", "%nbtune export demo --ollama-type q5_k_s"),
        ("%nbtune export demo --gguf q8_0 --no-ver|", "%nbtune export demo --gguf q8_0 --no-verify"),
        ("%nbtune push demo me/it --what mer|", "%nbtune push demo me/it --what merged"),
        ("%nbtune push demo me/it --bra|", "%nbtune push demo me/it --branch"),
        ("%%nbtune plan\nste|", "%%nbtune plan\nsteps: "),
    ],
)
def test_one_word_is_completed(shell: Any, before: str, after: str) -> None:
    assert after in complete(shell, before)


def test_keys_that_are_there_are_not_offered_again(shell: Any) -> None:
    offered = complete(shell, "%%finetune\nsteps: 3\ns|")
    assert not any(text.endswith("steps: ") for text in offered)
    assert any(text.endswith("seed: ") for text in offered)


def test_rows_of_the_notebook_and_files_are_offered_as_data(shell: Any, tmp_path: Any) -> None:
    shell.user_ns["my_rows"] = [{"prompt": "a", "completion": "b"}]
    shell.user_ns["my_number"] = 3
    (tmp_path / "my_file.jsonl").write_text("{}\n")
    offered = complete(shell, "%%finetune\ndata: my_|")
    assert [text.split("data: ")[1] for text in offered] == ["my_rows", "my_file.jsonl"]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("data: {source: my_rows, columns: {pro|", ["data: {source: my_rows, columns: {prompt: "]),
        ("data: {source: my_rows, columns: {prompt: qu|", ["data: {source: my_rows, columns: {prompt: question"]),
        (
            "data:\n  - source: mine.csv\n    columns:\n      completion: |",
            [f"data:\n  - source: mine.csv\n    columns:\n      completion: {name}" for name in ("ask", "reply")],
        ),
    ],
)
def test_columns_of_rows_are_offered(shell: Any, tmp_path: Any, before: str, after: list[str]) -> None:
    shell.user_ns["my_rows"] = [{"question": "a", "answer": "b"}]
    (tmp_path / "mine.csv").write_text("ask,reply\na,b\n")
    assert complete(shell, f"%%finetune\n{before}") == [f"%%finetune\n{text}" for text in after]


def test_models_of_the_cache_are_offered(shell: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hub/models--acme--small-1b").mkdir(parents=True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert complete(shell, "%%finetune\nmodel: acme/|") == ["%%finetune\nmodel: acme/small-1b"]


def test_other_cells_are_left_alone(shell: Any) -> None:
    shell.user_ns["stepladder"] = 1
    assert complete(shell, "steplad|") == ["stepladder"]
    assert not any("steps: " in text for text in complete(shell, "%%time\nst|"))


def test_every_gguf_type_is_offered(shell: Any) -> None:
    from nbtune.spec.gguf_types import TYPES

    assert complete(shell, "%nbtune export demo --gguf |") == [f"%nbtune export demo --gguf {name}" for name in TYPES]


class _Answering:
    """A kernel, as far as it is asked: which request it is answering."""

    def __init__(self, kind: str, code: str, position: int) -> None:
        self.request = Session().msg(kind, content={"code": code, "cursor_pos": position})

    def get_parent(self, channel: str) -> Any:
        return self.request if channel == "shell" else None


@pytest.fixture
def before_8_6(shell: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A shell that hands a matcher one word, as Colab's does."""
    matcher.unregister(shell)
    monkeypatch.setattr(matcher, "context_matcher", None)
    matcher.register(shell)
    return shell


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("%finetune --learn|", "--learning-rate"),
        ("%nbtune export demo --gguf q8|", "q8_0"),
        ("%%finetune --name x\ndata: rows\ngradient_acc|", "\ngradient_accumulation_steps: "),
        ("%%finetune\nadapter:\n  target|\nsteps: 3", "\n  target_modules: \nsteps: 3"),
        ("%%finetune\nadapter: {type: ql|", "{type: qlora"),
        ("%%finetune\nadapter: {type: ql|, r: 4}", "{type: qlora, r: 4}"),
    ],
)
def test_a_shell_that_hands_over_a_word_completes_alike(before_8_6: Any, before: str, after: str) -> None:
    """The cell is that of the request which the kernel is answering."""
    text, position = before.replace("|", ""), before.index("|")
    before_8_6.kernel = _Answering("complete_request", text, position)
    (completed,) = complete(before_8_6, before)
    assert completed.endswith(after)
    assert completed.startswith(text[: position - 2])


def test_another_request_says_nothing_of_the_cell(before_8_6: Any) -> None:
    """Who asks for completions while a cell runs has a line, and the kernel's request is that cell."""
    cell = "%%finetune\nadap"
    before_8_6.kernel = _Answering("execute_request", cell, len(cell))
    assert complete(before_8_6, "adap|") == []
    before_8_6.kernel = _Answering("complete_request", "%%finetune\nothe", len(cell))  # of another line
    assert complete(before_8_6, "adap|") == []
    before_8_6.kernel = _Answering("complete_request", cell, len(cell))
    assert complete(before_8_6, "adap|") == ["adapter: "]
