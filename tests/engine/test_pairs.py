"""Things that were each right alone, together: methods, adapters, starts and knobs, through the public door.

All pairs are tried by `python -m tests.fuzz --only pairs`; here stand those that were found wrong.
"""

from __future__ import annotations

import json
import random
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import nbtune
from nbtune.errors import NbtuneError
from tests.engine.test_asked import trained
from tests.fuzz.cases import Verdict, verdict_on
from tests.fuzz.pair_levels import FIRST, ROWS, model_of
from tests.fuzz.pair_trial import Runs, saved
from tests.fuzz.pairs import of_row
from tests.support.every import some


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(tmp_path)


def row(**levels: str) -> dict[str, str]:
    return {**FIRST, **levels}


def trial_of(levels: dict[str, str], folder: Path) -> Verdict:
    case = of_row(levels, random.Random(0), folder)
    return verdict_on(case.attempt, case.given)


def said(attempted: Any) -> str:
    with pytest.raises(NbtuneError) as error:
        attempted()
    return str(error.value)


@pytest.mark.parametrize("first", ["pissa", pytest.param("olora", marks=pytest.mark.slow)])
def test_16_bit_weights_that_first_values_were_taken_out_of_are_the_same_when_a_run_goes_on(
    runs: Runs, first: str
) -> None:
    run = runs.trained(row(adapter=first, dtype="bf16"))
    losses, weights = list(run.history["loss"]), trained(run)
    run.free()
    run.resume(step=2).wait()
    assert list(run.history["loss"]) == losses
    assert torch.equal(trained(run), weights)


@pytest.mark.parametrize("model", ["tied", "experts"])
def test_orthogonal_first_values_beside_4_bit_weights(model: str) -> None:
    from nbtune.spec import AdapterSpec, Placement

    adapter = AdapterSpec(r=4, init_lora_weights="orthogonal")
    how: dict[str, Any] = {"adapter": adapter, "dtype": torch.float32, "device": "cpu", "accelerate": False}
    built = nbtune.models.build(model_of(model), weights=Placement(format="nf4"), **how)
    factors = {name: p for name, p in built.model.named_parameters() if p.requires_grad}
    for name in some(name for name in factors if ".lora_A." in name):
        a = factors[name]
        b = factors[name.replace(".lora_A.", ".lora_B.")]
        several = a.shape[0] // 4
        each = torch.einsum("eri,ore->eoi", a.view(several, 4, -1), b.view(-1, 4, several))
        assert float(b.detach().abs().min(0).values.max()) > 0, "B is no zero"
        assert float(each.detach().abs().max()) < 1e-5, "their product is"


@pytest.mark.parametrize("kind", ["reward", pytest.param("classification", marks=pytest.mark.slow)])
def test_scores_begin_anew_on_a_run_that_gave_none(runs: Runs, kind: str) -> None:
    begun = runs.trained(row(), steps=1)
    began = load_file(begun.folder / "adapter" / "adapter_model.safetensors")
    for start in (begun.folder, begun.folder / "adapter"):
        fields, variables = runs.asked(row(method=kind), steps=1, learning_rate=1e-12)
        fields["start_from"] = str(start)
        nbtune.plan(fields, rows=variables)
        run = nbtune.finetune(fields, rows=variables, runs_dir=runs.folder, name=f"{kind}-{start.name}").wait()
        goes_on = load_file(run.folder / "adapter" / "adapter_model.safetensors")
        assert {name.split(".")[2] for name in goes_on.keys() - began.keys()} == {"score"}
        for name, value in began.items():
            torch.testing.assert_close(goes_on[name], value, rtol=0, atol=1e-9)


def test_scores_go_on_from_a_run_or_its_folder(runs: Runs) -> None:
    begun = runs.trained(row(method="reward"), steps=1)
    head = {n: v for n, v in load_file(begun.folder / "adapter/adapter_model.safetensors").items() if ".score." in n}
    assert head
    for start in ("a run", "a folder"):
        run = runs.trained(row(method="reward", start=start), steps=1, learning_rate=1e-12)
        now = load_file(run.folder / "adapter/adapter_model.safetensors")
        for name, value in head.items():
            torch.testing.assert_close(now[name], value, rtol=0, atol=1e-9)


def _both(runs: Runs, fields: dict[str, Any], variables: dict[str, Any]) -> str:
    """Return what plan and run refuse alike, with nothing left behind."""
    before = sorted(runs.folder.iterdir())
    planned = said(lambda: nbtune.plan(fields, rows=variables, runs_dir=runs.folder))
    ran = said(lambda: nbtune.finetune(fields, rows=variables, runs_dir=runs.folder))
    assert planned == ran
    assert sorted(runs.folder.iterdir()) == before
    return planned


def test_a_start_that_does_not_fit_is_refused_by_the_plan_too(runs: Runs, tmp_path: Path) -> None:
    scores = runs.trained(row(method="reward"), steps=1).folder
    words = runs.trained(row(), steps=1).folder
    for start, level, why in (
        (tmp_path / "nowhere", {}, "there is no run"),
        (scores, {}, "learnt scores by method `reward`"),
        (scores, {"method": "classification"}, "learnt scores by method `reward`"),
        (scores / "adapter", {}, "ends with a head of scores"),
        (words, {"adapter": "patterns"}, "rank_pattern"),
        (words, {"model": "biased"}, "has `model:"),
        (words / "adapter", {"model": "gemma"}, "is of another model"),
    ):
        fields, variables = runs.asked(row(**level))
        fields |= {"start_from": str(start)} | ({"adapter": {}} if start.name == "adapter" else {})
        assert why in _both(runs, fields, variables), (start, level)


_LOFTQ = {"type": "qlora", "r": 4, "init_lora_weights": "loftq"}


@pytest.mark.parametrize(
    ("model", "more", "why"),
    [
        ("experts", {}, "experts' stacked weights have no first values `loftq`"),
        ("biased", {"r": 64}, "only 32 directions"),
        ("biased", {"target_modules": ["q_proj", "lm_head"]}, "`lm_head` is not rounded to 4 bits"),
        ("tied", {"target_modules": ["q_proj", "lm_head"]}, "`lm_head` is not rounded to 4 bits"),
        ("tied", {"target_modules": ["q_proj", "embed_tokens"]}, "`model.embed_tokens` is not rounded to 4 bits"),
    ],
)
def test_what_rounding_took_is_asked_of_what_it_rounds(runs: Runs, model: str, more: Any, why: str) -> None:
    fields, variables = runs.asked(row(model=model), adapter={**_LOFTQ, **more}, steps=1)
    planned = said(lambda: nbtune.plan(fields, rows=variables))
    assert why in planned
    assert said(nbtune.finetune(fields, rows=variables, runs_dir=runs.folder).wait) == planned


@pytest.mark.parametrize("key", ["new_tokens", "new_special_tokens"])
def test_a_teacher_of_another_vocabulary_is_refused_before_any_work(runs: Runs, key: str) -> None:
    """And what the message names is the user's own words, no folder of a cache."""
    from nbtune.disk import cache_folder

    fields, variables = runs.asked(row(model="biased", method="distill"), adapter={"r": 4, key: ["<|row|>"]})
    refused = _both(runs, fields, variables)
    assert "does not know `<|row|>`" in refused
    assert f"drop `adapter.{key}`" in refused
    assert str(cache_folder()) not in refused


def test_4_bit_weights_want_their_library_in_a_plan_too(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("four_bit", "trial"):
        monkeypatch.setattr(f"nbtune.models.{place}.find_spec", lambda name: None)
    fields, variables = runs.asked(row(adapter="qlora"))
    refused = said(lambda: nbtune.plan(fields, rows=variables))
    assert "bitsandbytes, which is not installed" in refused
    assert said(nbtune.finetune(fields, rows=variables, runs_dir=runs.folder).wait) == refused
    nbtune.plan({**fields, "device": "auto"}, rows=variables, machine="t4")  # which may have it


def test_other_labels_than_the_start_tells_apart_are_refused_before_a_model_is_loaded(runs: Runs) -> None:
    begun = runs.trained(row(method="classification"), steps=1)
    fields, variables = runs.asked(row(method="classification"))
    fields |= {"start_from": str(begun.folder), "labels": ["odd", "even"]}
    assert "tells apart even, odd, in this order, and this run odd, even" in _both(runs, fields, variables)
    del fields["labels"]
    more = [*ROWS["labelled"], {"text": "Neither", "label": "none"}]
    assert "tells apart even, odd, in this order, and this run even, none, odd" in _both(runs, fields, {"rows": more})
    run = nbtune.finetune(fields, rows={"rows": lambda: (yield from more)}, runs_dir=runs.folder, name="more")
    assert "tells apart even, odd" in said(run.wait), "of rows that are still to come the run says so"
    assert run.step == 0


@pytest.mark.parametrize("kind", ["qlora", pytest.param("ia3", marks=pytest.mark.slow)])
def test_turned_weights_of_4_bits_are_merged_as_they_lie(runs: Runs, kind: str, tmp_path: Path) -> None:
    """GPT-2's: rounded they are turned, in its files they are not, and one of them is square."""
    from tests.fuzz.pair_trial import is_taken_home
    from tests.support.tiny_models import save_speaking

    base = save_speaking("gpt2", tmp_path / "base", n_embd=32, n_layer=2, n_head=2)
    fields, variables = runs.asked(row(), weights="nf4", learning_rate=0.05)
    fields |= {"model": str(base), "adapter": {"type": kind} if kind == "ia3" else {"type": kind, "r": 4}}
    run = nbtune.finetune(fields, rows=variables, runs_dir=runs.folder).wait()
    assert is_taken_home(runs, run, row(), random.Random(0)) is None


_LABELLED, _TAGGED = ROWS["labelled"], ROWS["tagged"]


@pytest.mark.parametrize(
    ("method", "rows", "more", "why"),
    [
        ("classification", [{**one, "label": "odd"} for one in _LABELLED], {}, "all rows have the same label (odd)"),
        ("classification", [{**one, "label": i} for i, one in enumerate(_LABELLED * 90)], {}, "too many to be labels"),
        ("classification", _LABELLED, {"labels": ["odd", "seven"]}, "its label 'even' is none of odd, seven"),
        ("token_classification", [{**one, "tags": ["O"] * len(one["tags"])} for one in _TAGGED], {}, "the same label"),
        ("token_classification", _TAGGED, {"labels": ["odd", "seven"]}, "is none of odd, seven"),
        ("classification", _LABELLED, {"eval": {"data": "held"}}, "its label 'neither' is none of even, odd"),
    ],
)
def test_labels_of_rows_that_are_at_hand_are_looked_at_before_any_work(
    runs: Runs, method: str, rows: Any, more: Any, why: str, tmp_path: Path
) -> None:
    fields, variables = runs.asked(row(method=method))
    variables |= {"rows": rows, "held": [{"text": "It was so.", "label": "neither"}]}
    assert why in _both(runs, {**fields, **more}, variables)
    assert why in said(lambda: nbtune.validate({**fields, **more}, rows=variables))
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(f"{json.dumps(one)}\n" for one in rows))
    assert why in said(lambda: nbtune.validate({**fields, **more, "data": str(file)}, rows=variables))


def test_a_plan_counts_the_labels_of_its_rows(runs: Runs) -> None:
    rows = [{**one, "label": i % 5} for i, one in enumerate(_LABELLED)]
    fields, _ = runs.asked(row(method="classification"), steps=1)
    for given in (rows, lambda: (yield from rows)):
        planned = nbtune.plan(fields, rows={"rows": given}).trainable_parameters
        run = nbtune.finetune(fields, rows={"rows": given}, runs_dir=runs.folder).wait()
        assert planned == run.plan.trainable_parameters == trained(run).numel()


@pytest.mark.parametrize(
    "adapter",
    [
        "embedding too",
        pytest.param("full", marks=pytest.mark.slow),
        pytest.param("part", marks=pytest.mark.slow),
        pytest.param("new tokens", marks=pytest.mark.slow),
    ],
)
def test_a_plan_counts_what_is_trained_beside_scores(runs: Runs, adapter: str, tmp_path: Path) -> None:
    """Not the model's own head, which is not asked; and what is saved says all that is trained."""
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification as Sequences

    run = runs.trained(row(model="biased", method="classification", adapter=adapter))
    assert run.plan.trainable_parameters == trained(run).numel()
    assert runs.planned(row(model="biased", method="classification", adapter=adapter)).trainable_parameters == (
        run.plan.trainable_parameters
    )
    if adapter == "embedding too":
        base = Sequences.from_pretrained(model_of("biased"), num_labels=2, dtype=torch.float32)
        ids = {"input_ids": torch.arange(3, 20)[None]}
        opened = PeftModel.from_pretrained(base, run.folder / "adapter").eval()
        whole = Sequences.from_pretrained(run.export.merged(tmp_path / "merged").path, dtype=torch.float32).eval()
        with torch.no_grad():
            torch.testing.assert_close(opened(**ids).logits, whole(**ids).logits, rtol=1e-4, atol=1e-5)


def test_a_head_that_would_be_trained_unasked_is_refused(runs: Runs) -> None:
    fields, variables = runs.asked(row(model="biased", method="reward", adapter="head too"))
    refused = said(lambda: nbtune.plan(fields, rows=variables))
    assert "asks only its head of scores" in refused
    assert said(nbtune.finetune(fields, rows=variables, runs_dir=runs.folder).wait) == refused


@pytest.mark.parametrize("dtype", ["bf16", pytest.param("fp16", marks=pytest.mark.slow)])
def test_factors_of_4_bit_layers_in_16_bits(runs: Runs, dtype: str) -> None:
    run = runs.trained(row(adapter="ia3", weights="nf4", dtype=dtype), steps=1)
    assert run.step == 1


def test_ranks_of_experts_by_name_are_theirs_without_a_word() -> None:
    from nbtune.spec import AdapterSpec

    adapter = AdapterSpec(r=4, rank_pattern={"down_proj": 8})
    how: dict[str, Any] = {"adapter": adapter, "dtype": torch.float32, "device": "cpu", "accelerate": False}
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="The following rank_pattern")
        model = nbtune.models.build(model_of("experts"), **how).model
    ranks = {
        name: p.shape[0] // 4 for name, p in model.named_parameters() if ".experts." in name and ".lora_A." in name
    }
    assert sorted(ranks.values()) == [4, 4, 8, 8], ranks


@pytest.mark.slow
def test_the_generator_brings_every_pair_together() -> None:
    from itertools import combinations

    from tests.fuzz.pairs import possible_pairs, rows

    found = {frozenset(pair) for made in rows(0) for pair in combinations(made.items(), 2)}
    assert found.issuperset(possible_pairs())


SAMPLE = (
    row(model="tied", method="dpo", adapter="patterns", optimizer="muon", noise="neftune", ends="best"),
    row(model="gemma", method="reward", adapter="dora", schedule="cosine, told", average="averaged", packing="packed"),
)


@pytest.mark.parametrize("number", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_sample_of_them(number: int, tmp_path: Path) -> None:
    """`make fuzz` tries more."""
    verdict = trial_of(SAMPLE[number], tmp_path)
    assert verdict.outcome == "accepted", verdict


@pytest.mark.parametrize("model", ["tied", pytest.param("gemma", marks=pytest.mark.slow)])
@pytest.mark.parametrize("method", ["classification", "prm"])
def test_single_tokens_are_trained_beside_a_head_of_scores_where_the_models_own_is_its_embedding(
    runs: Runs, model: str, method: str
) -> None:
    levels = row(model=model, method=method, adapter="tokens")
    delta = "embed_tokens.token_adapter.trainable_tokens_delta.default"
    one, two = (runs.trained(levels, steps=count) for count in (1, 2))
    first, second = (saved(run)[f"base_model.model.model.{delta}"] for run in (one, two))
    assert not torch.equal(first, second)
    on = runs.trained({**levels, "start": "a folder"}, steps=1)
    assert on.state == "finished"
