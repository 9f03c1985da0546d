"""What was learnt by experts leaves the house: merged into stacks and into single matrices, as stock computes it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import nbtune
from nbtune import events
from nbtune.export import ExportSource
from nbtune.export.merge import MergedModel, write_merged
from nbtune.export.peft_adapter import AdapterFile
from nbtune.export.reference_model import reference_model
from nbtune.models.adapters import save_adapter
from nbtune.models.stored_names import Piece
from nbtune.spec import AdapterSpec
from nbtune.spec.placement import Placement
from tests.models.experts.test_stacks import MIXTURES
from tests.support.model_classes import save
from tests.support.run_alike import Ours
from tests.support.tiny_models import save_mixture

SAMPLE = ("mixtral", "granitemoe", "gpt_oss")  # single matrices, renamed stacks, stacks that lie turned
IDS = torch.randint(3, 90, (2, 9), generator=torch.Generator().manual_seed(0))


def trained(name: str, folder: Path, adapter: AdapterSpec) -> ExportSource:
    """A base and an adapter on it whose numbers are no zeros."""
    base = save_with_words(name, folder / "base")
    return ExportSource(base, save_adapter(Ours(base, adapter, accelerate=False).model, folder / "adapter"), name="one")


def save_with_words(name: str, folder: Path) -> Path:
    from nbtune.models import load_tokenizer

    load_tokenizer("nbtune/tiny").save_pretrained(save(name, folder))
    return folder


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS, use_cache=False).logits


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in SAMPLE else pytest.mark.slow) for n in MIXTURES])
def test_a_merged_mixture_computes_what_base_and_adapter_do(name: str, tmp_path: Path) -> None:
    source = trained(name, tmp_path, AdapterSpec(r=4, alpha=6, use_rslora=name == "gpt_oss"))
    write_merged(source, tmp_path / "merged", "float32")
    merged = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32))
    with reference_model(source) as model:
        true = logits(model)
        with model.disable_adapter():
            assert float((logits(model) - true).abs().max()) > 0.1
    assert float((merged - true).abs().max()) <= 1e-5 * float(true.max() - true.min())


def test_experts_are_merged_as_they_were_trained_where_other_layers_have_4_bits(tmp_path: Path) -> None:
    """What chooses among experts is not rounded in training, nor were stacks before format 3: merging must not, though
    files hold single matrices."""
    source = trained("mixtral", tmp_path, AdapterSpec(r=4, target_modules=("q_proj",)))
    source = ExportSource(source.base, source.adapter, name="one", weights=Placement(format="nf4", experts=False))
    attention = {f"{letter}_proj.weight" for letter in "qkvo"}
    assert others_than_before(source) == attention
    now = others_than_before(replace(source, weights=Placement(format="nf4")))
    assert {name.rpartition(".experts.")[2].partition(".")[2] or name for name in now - attention} == {
        "w1.weight", "w2.weight", "w3.weight",
    }  # fmt: skip


def others_than_before(source: ExportSource) -> set[str]:
    """Last names of what a merge changes."""
    merged = MergedModel(source)
    same = [name for name in merged.names if torch.equal(merged.get(name), merged.base.get(name).float())]
    return {name.rpartition("self_attn.")[2] for name in merged.names if name not in same}


def test_factors_of_a_stack_are_read_once_however_many_experts_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    merged = MergedModel(trained("mixtral", tmp_path, AdapterSpec(r=2)))
    assert merged.adapter is not None
    read: list[str] = []
    true = merged.adapter.weights.get
    monkeypatch.setattr(merged.adapter.weights, "get", lambda key: read.append(key) or true(key))
    for name in merged.names:
        merged.get(name)
    assert sorted(read) == sorted(set(read))
    assert len(read) > 8


def test_norms_of_a_joined_weight_are_parted_as_its_rows_are(tmp_path: Path) -> None:
    """DoRA on gates and ups in one matrix, which the base's files hold as two."""
    base = save_with_words("llama", tmp_path / "base")
    adapter = AdapterSpec(type="dora", r=2, target_modules=("up_proj",))
    folder = save_adapter(Ours(base, adapter, accelerate=False).model, tmp_path / "adapter")
    file = AdapterFile(folder)
    name, target = next(iter(file.targets.items()))
    numbers = MergedModel(ExportSource(base, None, name="one")).get(name)
    half = len(numbers) // 2
    whole = file.add(name, numbers, 0, len(numbers))
    for part in (0, 1):
        file.targets[name] = replace(target, piece=Piece(name, part=part, parts=2))
        rows = slice(half * part, half * (part + 1))
        assert torch.allclose(file.add(name, numbers[rows], 0, half), whole[rows])


def test_a_run_on_a_mixture_says_that_it_merges_and_does(tmp_path: Path) -> None:
    base = save_mixture(tmp_path / "base")
    rows = [{"prompt": f"What is {n}?", "completion": f"It is {n}."} for n in range(4)]
    run = nbtune.finetune(
        model=str(base), data=rows, steps=2, batch_size=2, adapter={"r": 2}, learning_rate=1e-2,
        runs_dir=tmp_path / "runs",
    ).wait()  # fmt: skip
    said = dict(next(event for event in run.events() if isinstance(event, events.Abilities)).said)
    assert said["merging"].startswith("can be merged")
    assert "# experts, too: of transformers 5 with its peft" in run.model_card("ada/demo")
    merged = run.export.merged(tmp_path / "merged")
    stock = AutoModelForCausalLM.from_pretrained(merged.path, dtype=torch.float32)
    with reference_model(run.export.source()) as true:
        expected = logits(true)
    assert float((logits(stock) - expected).abs().max()) <= 1e-5 * float(expected.max() - expected.min())
