"""Experts in 4 and 8 bits: rounded as they are loaded, trained, merged into what was trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

import nbtune
from nbtune.export.merge import MergedModel
from nbtune.export.reference_model import reference_model
from nbtune.models import factory, piecewise_loading
from nbtune.models.accelerate import apply
from nbtune.models.adapters import save_adapter
from nbtune.models.experts.rounded import NF4, lent, round_stack, rounded_rows, stack_of
from nbtune.models.experts.stacks import round_stacks, stacks_of
from nbtune.models.loading import load_model
from nbtune.spec import AdapterSpec
from nbtune.spec.placement import Placement
from tests.export.test_experts import logits
from tests.models.experts.test_block import SAMPLE, TAKEN, adapted, off, said
from tests.support.every import every
from tests.support.model_classes import make, save
from tests.support.tiny_models import save_speaking

FORMATS = ("nf4", "fp8")
some = [pytest.param(n, marks=() if n in SAMPLE else pytest.mark.slow) for n in TAKEN]


def test_the_codes_are_bitsandbytes_own() -> None:
    from bitsandbytes.functional import get_4bit_type

    assert torch.equal(get_4bit_type("nf4", device="cpu"), torch.tensor(NF4))


@given(st.sampled_from(FORMATS), st.integers(1, 5), st.sampled_from((8, 24, 48, 64, 192)), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_a_row_is_rounded_by_itself_to_the_nearest_there_is(form: str, rows: int, width: int, seed: int) -> None:
    matrix = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)) * 10 ** float(seed % 5 - 3)
    matrix[0, :8] = 0.0
    module: Any = torch.nn.Module()
    module.weight = torch.nn.Parameter(torch.stack((matrix, matrix.flip(0))))
    round_stack(module, "weight", form)
    ours = rounded_rows(matrix, form)
    with lent(module):
        assert torch.equal(module.weight, torch.stack((ours, ours.flip(0))))
    assert module.weight.isnan().all()
    assert torch.equal(torch.cat([rounded_rows(row[None], form) for row in matrix]), ours)
    assert (ours[0, :8] == 0).all()
    assert (matrix - ours).norm() <= (0.14 if form == "nf4" else 0.04) * matrix.norm()
    stack = stack_of(module, "weight")
    assert stack is not None
    most = 0.5 + 2 / 8 if form == "nf4" else 1 + 4 / 8  # bytes a number, in the shortest blocks and rows
    assert stack.codes.nbytes + stack.scales.nbytes <= 2 * matrix.numel() * most


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", some)
def test_rounded_experts_by_groups_compute_what_stock_does_of_them(name: str, form: str) -> None:
    model = adapted(name)
    round_stacks(model, form)
    assert every(stack_of(module, at) is not None for _, module, at, _ in stacks_of(model))
    stock = said(model)
    patch = apply(model)
    experts = {at: what for at, what in patch.report.taken.items() if at.startswith("experts")}
    assert experts, patch.report.left
    assert every(f"in {4 if form == 'nf4' else 8} bits" in what for what in experts.values())
    for policy in ("keep", "selective", "recompute"):
        patch.set_policy(policy)  # type: ignore[arg-type]
        assert off(said(model), stock) <= 1e-5, policy
        assert name != "mixtral" or every(experts.again == (policy != "keep") for experts in patch.experts)
    patch.remove()
    assert every(torch.equal(a, b) for a, b in zip(said(model), stock, strict=True))


@pytest.mark.parametrize("name", some)
def test_experts_are_read_piece_by_piece_as_they_are_rounded_afterwards(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, how = str(save(name, tmp_path)), {"dtype": torch.float32, "device": "cpu"}
    nf4 = Placement(format="nf4")
    read: list[Any] = []
    load = piecewise_loading.load_by_pieces
    monkeypatch.setattr(piecewise_loading, "load_by_pieces", lambda *a: read.append(load(*a)) or read[-1])
    first = load_model(folder, weights=nf4, **how)
    in_32_bits = getattr(first, "_keep_in_fp32_modules", None) or getattr(first, "_keep_in_fp32_modules_strict", None)
    assert (read[0] is first) == (not in_32_bits)
    monkeypatch.setattr(piecewise_loading, "load_by_pieces", lambda *a: None)
    second = load_model(folder, weights=nf4, **how)
    for (at, module, key, _), (_, other, _, _) in zip(stacks_of(first), stacks_of(second), strict=True):
        ours, true = stack_of(module, key), stack_of(other, key)
        assert ours is not None
        assert true is not None
        assert torch.equal(ours(), true()), at
    assert torch.allclose(logits(first), logits(second), atol=1e-5)
    old = load_model(folder, weights=nf4.model_copy(update={"experts": False}), **how)  # of an older version's run
    assert every(stack_of(module, key) is None for _, module, key, _ in stacks_of(old))


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", some)
def test_merged_is_what_was_trained(name: str, form: str, tmp_path: Path) -> None:
    from nbtune.export import ExportSource

    base = str(save(name, tmp_path / "base"))
    adapter = AdapterSpec(type="qlora" if form == "nf4" else "lora", r=4, target_modules=("gate_up_proj", "down_proj"))
    built = factory.build(
        base, adapter=adapter, dtype=torch.float32, device="cpu", tokenizer=False, accelerate=False,
        weights=Placement(format="nf4") if form == "nf4" else None,
    )  # fmt: skip
    if form == "fp8":
        round_stacks(built.model, form)
    with torch.no_grad():
        for at, p in built.model.named_parameters():
            if "lora_B" in at:
                p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(5)) * 0.2)
    saved = save_adapter(built.model, tmp_path / "adapter")
    source = ExportSource(Path(base), saved, name="one", weights=Placement(format=form))  # type: ignore[arg-type]
    with reference_model(source) as model:
        expected = logits(model)
    if form == "nf4":
        assert torch.allclose(logits(built.model), expected, atol=1e-4 * float(expected.abs().max()))
    nbtune.export.merge.write_merged(source, tmp_path / "merged", "float32")
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    assert float((logits(stock) - expected).abs().max()) <= 1e-5 * float(expected.max() - expected.min())
    before = MergedModel(ExportSource(Path(base), None, name="one"))
    merged = MergedModel(ExportSource(Path(base), None, name="one", weights=source.weights))
    experts = [n for n in merged.names if ".experts." in n or "moe.input" in n]
    assert any(not torch.equal(merged.get(n), before.get(n)) for n in experts)


def test_a_run_on_a_mixture_with_4_bits_plans_trains_and_merges(tmp_path: Path) -> None:
    options = {
        "hidden_size": 32, "intermediate_size": 48, "moe_intermediate_size": 24, "num_attention_heads": 4,
        "num_key_value_heads": 2, "num_hidden_layers": 2, "num_experts": 4, "num_experts_per_tok": 2, "head_dim": 8,
    }  # fmt: skip
    base = save_speaking("qwen3_moe", tmp_path / "base", **options)
    rows = [{"prompt": f"What is {n}?", "completion": f"It is {n}."} for n in range(4)]
    run = nbtune.finetune(
        model=str(base), data=rows, steps=3, batch_size=2, adapter={"type": "qlora", "r": 2}, learning_rate=1e-2,
        runs_dir=tmp_path / "runs",
    ).wait()  # fmt: skip
    assert run.state == "finished"
    merged = run.export.merged(tmp_path / "merged")
    stock = AutoModelForCausalLM.from_pretrained(merged.path, dtype=torch.float32)
    with reference_model(run.export.source()) as true:
        expected = logits(true)
    assert float((logits(stock) - expected).abs().max()) <= 1e-5 * float(expected.max() - expected.min())


def test_stacks_whose_rows_cannot_be_decoded_stay_as_they_are() -> None:
    model = make("mixtral")
    for _, module, key, p in list(stacks_of(model)):
        if key == "down_proj":
            module.down_proj = torch.nn.Parameter(p[..., :44].clone())
        else:
            module.gate_up_proj = torch.nn.Parameter(torch.cat((p[:, :44], p[:, 48:92]), 1))
    model.requires_grad_(False)
    round_stacks(model, "nf4")
    left = {key for _, module, key, _ in stacks_of(model) if stack_of(module, key) is None}
    assert left == {"down_proj"}
    assert any(at.startswith("experts") for at in apply(model).report.taken)
