"""Magics and command line take what Python takes, and send it: each flag, against the Hub of the tests."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

import nbtune
from nbtune.cli import main
from nbtune.commands import COMMANDS, Door
from nbtune.errors import ExportError
from nbtune.export import take_home
from nbtune.export.exporter import Exporter
from nbtune.export.hub_upload import push_folder
from tests.support.fake_hub import TOKEN, FakeHub
from tests.support.llama import llama_library

DOORS: tuple[Door, ...] = ("shell", "cell")
ROWS = [{"prompt": f"Who are you, {k}?", "completion": "Ahoy! I am Captain Tune."} for k in range(24)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    spec = {"model": "nbtune/tiny", "data": "rows", "steps": 3, "batch_size": 4, "eval": {"split": 0.25}}
    where = tmp_path_factory.mktemp("runs")
    nbtune.finetune(spec, name="demo", rows={"rows": ROWS}, runs_dir=where).wait()
    return where


@pytest.fixture(params=["cli", "magic"])
def door(request: Any, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> Iterator[Any]:
    """Says a line of `nbtune …` or of `%nbtune …`, and returns what was printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NBTUNE_RUNS", str(runs))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    (tmp_path / "card.md").write_text("# Captain Tune\n")

    def shell(line: str) -> str:
        assert main(line.split()) == 0
        return capfd.readouterr().out

    if request.param == "cli":
        yield shell
        return
    config = Config()
    config.HistoryManager.enabled = False
    InteractiveShell.clear_instance()
    cell = InteractiveShell.instance(config=config)
    cell.run_line_magic("load_ext", "nbtune")

    def magic(line: str) -> str:
        cell.run_line_magic("nbtune", line)
        return capfd.readouterr().out

    yield magic
    cell.run_line_magic("unload_ext", "nbtune")
    InteractiveShell.clear_instance()


def test_a_push_with_every_flag(door: Callable[[str], str], hub: FakeHub, runs: Path) -> None:
    said = door("push demo ada/files --gguf q8_0 q4_0 --public --branch v2 --message Ahoy --card card.md --no-verify")
    assert f"{hub.endpoint}/ada/files" in said
    sent = hub.files("ada/files", "v2")
    assert {"demo-q8_0.gguf", "demo-q4_0.gguf", "README.md", "loss.png"} >= set(sent) > {"demo-q8_0.gguf"}
    assert sent["README.md"] == b"# Captain Tune\n"
    assert not hub.repos["ada/files"].private
    assert hub.messages == ["Ahoy"]
    said = door("push demo ada/merged --what merged --pr")
    assert f"{hub.endpoint}/ada/merged/discussions/1" in said
    assert "model.safetensors" in hub.files("ada/merged", "refs/pr/1")
    assert hub.repos["ada/merged"].private
    assert TOKEN not in "".join(path.read_text() for path in runs.glob("*/events.jsonl"))


def test_an_export_with_every_flag(door: Callable[[str], str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NBTUNE_LLAMA_LIB", str(llama_library()))
    more = "--adapter --adapter-gguf --merged --dtype float16 --ollama --ollama-type q4_0"
    said = door(f"export demo --gguf q4_k_m --importance --verify --out there {more}")
    assert "perplexity" in said
    there = tmp_path / "there"
    names = {"adapter", "merged", "ollama", "demo-q4_k_m.gguf", "demo-lora-f32.gguf"}
    assert {path.name for path in there.iterdir()} == names
    assert '"dtype": "float16"' in (there / "merged" / "config.json").read_text()
    assert (there / "ollama" / "demo-q4_0.gguf").is_file()


def test_one_kind_goes_into_the_folder_itself(door: Callable[[str], str], tmp_path: Path) -> None:
    door("export demo --adapter --out mine")
    assert (tmp_path / "mine" / "adapter_model.safetensors").is_file()


def test_no_kind_of_export_and_no_option_of_a_push_is_forgotten() -> None:
    kinds = {name for name, call in vars(Exporter).items() if inspect.isfunction(call) and name[0] != "_"}
    kinds -= {"source", "card", "push", "can_verify"}
    offered = set(inspect.signature(take_home).parameters)
    assert kinds <= offered
    export_flags = offered - {"exporter", "verify"} | {"dtype", "ollama_type", "verify"}
    for door in DOORS:
        assert export_flags <= {argument.dest for argument in COMMANDS["export"].arguments(door)}

    taken = {*inspect.signature(Exporter.push).parameters, *inspect.signature(push_folder).parameters}
    taken -= {"self", "repo_id", "facts", "options", "folder", "progress", "on_wait", "should_stop"}
    taken -= {"attempts", "wait", "patience"}  # of the connection
    renamed = {"private": "public", "types": "gguf", "revision": "branch", "create_pr": "pr"}
    for door in DOORS:
        arguments = {argument.dest for argument in COMMANDS["push"].arguments(door)}
        assert {renamed.get(name, name) for name in taken} <= arguments


def test_an_unknown_type_is_refused_before_any_work(runs: Path, tmp_path: Path) -> None:
    exporter = nbtune.attach("demo", runs).export
    with pytest.raises(ExportError, match="no GGUF type 'q9'"):
        take_home(exporter, adapter=True, ollama="q9", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
