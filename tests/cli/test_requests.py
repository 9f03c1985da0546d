"""What a script can rely on: exit codes, stdout for results only, errors of a few lines on stderr."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nbtune.cli import _spread, main
from nbtune.cli.output import explain, result, work
from tests.support.every import every


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NBTUNE_RUNS", str(tmp_path / "runs"))
    return tmp_path


def call(capfd: Any, *args: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of a command line."""
    capfd.readouterr()
    code = main(args)
    out, err = capfd.readouterr()
    return code, out, err


@pytest.mark.parametrize(
    ("text", "args", "cause", "place"),
    [
        ("data: nbtune/town\nstpes: 3\n", [], "there is no key `stpes`", "line 2 of spec.yaml"),
        ("data: nbtune/town\nsteps: many\n", [], "`steps`", "line 2 of spec.yaml"),
        ("steps: 3\n", [], "`data` is missing", "spec.yaml"),
        ("data: [\n", [], "not YAML", "of spec.yaml"),
        ("data: nbtune/town\n", ["--set", "steps"], "has no value", ""),
        ("data: nbtune/town\n", ["--set", "adapter.rang=3"], "no key `rang` in `adapter`", ""),
        ("data: nbtune/town\n", ["--restart", "--queue"], "exclude each other", ""),
        ("data: nowhere.jsonl\n", [], "nowhere.jsonl", ""),
    ],
)
def test_a_wrong_request_is_exit_2_and_a_few_lines(
    here: Path, capfd: Any, text: str, args: list[str], cause: str, place: str
) -> None:
    (here / "spec.yaml").write_text(text)
    code, out, err = call(capfd, "train", "spec.yaml", *args)
    assert (code, out) == (2, ""), err
    assert cause in err
    assert place in err
    assert "→ " in err
    assert "Traceback" not in err
    assert len(err.splitlines()) <= 4
    assert not list(here.glob("runs/*"))


@pytest.mark.parametrize("command", ["train", "plan", "validate"])
def test_a_column_that_is_not_there_is_said_with_its_line(here: Path, capfd: Any, command: str) -> None:
    (here / "mine.csv").write_text("question,reply\nHow much is 1 plus 1?,2\n")
    (here / "spec.yaml").write_text("data:\n  source: mine.csv\n  columns: {prompt: question, completion: repply}\n")
    code, out, err = call(capfd, command, "spec.yaml")
    assert (code, out) == (2, "")
    assert "line 3 of spec.yaml (mine.csv): there is no column `repply`" in err
    assert "`question`, `reply`" in err
    assert "did you mean `reply`?" in err
    assert not list(here.glob("runs/*"))


def test_a_spec_that_is_fine_is_said_to_be(here: Path, capfd: Any) -> None:
    (here / "spec.yaml").write_text("data: nbtune/town\nsteps: 3\n")
    code, out, _ = call(capfd, "validate", "spec.yaml", "--set", "adapter.r=8")
    assert (code, out) == (
        0,
        "model: nbtune/tiny\ndata: nbtune/town\nadapter:\n  r: 8\nsteps: 3\n# spec.yaml is fine\n",
    )
    code, out, _ = call(capfd, "validate", "spec.yaml", "--json")
    assert json.loads(out) == {"spec": {"data": [{"source": "nbtune/town"}], "steps": 3}, "warnings": []}


@pytest.mark.parametrize(
    "args",
    [
        ["stop", "nobody"],
        ["resume", "nobody"],
        ["attach", "nobody"],
        ["chat", "nobody", "--prompt", "Hi"],
        ["push", "nobody", "me/it"],
        ["export", "nobody", "--gguf", "q8_0"],
        ["export", "nobody"],
        ["export", "nbtune/tiny", "--gguf", "q9_9"],
        ["train", "nowhere.yaml"],
        ["plan", "nowhere.yaml"],
        ["data", "nowhere.jsonl"],
        ["trian", "x"],
        ["train"],
        ["train", "x.yaml", "--nam", "y"],
    ],
)
def test_what_is_not_there_is_exit_2(capfd: Any, args: list[str]) -> None:
    code, out, err = call(capfd, *args)
    assert (code, out) == (2, ""), err
    assert err
    assert "Traceback" not in err


def test_traceback_says_where(capfd: Any) -> None:
    for args in (["--traceback", "stop", "nobody"], ["stop", "nobody", "--traceback"]):
        code, _, err = call(capfd, *args)
        assert code == 2
        assert "Traceback" in err
        assert "there is no run 'nobody'" in err


def test_no_runs_is_an_empty_list(capfd: Any) -> None:
    assert call(capfd, "runs", "--json")[:2] == (0, "")
    assert call(capfd, "runs")[:2] == (0, "no runs yet\n")


def test_plan_as_json_and_as_text(here: Path, capfd: Any) -> None:
    (here / "spec.yaml").write_text("data: nbtune/town\nsteps: 7\n")
    code, out, err = call(capfd, "plan", "spec.yaml", "--set", "batch_size=4", "--json")
    assert code == 0, err
    body = json.loads(out)
    assert (body["total_steps"], body["micro_batch_size"] * body["gradient_accumulation_steps"]) == (7, 4)
    code, out, _ = call(capfd, "plan", "spec.yaml")
    assert code == 0
    assert "memory" in out
    assert not (here / "runs").exists()


def test_doctor_says_each_finding_as_json(capfd: Any) -> None:
    code, out, _ = call(capfd, "doctor", "--json")
    findings = [json.loads(line) for line in out.splitlines()]
    assert code == int(any(finding["status"] == "problem" for finding in findings))
    assert {"machine", "device", "torch", "Hub login"} <= {finding["topic"] for finding in findings}


def test_version(capfd: Any) -> None:
    import nbtune

    assert call(capfd, "--version")[:2] == (0, f"{nbtune.__version__}\n")


def test_the_module_and_its_help_load_no_torch() -> None:
    code = "import sys; from nbtune.cli import main; assert main(['--help']) == 0; assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    done = subprocess.run([sys.executable, "-m", "nbtune", "runs"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "no runs yet\n"), done.stderr


def test_a_full_disk_is_no_bug_wherever_it_is_met(capsys: Any) -> None:
    with pytest.raises(OSError, match="No space") as full, Path("/dev/full").open("wb", buffering=0) as file:
        file.write(b"x")
    assert explain(full.value, traceback=False) == 1
    said = capsys.readouterr().err
    assert "the disk is full" in said
    assert "bug" not in said


def test_what_a_library_prints_is_no_result(capsys: Any) -> None:
    with work():
        print("loading weights: 100 %")
    result({"loss": 1.5}, as_json=True, text="")
    assert capsys.readouterr() == ('{"loss": 1.5}\n', "loading weights: 100 %\n")


def test_numbers_that_json_has_no_word_for_are_texts(capsys: Any) -> None:
    body = {"lost": float("nan"), "without bound": [float("inf"), -float("inf")], "usual": 0.5}
    result(body, as_json=True, text="")
    said = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert said == {"lost": "nan", "without bound": ["inf", "-inf"], "usual": 0.5}


@pytest.mark.parametrize("types", [["q8_0,f16"], ["q8_0", "f16"], ["q8_0", "--gguf", "f16"]])
def test_several_types_may_be_named_in_each_way(types: list[str]) -> None:
    spread = _spread(["export", "--gguf", *types, "demo"])
    assert spread == ["export", "--gguf", "q8_0", "--gguf", "f16", "demo"]


@pytest.mark.parametrize(
    ("name", "cause", "fix"),
    [
        ("spec.yml", "there is no file 'spec.yml'", "did you mean 'spec.yaml'?"),
        ("zzz", "there is no file 'zzz'", "give the path of a YAML file, from '{here}' on"),
        ("gone/spec.yaml", "there is no file 'gone/spec.yaml'", "there is no folder 'gone' either"),
        ("folder", "'folder' is a folder", "give the path of a YAML file in it"),
        ("wide.yaml", "'wide.yaml' is not written in UTF-8", "save it as UTF-8"),
    ],
)
def test_a_spec_that_cannot_be_read_is_said_in_words(here: Path, capfd: Any, name: str, cause: str, fix: str) -> None:
    (here / "spec.yaml").write_text("data: nbtune/town\n")
    (here / "folder").mkdir()
    (here / "wide.yaml").write_bytes("data: nbtune/town\n".encode("utf-16"))
    code, out, err = call(capfd, "validate", name)
    assert (code, out) == (2, "")
    assert cause in err
    assert fix.format(here=here) in err
    assert "Errno" not in err
    assert "codec" not in err


def test_a_spec_comes_on_stdin(here: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for text, code in (("data: nbtune/town\nsteps: 3\n", 0), ("data: nbtune/town\nstpes: 3\n", 2)):
        monkeypatch.setattr(sys, "stdin", io.StringIO(text))
        got, out, err = call(capfd, "validate", "-", "--json")
        assert got == code, err
        assert ("line 2 of stdin" in err) == (code == 2)
        assert ('"steps": 3' in out) == (code == 0)


def test_rows_beside_the_spec_are_found_out(here: Path, capfd: Any) -> None:
    """A path begins where the command is called; where the file lies beside the spec, what to write is said."""
    (here / "my project").mkdir()
    (here / "my project" / "rows.jsonl").write_text('{"prompt": "Hi", "completion": "Ahoy!"}\n')
    (here / "my project" / "spec.yaml").write_text("steps: 3\ndata: rows.jsonl\n")
    code, _, err = call(capfd, "validate", "my project/spec.yaml")
    assert code == 2
    assert "line 2 of spec.yaml: there is no file called `rows.jsonl`" in err
    assert "write `my project/rows.jsonl`" in err
    assert call(capfd, "validate", "my project/spec.yaml", "--set", "data=my project/rows.jsonl")[0] == 0


def test_quiet_says_warnings_alone(here: Path, capfd: Any) -> None:
    (here / "rows.jsonl").write_text('{"prompt": "Hi", "completion": "Ahoy!"}\n' * 2)
    (here / "spec.yaml").write_text("data: rows.jsonl\nsteps: 1\nlearning_rate: 1e-12\n")
    code, out, err = call(capfd, "train", "spec.yaml", "--quiet")
    assert code == 0, err
    assert out.startswith("run is finished at step 1/1")
    assert "warning: `learning_rate: 1e-12` is far below what is usual" in err
    assert every(line.startswith(("warning: ", "  → ")) for line in err.splitlines()), err


def test_plan_and_validate_look_for_runs_where_they_are(here: Path, capfd: Any) -> None:
    (here / "spec.yaml").write_text("data: nbtune/town\nstart_from: gone\n")
    for command in ("validate", "plan"):
        code, _, err = call(capfd, command, "spec.yaml", "--runs", "others")
        assert code == 2
        assert "there is no run 'gone' in others/" in err
