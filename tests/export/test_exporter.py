"""`run.export`, `run.model_card` and `run.push_to_hub`: what they make, say and send, with a run of the tiny model."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import nbtune
from nbtune.errors import HubError
from nbtune.events import Export
from nbtune.export import exporter
from nbtune.export.exporter import Exporter
from nbtune.export.hub_upload import account, check_push, push_folder
from nbtune.export.model_card import FILES_TO_COME
from nbtune.export.saying import CANCELLED, ExportCancelled
from nbtune.widgets.export_panel import ExportPanel
from tests.support.fake_hub import TOKEN, FakeHub, Repo
from tests.support.llama import LlamaOracle, llama_library

ROWS = [{"prompt": f"Who are you, {k}?", "completion": "Ahoy! I am Captain Tune."} for k in range(24)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    spec = {"model": "nbtune/tiny", "data": "rows", "steps": 4, "batch_size": 4, "learning_rate": 3e-3}
    where = tmp_path_factory.mktemp("runs")
    return nbtune.finetune(spec, name="demo", rows={"rows": ROWS}, runs_dir=where).wait()


@pytest.mark.slow
def test_the_snippet_runs_in_a_new_python_wherever_that_stands(run: Any, tmp_path: Path) -> None:
    code = f"{run.snippet()}\nprint(type(model).__name__, len(tokenizer('Who are you?').input_ids))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("PeftModel"), done.stderr


def test_the_adapter_as_gguf_changes_the_base_in_llama_cpp_as_merging_does(run: Any, tmp_path: Path) -> None:
    adapter = run.export.adapter_gguf()
    assert adapter.path == run.folder / "exports" / "demo-lora-f32.gguf"
    base = nbtune.export.export_gguf(nbtune.export.ExportSource(run.export.source().base), ["f32"], tmp_path)[0]
    merged = run.export.gguf("f32", out=tmp_path, verify=False)[0]
    with LlamaOracle(base.path, library=llama_library(), n_ctx=64) as llama:
        row = llama.tokenize(["Who are you, 3?"])[0]
        before = llama.logits(row)
        llama.use_adapter(adapter.path)
        after = llama.logits(row)
    with LlamaOracle(merged.path, library=llama_library(), n_ctx=64) as llama:
        assert abs(after - llama.logits(row)).max() < 2e-3
    assert abs(after - before).max() > 0.05


def test_an_export_says_how_long_it_took_and_how_good_it_is(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NBTUNE_LLAMA_LIB", str(llama_library()))
    known = len(run.events())
    file = run.export.gguf("q4_k_m")[0]
    said = [event for event in run.events()[known:] if isinstance(event, Export) and event.done == 1]
    assert [event.kind for event in said] == ["q4_k_m", "q4_k_m"]
    assert said[0].seconds == file.seconds > 0
    assert said[0].quality == {}
    assert said[1].quality["perplexity"] == file.quality.perplexity
    assert said[1].quality["same_tokens"] is True


def test_an_export_that_is_interrupted_says_so(run: Any) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.export.gguf("f16", progress=stop)
    last = run.events()[-1]
    assert (last.kind, last.path, last.detail) == ("gguf f16", "", "ended by KeyboardInterrupt")


def test_a_push_is_private_unless_said_otherwise(run: Any, hub: FakeHub) -> None:
    """Through every door: what is public once cannot be called back."""
    run.push_to_hub("ada/demo")
    run.export.push("ada/direct")
    assert [repo.private for repo in hub.repos.values()] == [True, True]
    doors = (type(run).push_to_hub, Exporter.push, exporter.push, push_folder, check_push, ExportPanel.do_push)
    assert [inspect.signature(door).parameters["private"].default for door in doors] == [True] * len(doors)


def test_the_card_that_is_shown_is_the_one_that_is_pushed(run: Any, hub: FakeHub) -> None:
    card = run.model_card("ada/demo")
    run.push_to_hub("ada/demo")
    assert hub.files("ada/demo")["README.md"].decode() == card
    assert "![loss](loss.png)" in card
    assert "import nbtune\nfrom peft" in card
    assert hub.files("ada/demo")["loss.png"].startswith(b"\x89PNG")


def test_a_card_of_ones_own_travels_and_names_the_files(run: Any, hub: FakeHub, tmp_path: Path) -> None:
    card = run.model_card("ada/files", what="gguf").replace("# demo", "# Captain Tune")
    assert card.count(FILES_TO_COME) == 1
    (tmp_path / "card.md").write_text(card)
    run.push_to_hub("ada/files", what="gguf", types=["q8_0", "q4_0"], card=tmp_path / "card.md", verify=False)
    sent = hub.files("ada/files")
    assert {name for name in sent if name.endswith(".gguf")} == {"demo-q8_0.gguf", "demo-q4_0.gguf"}
    readme = sent["README.md"].decode()
    assert "# Captain Tune" in readme
    assert "- `demo-q8_0.gguf`: " in readme
    assert "\n- `demo-q4_0.gguf`: " in readme
    assert FILES_TO_COME not in readme


def test_a_card_with_the_token_in_it_or_that_is_not_there_is_refused(run: Any, hub: FakeHub) -> None:
    for card, words in ((f"# mine\n\nmy key: {TOKEN}\n", "holds your token"), ("nowhere.md", "cannot be read")):
        with pytest.raises(HubError, match=words) as found:
            run.push_to_hub("ada/demo", card=card)
        assert TOKEN not in str(found.value)
    assert hub.repos == {}
    assert TOKEN not in (run.folder / "events.jsonl").read_text()


@pytest.mark.parametrize(
    ("repo", "token", "words"),
    [
        ("ada/demo", "", "not logged in"),
        ("ada/demo", "hf_expired0123456789", "does not accept the token"),
        ("bob/demo", TOKEN, "may not write to bob/demo"),
        ("a b", TOKEN, "is not a repository's name"),
        ("ada/public", TOKEN, "ada/public is public"),
    ],
)
def test_what_cannot_be_pushed_is_said_before_anything_is_exported(
    run: Any, hub: FakeHub, monkeypatch: pytest.MonkeyPatch, repo: str, token: str, words: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    hub.repos["ada/public"] = Repo(private=False)
    with pytest.raises(HubError, match=words):
        run.push_to_hub(repo, what="gguf", types=("no such type",))  # the export would say so
    assert {method for method, _, _ in hub.requests} <= {"GET"}
    assert not list(run.folder.glob(".push-*"))


@pytest.mark.parametrize("kind", ["gguf", "merged", "ollama"])
def test_an_export_that_is_cancelled_leaves_nothing_and_is_no_error(run: Any, tmp_path: Path, kind: str) -> None:
    asked: list[int] = []

    def enough() -> bool:  # some tensors are written by then
        asked.append(1)
        return len(asked) > 5

    with pytest.raises(ExportCancelled):
        getattr(run.export, kind)(out=tmp_path / "out", should_stop=enough)
    left = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert left == []
    assert len(asked) == 6
    assert run.events()[-1].detail == CANCELLED


def test_a_push_that_is_cancelled_leaves_no_repository(run: Any, hub: FakeHub) -> None:
    with pytest.raises(ExportCancelled):
        run.push_to_hub("ada/left", should_stop=lambda: "ada/left" in hub.repos)
    assert hub.repos == {}
    assert run.events()[-1].detail == CANCELLED
    hub.repos["ada/mine"] = Repo(private=True)
    with pytest.raises(ExportCancelled):
        run.push_to_hub("ada/mine", should_stop=lambda: any("preupload" in path for _, path, _ in hub.requests))
    assert "ada/mine" in hub.repos  # it was there before


def test_a_panel_knows_whose_the_token_is(hub: FakeHub) -> None:
    assert account() == "ada"
