"""The model card tells what a run knows, of licences only what their cards say."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

import nbtune
from nbtune.export import ExportSource, render_card
from nbtune.export.model_card import data_lines, without_paths
from nbtune.export.others_cards import stated_in
from nbtune.spec.yaml_text import dump


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("---\nlanguage: en\nlicense: apache-2.0\n---\n# x", "apache-2.0"),
        ("---\nlicense: other\nlicense_name: 'llama3.2'\n---\n", "other"),
        ("# license: mit", ""),
        ("---\ntags: [a]\n---\nlicense: mit", ""),
    ],
)
def test_a_licence_is_what_the_card_says(text: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(text)
    assert stated_in(tmp_path / "README.md").licence.get("license", "") == expected
    assert not stated_in(tmp_path / "nothing.md").licence
    assert not stated_in(None).licence


def test_sources_of_the_data() -> None:
    lines, ids = data_lines(["nbtune/pirate", "hub:owner/set", "owner/other", "data/rows.jsonl", "var:rows", "rows"])
    assert lines == [
        "nbtune/pirate (licence: apache-2.0)",
        "owner/set (licence: see its page)",
        "owner/other (licence: see its page)",
        "rows.jsonl (the author's own rows)",
        "rows (the author's own rows)",
        "rows (the author's own rows)",
    ]
    assert ids == ["owner/set", "owner/other"]


def test_everything_that_is_known_stands_in_it(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    facts = {"steps": 40, "loss": 0.5, "evals": [(i, 1 / (i + 1)) for i in range(40)], "data": ["owner/set"]}
    facts |= {"files": ["`demo-q8_0.gguf`: 1 GB, perplexity +0.1 %"], "samples": [("hi", "ahoy ```")], "curve": b"x"}
    facts |= {"spec": "steps: 40", "datasets": ["owner/set"], "method": "dpo"}
    facts |= {"abilities": [("packing", "safe: <b>"), ("accelerated", "32 layers")]}
    for kind in ("adapter", "merged", "gguf"):
        card = render_card(ExportSource(tmp_path, base_id="owner/base", name="demo"), "ada/demo", kind, facts)
        assert "A fine-tune of `owner/base` (licence of the base: mit), made with nbtune in 40 steps." in card
        assert "base_model: owner/base\n" in card
        assert "| 0 | 1 | 2.718 |" in card
        assert "| packing | safe: &lt;b> |" in card
        assert "| 39 | 0.025 |" in card
        assert card.count("\n| ") < 20
        assert "- `demo-q8_0.gguf`: 1 GB, perplexity +0.1 %" in card
        assert "![loss](loss.png)" in card
        assert "steps: 40" in card
        assert "llama" in card
        assert "ollama" in card
        head = ModelCard(card).data
        assert (head.base_model, head.license, head.pipeline_tag) == ("owner/base", "mit", "text-generation")
        assert head.base_model_relation == {"adapter": "adapter", "merged": "finetune", "gguf": "quantized"}[kind]
        assert head.datasets == ["owner/set"]
        assert {"nbtune", "dpo"} <= {*head.tags}
        assert head.language is None


def test_the_head_says_how_well_it_does_and_in_which_language(tmp_path: Path) -> None:
    """The Hub's own reader takes the loss on held-out rows for a result; what was not measured is no result."""
    (tmp_path / "README.md").write_text("---\nlanguage:\n- en\n- fr\n---\n")
    (tmp_path / "config.json").write_text('{"license": "bsd-3-clause"}')
    source = ExportSource(tmp_path, base_id="owner/base", name="demo", method="dpo")
    for sets, kind in (([], "own-rows"), (["owner/set"], "owner/set"), (["owner/set", "owner/two"], "own-rows")):
        head = ModelCard(render_card(source, "ada/demo", facts={"eval_loss": 1.23456, "datasets": sets})).data
        [result] = head.eval_results
        assert (head.model_name, result.metric_type, result.metric_value) == ("demo", "loss", 1.235)
        assert (result.task_type, result.dataset_type) == ("text-generation", kind)
        assert (head.language, head.license) == (["en", "fr"], "bsd-3-clause")
        assert "dpo" in head.tags
    for nothing in ({}, {"eval_loss": None}, {"eval_loss": float("nan")}):
        assert ModelCard(render_card(source, "ada/demo", facts=nothing)).data.eval_results is None


def test_another_licence_of_the_base_keeps_its_name_and_address(tmp_path: Path) -> None:
    link = "https://example.org/LICENSE"
    for given, kept in ((link, link), ("LICENSE", None)):
        (tmp_path / "README.md").write_text(f"---\nlicense: other\nlicense_name: own-1\nlicense_link: {given}\n---\n")
        card = render_card(ExportSource(tmp_path, base_id="owner/base"), "ada/demo")
        head = ModelCard(card).data
        assert (head.license, head.license_name, head.license_link) == ("other", "own-1", kept)
        assert "(licence of the base: own-1)" in card


@pytest.mark.parametrize("head", ["license: [", "license: {a: b}", "- a", "license: 'a b\tc'", "? " * 5000, "a: *x"])
def test_the_head_of_a_strangers_card_is_data(head: str, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(f"---\n{head}\n---\n")
    assert not stated_in(tmp_path / "README.md").licence
    assert ModelCard(render_card(ExportSource(tmp_path, base_id="owner/base"), "ada/demo")).data.license is None


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run of a base and rows that are files of this machine."""
    home = tmp_path_factory.mktemp("ada")
    shutil.copytree(nbtune.models.resolve("nbtune/tiny"), home / "models" / "own-base")
    rows = home / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"Who, {k}?", "completion": "Ahoy!"}) + "\n" for k in range(16)))
    spec = {"model": str(home / "models" / "own-base"), "data": str(rows), "steps": 2, "samples": ["Who, 3?"]}
    return nbtune.finetune(spec, name="demo", runs_dir=home / "runs").wait()


@pytest.mark.parametrize("kind", ["adapter", "merged", "gguf"])
def test_no_path_of_the_authors_machine_stands_in_it(run: Any, kind: str) -> None:
    card = run.model_card("ada/demo", what=kind)
    home = run.folder.parent.parent
    assert str(home) in (run.folder / "spec.yaml").read_text()
    assert str(home) not in card
    assert home.name not in card
    assert "A fine-tune of `own-base`" in card
    assert "model: own-base\ndata: rows.jsonl\n" in card
    assert "- rows.jsonl (the author's own rows)" in card
    assert ModelCard(card).data.base_model is None


PLACES = (
    "/home/ada/of/x",
    "~/of/x",
    "./of/x",
    "../of/x",
    "C:\\of\\x",
    "\\\\ada\\of\\x",
    "ada/of/x",
    "file:///home/of/x",
)


@pytest.mark.parametrize("place", PLACES)
def test_whatever_key_a_path_stands_under_its_folders_stay_here(place: str) -> None:
    asked = {
        "model": place, "tokenizer": place, "teacher": place, "start_from": place, "rewards": {"models": [place]},
        "data": [{"source": place, "function": "mine:f"}, place], "eval": {"data": {"source": place}},
        "mix": {"weights": {place: 1}}, "cluster": {"address": "ray://ada.of:10001", "engine": "ray"},
    }  # fmt: skip
    if place == "ada/of/x":
        del asked["mix"]
    shown = without_paths(dump(asked))
    assert "of" not in re.sub(r"start_from|of_", "", shown), shown
    assert "ada" not in shown
    assert shown.count("x") >= 8 - (place == "ada/of/x")
    same = (
        "model: owner/name\ntokenizer: owner/name\nsamples:\n- /of/x is a path?\nadapter:\n  new_tokens:\n  - /think\n"
    )
    assert without_paths(same) == same


@pytest.mark.parametrize("kind", ["adapter", "merged"])
def test_the_tokenizer_that_leaves_is_the_bases_own(run: Any, kind: str, tmp_path: Path) -> None:
    base, out = run.folder.parent.parent / "models" / "own-base", getattr(run.export, kind)(tmp_path / kind).path
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (out / name).read_bytes() == (base / name).read_bytes()
    if kind == "adapter":
        assert json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"] == "own-base"


def test_what_is_pasted_answers(run: Any, tmp_path: Path) -> None:
    """The card's lines in a new Python, in a folder with the base beside it, and its command, which needs no run."""
    shutil.copytree(run.folder.parent.parent / "models" / "own-base", tmp_path / "own-base")
    run.export.adapter(tmp_path / "ada-demo")
    adapter, merged = run.model_card("ada-demo"), run.model_card("demo", what="merged")
    code = "\n".join([*blocks(adapter, "python"), *blocks(merged, "python")])
    said = answer([sys.executable, "-c", code], tmp_path)
    assert len(said.splitlines()) >= 2
    command = blocks(adapter, "sh")[0].splitlines()[0]
    assert command == "nbtune export ./demo --gguf q8_0 --ollama --out ."
    answer([sys.executable, "-m", *command.split()], tmp_path)
    assert (tmp_path / "demo-q8_0.gguf").is_file()
    assert (tmp_path / "ollama" / "Modelfile").is_file()


def blocks(card: str, language: str) -> list[str]:
    """The code of a card in a language."""
    return re.findall(rf"^```{language}\n(.*?)\n```$", card, re.DOTALL | re.MULTILINE)[-2:]


def answer(command: list[str], folder: Path) -> str:
    """What a command prints that ends well."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
