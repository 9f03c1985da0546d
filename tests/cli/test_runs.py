"""Runs from a shell, for real: train, stop from another process, interrupt, resume, chat, export, detach."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import nbtune
from nbtune.cli import main
from tests.support.every import every

SPEC = "model: nbtune/tiny\ndata: rows.jsonl\nbatch_size: 2\n"
ROWS = [{"prompt": f"How much is {i} plus 1?", "completion": f"{i} plus 1 is {i + 1}."} for i in range(16)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with rows and a spec, where every test of this file works."""
    made = tmp_path_factory.mktemp("shell")
    write(made / "rows.jsonl", ROWS)
    (made / "spec.yaml").write_text(SPEC)
    return made


@pytest.fixture(autouse=True)
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("NBTUNE_RUNS", str(folder / "runs"))


@pytest.fixture(scope="module")
def demo(folder: Path) -> dict[str, Any]:
    """A finished run, and what `train --json` said of it."""
    before = Path.cwd()
    out, err = io.StringIO(), io.StringIO()
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(["train", "spec.yaml", "--name", "demo", "--set", "steps=4", "--runs", "runs", "--json"])
    finally:
        os.chdir(before)
    assert code == 0, err.getvalue()
    assert "step 4/4" in err.getvalue()
    (line,) = out.getvalue().splitlines()
    return dict(json.loads(line))


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def call(capfd: Any, *args: str) -> tuple[int, list[str], str]:
    """(exit code, lines of stdout, stderr) of a command line."""
    capfd.readouterr()
    code = main(args)
    out, err = capfd.readouterr()
    return code, out.splitlines(), err


@contextlib.contextmanager
def training(*args: str, until: str, **environment: str) -> Iterator[Callable[[], tuple[int, str, str]]]:
    """Another process that trains, once its stderr said the words of `until`; gives (exit code, stdout, stderr)."""
    process = subprocess.Popen(
        [sys.executable, "-m", "nbtune", *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )
    said: list[str] = []
    assert process.stderr is not None

    def finish() -> tuple[int, str, str]:
        out, err = process.communicate(timeout=240)
        return process.returncode, out, "".join([*said, err])

    finish.process = process  # type: ignore[attr-defined]
    try:
        for line in process.stderr:
            said.append(line)
            if all(word in line for word in until.split()):  # what is between them depends on the locale
                break
        else:
            raise AssertionError("".join(said))
        yield finish
    finally:
        process.kill()
        process.wait()


def test_train_says_one_json_line(demo: dict[str, Any], folder: Path) -> None:
    assert (demo["name"], demo["state"], demo["step"], demo["total_steps"]) == ("demo", "finished", 4, 4)
    assert demo["loss"] > 0
    assert (folder / demo["adapter"] / "adapter_model.safetensors").is_file()


def test_runs_lists_it_and_attach_finds_it_ended(demo: dict[str, Any], capfd: Any) -> None:
    code, lines, _ = call(capfd, "runs", "--json")
    assert code == 0
    assert demo["id"] in [json.loads(line)["id"] for line in lines]
    assert call(capfd, "attach", "demo")[0] == 0
    code, lines, _ = call(capfd, "stop", "demo")
    assert (code, lines) == (0, ["demo is finished"])


def test_chat_by_flag_and_by_pipe(demo: dict[str, Any], capfd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    code, lines, err = call(
        capfd, "chat", "demo", "--prompt", "How much is 3 plus 1?", "--max-new-tokens", "8", "--json"
    )
    assert code == 0, err
    answer = json.loads(lines[0])
    assert answer["prompt"] == "How much is 3 plus 1?"
    assert answer["answer"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello\nWho are you?\n"))
    code, lines, err = call(capfd, "chat", "demo", "--base", "--max-new-tokens", "4")
    assert code == 0, err
    assert len([line for line in lines if line]) >= 2


def test_export_of_a_run_and_of_a_model(demo: dict[str, Any], folder: Path, capfd: Any) -> None:
    code, lines, err = call(capfd, "export", "demo", "--gguf", "q8_0", "f16", "--adapter", "--out", "home", "--json")
    assert code == 0, err
    made = [json.loads(line) for line in lines]
    assert {"q8_0", "f16"} <= {file["type"] for file in made}
    assert every((folder / file["path"]).exists() for file in made)
    assert {"demo-q8_0.gguf", "demo-f16.gguf"} <= {Path(file["path"]).name for file in made}
    code, lines, err = call(capfd, "export", "nbtune/tiny", "--gguf", "q8_0", "--out", "home")
    assert code == 0, err
    assert (folder / "home/tiny-q8_0.gguf").is_file()


def test_what_cannot_be_done_to_an_ended_run_is_exit_2(demo: dict[str, Any], capfd: Any) -> None:
    code, lines, err = call(capfd, "resume", "demo")
    assert (code, lines) == (2, [])
    assert "is finished" in err


def test_a_living_run_is_in_use_is_stopped_from_elsewhere_and_resumed_until_an_interrupt(
    folder: Path, capfd: Any
) -> None:
    args = ["--name", "long", "--set", "steps=100000"]
    with training("train", "spec.yaml", *args, "--json", until="running step") as finish:
        code, lines, err = call(capfd, "train", "spec.yaml", "--name", "long", "--set", "steps=7")
        assert (code, lines) == (2, [])
        assert "is at work with another spec" in err
        assert "steps: 100000 → 7" in err
        code, lines, _ = call(capfd, "stop", "long", "--wait", "--json")
        assert code == 0
        assert json.loads(lines[0])["state"] == "stopped"
        code, out, err = finish()
    assert code == 1, err
    stopped = json.loads(out)
    assert stopped["state"] == "stopped"
    assert "nbtune resume long" in err
    with training("resume", "long", "--json", until="running step") as finish:
        finish.process.send_signal(signal.SIGINT)  # type: ignore[attr-defined]
        code, out, err = finish()
    assert code == 1, err
    assert "stopping and saving long" in err
    assert "Traceback" not in err
    again = json.loads(out)
    assert again["state"] == "stopped"
    assert again["step"] >= stopped["step"]


def test_a_second_interrupt_leaves_with_a_word_and_exit_1(folder: Path) -> None:
    steps_of_seconds = ["--set", "batch_size=2000", "--set", "micro_batch_size=2000", "--set", "steps=100000"]
    with training("train", "spec.yaml", "--name", "left", *steps_of_seconds, until="running step") as finish:
        process = finish.process  # type: ignore[attr-defined]
        process.send_signal(signal.SIGINT)
        while "once more to leave now" not in (line := process.stderr.readline()):
            assert line, "it ended before it was told to"
        process.send_signal(signal.SIGINT)
        code, _, err = finish()
    assert code == 1, err
    assert "nbtune resume left" in err
    assert "terminate" not in err
    assert "Traceback" not in err


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="there are no hang-ups on Windows")
def test_a_closed_terminal_stops_and_saves(folder: Path) -> None:
    with training("train", "spec.yaml", "--name", "hung", "--set", "steps=100000", until="running step") as finish:
        for _ in range(2):  # the shell sends one, and the system another
            finish.process.send_signal(signal.SIGHUP)  # type: ignore[attr-defined]
        code, _, err = finish()
    assert code == 1, err
    assert "Traceback" not in err
    run = nbtune.attach("hung")
    assert run.state == "stopped"
    assert (run.folder / "checkpoints" / f"step-{run.step:08d}").is_dir()


@pytest.mark.slow
def test_a_run_is_held_from_elsewhere_and_goes_on(folder: Path, capfd: Any) -> None:
    args = ["--name", "held", "--set", "steps=100000"]
    with training("train", "spec.yaml", *args, until="running step") as finish:
        code, lines, err = call(capfd, "pause", "held")
        assert (code, lines) == (0, ["held holds at its next step; `nbtune unpause held` goes on"]), err
        run = nbtune.attach("held")
        held = threading.Event()
        run.subscribe(lambda events, first: held.set() if run.state == "paused" else None)
        assert held.wait(240)
        code, lines, _ = call(capfd, "unpause", "held", "--json")
        assert code == 0
        assert json.loads(lines[0])["name"] == "held"
        assert call(capfd, "stop", "held", "--wait")[0] == 0
        assert finish()[0] == 1


def test_losses_of_runs_beside_each_other(demo: dict[str, Any], capfd: Any) -> None:
    code, lines, err = call(capfd, "compare", "demo", demo["id"])
    assert code == 0, err
    assert lines[0].split() == ["name", "state", "step", "first", "loss", "loss", "held-out", "loss"]
    assert [f"{demo['loss']:.4f}" in line for line in lines[-2:]] == [True, True]
    code, lines, _ = call(capfd, "compare", "demo", demo["id"], "--json")
    assert [json.loads(line) for line in lines] == [demo, demo]
    assert call(capfd, "compare", "demo", "nobody")[:2] == (2, [])
    assert call(capfd, "pause", "demo")[:2] == (0, ["demo is finished"])


@pytest.mark.slow
def test_a_detached_run_is_left_alone_and_can_be_watched(folder: Path, capfd: Any) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "nbtune",
            "train",
            "spec.yaml",
            "--name",
            "away",
            "--set",
            "steps=3",
            "--detach",
            "--json",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["name"] == "away"
    code, lines, err = call(capfd, "attach", "away", "--json")
    assert code == 0, err
    assert json.loads(lines[0])["state"] == "finished"


@pytest.mark.parametrize(
    ("rows", "extra", "cause"),
    [
        ([{"prompt": "Hi", "completion": ""}] * 8, [], "no token would be trained (0 %)"),
        ([{"colour": "red", "size": 3}] * 8, [], "colour"),
        (ROWS, ["--set", "data={source: bad.jsonl, columns: {prompt: question}}"], "question"),
        (ROWS, ["--set", "model=./nowhere"], "nowhere"),
        ([], [], "bad.jsonl"),
    ],
    ids=["all masked", "unknown columns", "a column that is not there", "unknown model", "empty"],
)
def test_bad_rows_are_said_with_a_fix(folder: Path, capfd: Any, rows: Any, extra: list[str], cause: str) -> None:
    write(folder / "bad.jsonl", rows)
    code, lines, err = call(capfd, "train", "spec.yaml", "--name", "bad", "--set", "data=bad.jsonl", *extra)
    assert (code, lines) == (2, []), err
    assert cause in err
    assert "→ " in err
    assert "Traceback" not in err


def test_no_disk_space_is_said_before_it_is_spent(capfd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: type(usage)(usage.total, usage.total - 1000, 1000))
    code, lines, err = call(capfd, "train", "spec.yaml", "--name", "full", "--set", "steps=2")
    assert (code, lines) == (2, []), err
    assert "of disk" in err
    assert "→ " in err


def test_a_runs_folder_that_cannot_be_written(folder: Path, capfd: Any) -> None:
    (folder / "a-file").write_text("")
    code, _, err = call(capfd, "train", "spec.yaml", "--runs", "a-file")
    assert code == 2, err
    assert "no run can be kept in a-file/" in err


def test_the_token_is_in_no_output_and_no_file(folder: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    token = "hf_" + "T0pS3cret" * 4
    monkeypatch.setenv("HF_TOKEN", token)
    code, lines, err = call(capfd, "train", "spec.yaml", "--name", "secret", "--set", "steps=1", "--runs", "secret")
    assert code == 0, err
    said = [*lines, err]
    code, lines, err = call(capfd, "push", "secret", "me/it", "--runs", "secret", "--traceback")  # there is no Hub here
    assert code == 1, err
    said += [*lines, err, "\n".join(call(capfd, "doctor")[1])]
    assert token not in "\n".join(said)
    files = [path for path in (folder / "secret").rglob("*") if path.is_file()]
    assert files
    assert [path for path in files if token.encode() in path.read_bytes()] == []


def test_data_says_each_row(folder: Path, capfd: Any) -> None:
    write(folder / "mixed.jsonl", [*ROWS, {"prompt": "Hi", "completion": ""}])
    code, lines, err = call(capfd, "data", "mixed.jsonl", "--json")
    assert code == 0, err
    rows = [json.loads(line) for line in lines]
    assert [row["row"] for row in rows] == list(range(17))
    assert [row["status"] for row in rows] == ["used"] * 16 + ["dropped"]
    trained = [token for token in rows[0]["labels"] if token != -100]
    assert trained
    assert len(rows[0]["labels"]) == len(rows[0]["input_ids"])
    assert "0 plus 1 is 1." in rows[0]["text"]
    code, lines, _ = call(capfd, "data", "mixed.jsonl")
    assert code == 0
    assert "dropped: 1 row: " in "\n".join(lines)


def test_losses_of_rows(demo: dict[str, Any], capfd: Any) -> None:
    code, lines, _ = call(capfd, "losses", "demo", "--json")
    assert code == 0
    rows = [json.loads(line) for line in lines]
    assert [row["loss"] for row in rows] == sorted((row["loss"] for row in rows), reverse=True)
    code, lines, err = call(capfd, "losses", "demo", "-n", "2")
    assert code == 0, err
    assert [line.split()[0] for line in lines if rows[0]["mark"] in line] == [f"{rows[0]['loss']:.3f}"]
    assert sum("▸" in line for line in lines) == 4


@pytest.mark.slow
def test_the_script_of_a_run_trains_it_again(folder: Path, demo: dict[str, Any], capfd: Any) -> None:
    first = nbtune.attach("demo")
    code, lines, _ = call(capfd, "script", "demo")
    assert code == 0
    (folder / "again.py").write_text("\n".join(lines) + "\n")
    done = subprocess.run([sys.executable, "again.py"], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    again = nbtune.attach(Path(done.stdout.strip()))
    assert again.folder != first.folder
    assert again.history["loss"].to_dict() == first.history["loss"].to_dict()


def test_the_yaml_of_a_run_trains_it_again(folder: Path, demo: dict[str, Any], capfd: Any) -> None:
    first = nbtune.attach(demo["folder"])
    code, lines, _ = call(capfd, "script", demo["folder"], "--out", "kept")
    assert (code, lines) == (0, ["kept/demo.py", "kept/demo.yaml"])
    assert (folder / "kept/demo.yaml").read_text() == first.yaml()
    code, lines, err = call(capfd, "train", "kept/demo.yaml", "--name", "third", "--json")
    assert code == 0, err
    assert nbtune.attach("third").history["loss"].to_dict() == first.history["loss"].to_dict()
    code, _, err = call(capfd, "script", demo["folder"], "--out", "kept")
    assert code == 2
    assert "is there already" in err
