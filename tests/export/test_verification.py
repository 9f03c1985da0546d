"""A run's exports are judged by its own held-out rows, and its panels say so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import nbtune
import nbtune.export
from nbtune.errors import ExportError
from nbtune.export import held_importance, held_rows
from nbtune.export.reference_model import reference_model
from nbtune.widgets.run_state import RunView
from tests.support.llama import llama_library

ROWS = [
    {"prompt": f"What is {a} plus {b}?", "completion": f"It is {a + b}, sailor."} for a in range(8) for b in range(6)
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    spec = {"model": "nbtune/tiny", "data": "rows", "steps": 4, "batch_size": 4, "learning_rate": 1e-3}
    spec |= {"eval": {"split": 0.25}, "samples": ["What is 2 plus 3?"]}
    where = tmp_path_factory.mktemp("runs")
    return nbtune.finetune(spec, name="demo", rows={"rows": ROWS}, runs_dir=where).wait()


@pytest.fixture
def llama(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NBTUNE_LLAMA_LIB", str(llama_library()))


def test_held_rows_are_those_that_were_not_trained(run: Any) -> None:
    from nbtune.models import load_tokenizer

    rows = held_rows(run.folder)
    assert len(rows.ids) == 12
    assert not rows.trained
    assert "plus" in load_tokenizer("nbtune/tiny").decode(rows.ids[0])
    assert len(held_rows(run.folder, limit=3).ids) == 3


def test_files_are_judged_where_there_is_a_llama_cpp(run: Any, llama: None, tmp_path: Path) -> None:
    files = run.export.gguf("f16", "q4_k_m")
    f16, q4 = (file.quality for file in files)
    assert f16.same_tokens
    assert f16.divergence < 1e-4 < q4.divergence
    assert f16.answers[0][0] == "What is 2 plus 3?"
    assert f16.answers[0][1] == f16.answers[0][2]
    assert q4.summary().startswith("q4_k_m, 1.")
    assert "fits in 4 GB, perplexity " in q4.summary()
    view = RunView(run)
    view.add(run.events())
    table = {item["kind"]: item for item in view.lists["exports"]}
    shown = [item["path"] for item in view.lists["exports"]]  # what other tests exported is in it, too
    assert [shown.count(f"exports/{file.path.name}") for file in files] == [1, 1]
    assert table["q4_k_m"]["detail"].startswith("fits in 4 GB, perplexity ")
    assert table["q4_k_m"]["bytes"] == files[1].bytes


def test_without_a_llama_cpp_nothing_is_said_unless_it_was_asked_for(run: Any, tmp_path: Path) -> None:
    file = run.export.gguf("q8_0", out=tmp_path)[0]
    assert file.quality is None
    assert not any("verified" in note for note in file.notes)
    with pytest.raises(ExportError, match=r"no llama.cpp was found"):
        run.export.gguf("q8_0", out=tmp_path / "other", verify=True)
    assert not (tmp_path / "other").exists()


def test_importance_comes_from_the_runs_rows(run: Any, llama: None, tmp_path: Path) -> None:
    felt = held_importance(run.export.source(), held_rows(run.folder))
    assert "model.layers.0.mlp.down_proj.weight" in felt
    plain = run.export.gguf("q4_k_s", out=tmp_path / "plain")[0]
    weighed = run.export.gguf("q4_k_s", out=tmp_path / "weighed", importance=True)[0]
    assert plain.path.read_bytes() != weighed.path.read_bytes()
    assert weighed.quality.divergence < plain.quality.divergence


def test_rows_that_are_gone_are_a_note_or_an_error(run: Any, llama: None, tmp_path: Path) -> None:
    import shutil

    away = tmp_path / "away"
    shutil.move(run.folder / "data", away)
    try:
        file = run.export.gguf("q8_0", out=tmp_path)[0]
        assert file.quality is None
        assert file.notes[-1].startswith("not verified: ")
        with pytest.raises(nbtune.errors.NbtuneError):
            run.export.gguf("q8_0", out=tmp_path, verify=True)
    finally:
        shutil.move(away, run.folder / "data")


def test_the_model_to_compare_with_is_the_one_that_was_trained(run: Any) -> None:
    """An adapter of a rounded base is compared on the rounded base, as it is merged into it."""
    import dataclasses

    from nbtune.export.merge import MergedModel
    from nbtune.spec.placement import PLAIN, Placement

    source = dataclasses.replace(run.export.source(), adapter=None, weights=Placement(format="fp8"))
    name = "model.layers.0.mlp.down_proj.weight"
    with reference_model(source) as model:
        assert (model.get_parameter(name) == MergedModel(source).get(name)).all()
        head = model.get_output_embeddings().weight
    with reference_model(dataclasses.replace(source, weights=PLAIN)) as model:
        assert (model.get_parameter(name) != MergedModel(source).get(name)).any()
        assert (head == model.get_output_embeddings().weight).all()


def test_caps_of_scores_are_the_reference_s_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to transformers 5.17 the class offers sdpa, which leaves them out: its flag makes a release of that kind."""
    from transformers.models.gemma2.modeling_gemma2 import Gemma2PreTrainedModel

    from nbtune.export.source import ExportSource
    from tests.support.model_classes import save

    monkeypatch.setattr(Gemma2PreTrainedModel, "_supports_sdpa", True)
    with reference_model(ExportSource(save("gemma2", tmp_path))) as model:
        assert model.config._attn_implementation == "eager"


def test_the_card_of_a_run(run: Any) -> None:
    facts = run.facts_for_card()
    card = nbtune.export.render_card(run.export.source(), "ada/demo", "gguf", facts)
    assert facts["curve"].startswith(b"\x89PNG")
    assert "rows (the author's own rows)" in card
    assert "What is 2 plus 3?" in card
    assert f"| {facts['evals'][-1][0]} | " in card
    assert "A fine-tune of `nbtune/tiny`" in card
    assert str(run.folder) not in card
