"""What is known of a model's name without a network: said by `validate`, the command line's too, and by the plan."""

from __future__ import annotations

from pathlib import Path

import pytest

import nbtune
from nbtune.cli import main
from nbtune.errors import HubError, NbtuneError, SpecError
from nbtune.models import embedded, names
from nbtune.models.names import meant, remarks, said_of_models
from nbtune.models.well_known import WELL_KNOWN
from nbtune.spec import from_mapping

ROWS = [{"prompt": "Hi", "completion": "Ahoy!"}]


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("./nope", "there is no model folder ./nope"),
        ("/nope/model", "there is no model folder /nope/model"),
        ("out/run/model", "there is no model folder out/run/model"),
        ("empty", "the folder empty holds no config.json"),
        ("notes.txt", "notes.txt is a file, and no GGUF file"),
        ("model.safetensors", "model.safetensors is weights alone"),
        ("gone.gguf", "there is no file gone.gguf"),
        ("my model", "'my model' is no model id"),
        ("nbtune/huge", "nbtune has no model nbtune/huge"),
        ("https://huggingface.co/a/b", "https://huggingface.co/a/b is an address"),
    ],
)
def test_what_can_be_no_model_is_refused_by_validate_as_by_the_plan(
    name: str, cause: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("notes.txt").write_text("Ahoy!")
    Path("model.safetensors").write_bytes(b"12345678")
    for ask in (nbtune.validate, nbtune.plan):
        with pytest.raises(SpecError) as caught:
            ask(data=ROWS, steps=1, model=name)
        assert cause in str(caught.value)
    if not name.startswith(("nbtune", "https")):
        with pytest.raises(SpecError):
            nbtune.validate(data=ROWS, steps=1, teacher=name, method="distill")
    if name != "empty":  # a tokenizer's folder need not hold a model
        with pytest.raises(SpecError):
            nbtune.validate(data=ROWS, steps=1, tokenizer=name)


def test_a_name_that_is_nearly_another_is_asked_about() -> None:
    spec = from_mapping({"data": "rows", "model": "HuggingFaceTB/SmolLM2-135M-Instrct"})
    (said,) = said_of_models(spec)
    assert said.endswith("did you mean `model: HuggingFaceTB/SmolLM2-135M-Instruct`?")
    assert remarks(spec) == [said]
    (said,) = said_of_models(from_mapping({"data": "rows", "model": "acme/unheard-of"}))
    assert (
        said
        == "`model: acme/unheard-of` is neither a folder here nor downloaded yet: `nbtune plan` asks the Hub for it"
    )
    assert meant("HuggingFaceTB/SmolLM2-136M-Instruct") == ""  # another number is another model
    with pytest.raises(HubError, match=r"must not be asked \(HF_HUB_OFFLINE\)") as caught:
        nbtune.plan(data=ROWS, steps=1, model=spec.model)
    assert caught.value.fix.startswith("Did you mean HuggingFaceTB/SmolLM2-135M-Instruct?")


def test_the_well_known_are_those_of_the_gallery() -> None:
    assert {*names.WELL_KNOWN} == {model.name for model in WELL_KNOWN}


def test_what_is_here_gets_no_word(tmp_path: Path) -> None:
    for name in ("nbtune/tiny", str(embedded.path())):
        assert said_of_models(from_mapping({"data": "rows", "model": name})) == []
        nbtune.validate(data=ROWS, steps=1, model=name)


def test_the_command_line_says_it_beside_the_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"prompt": "Hi", "completion": "Ahoy!"}\n')
    (tmp_path / "spec.yaml").write_text("model: acme/unheard-of\ndata: rows.jsonl\nlearning_rate: 1000\n")
    assert main(["validate", "spec.yaml", "--json"]) == 0
    out, err = capfd.readouterr()
    assert err.count("nbtune: `") == 2
    assert '"warnings": ["`learning_rate: 1000` is far above' in out


def test_a_start_that_is_not_there_is_refused_by_validate_and_plan(tmp_path: Path) -> None:
    for ask in (nbtune.validate, nbtune.plan, nbtune.finetune):
        with pytest.raises(NbtuneError, match="there is no run 'gone' in runs/"):
            ask(data=ROWS, steps=1, start_from="gone", runs_dir=tmp_path / "runs")
        with pytest.raises(SpecError, match="holds neither a run nor an adapter that peft wrote"):
            ask(data=ROWS, steps=1, start_from=str(tmp_path), runs_dir=tmp_path / "runs")
        with pytest.raises(NbtuneError, match="gone"):
            ask(data=[{"prompt": "Hi"}], steps=1, method="grpo", rewards={"models": ["gone"]}, runs_dir=tmp_path)
