"""Facts, loading, adapters on disk, the step: what a run has before its first batch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from nbtune.errors import HubError, NbtuneError, PlanError, SpecError
from nbtune.models import build, load_tokenizer, load_trainable, model_facts, resolve, save_adapter
from nbtune.models.cuda_graph_step import TrainStep
from nbtune.spec import AdapterSpec, Placement
from tests.models.test_accelerate import make
from tests.support.every import every

LORA = AdapterSpec(r=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model on disk, of other sizes than any default."""
    place = tmp_path_factory.mktemp("model") / "small"
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=6, num_key_value_heads=2,
        vocab_size=160, max_position_embeddings=99, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(place)
    return place


def built(model: str | Path, adapter: AdapterSpec = LORA, **options: Any) -> Any:
    choices = {"dtype": torch.float32, "device": "cpu", "seed": 1, "tokenizer": False, **options}
    return build(str(model), adapter=adapter, **choices)


def test_facts_are_those_of_the_loaded_model(folder: Path) -> None:
    facts = model_facts(str(folder))
    model = LlamaForCausalLM.from_pretrained(folder)
    assert facts.name == "small"
    assert facts.parameters == sum(p.numel() for p in model.parameters())
    assert facts.weights_bytes == 4 * facts.parameters
    assert (facts.architecture, facts.num_layers, facts.num_kv_heads, facts.head_dim) == ("LlamaForCausalLM", 3, 2, 8)
    assert (facts.tied, facts.max_position, facts.dtype) == (True, 99, "float32")
    linears = sum(m.weight.numel() for n, m in model.named_modules() if n.endswith("_proj"))
    assert facts.block_parameters * facts.num_layers == linears


def test_facts_know_the_size_of_an_adapter(folder: Path) -> None:
    b = built(folder)
    trained = sum(p.numel() for p in b.model.parameters() if p.requires_grad)
    assert b.facts.lora_parameters(4) == trained


def test_the_embedded_model_needs_no_hub() -> None:
    assert (resolve("nbtune/tiny") / "config.json").is_file()
    assert load_tokenizer("nbtune/tiny").chat_template


@pytest.mark.parametrize("model", ["./nowhere", "/no/such/folder", "a/b/c"])
def test_a_folder_that_is_not_there(model: str) -> None:
    with pytest.raises(SpecError, match="no model folder"):
        resolve(model)


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"config\.json"):
        resolve(str(tmp_path))


def test_a_model_that_only_the_hub_could_have() -> None:
    with pytest.raises(HubError) as caught:
        resolve("somebody/something")
    assert "nbtune/tiny" in caught.value.fix


def test_weights_that_are_pickles_are_not_opened(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(SpecError, match="safetensors"):
        built(tmp_path)


def test_targets_that_no_layer_has(folder: Path) -> None:
    with pytest.raises(NbtuneError) as caught:
        built(folder, AdapterSpec(r=4, target_modules=("no_such_proj",)))
    assert "q_proj" in caught.value.fix


def test_the_seed_decides_the_adapter_and_leaves_the_users_numbers_alone(folder: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = built(folder, seed=1).model
    assert torch.equal(torch.rand(3), expected)
    second, other = built(folder, seed=1).model, built(folder, seed=2).model
    a = {n: p for n, p in first.named_parameters() if "lora_A" in n}
    assert every(torch.equal(p, dict(second.named_parameters())[n]) for n, p in a.items())
    assert not any(torch.equal(p, dict(other.named_parameters())[n]) for n, p in a.items())


@pytest.mark.parametrize("kind", ["lora", "dora", "full"])
def test_others_load_what_is_saved(kind: Any, folder: Path, tmp_path: Path) -> None:
    adapter = AdapterSpec(type=kind, r=4)
    b = built(folder, adapter)
    with torch.no_grad():
        for p in b.model.parameters():
            if p.requires_grad:
                p.add_(torch.randn_like(p) * 0.1)
    save_adapter(b.model, tmp_path / "a")
    again = (
        AutoModelForCausalLM.from_pretrained(tmp_path / "a")
        if kind == "full"
        else PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), tmp_path / "a")
    )
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(input_ids=ids).logits, b.model.eval()(input_ids=ids).logits)


def test_no_path_of_this_machine_gets_into_an_adapter(folder: Path, tmp_path: Path) -> None:
    save_adapter(built(folder).model, tmp_path)
    text = (tmp_path / "adapter_config.json").read_text()
    assert str(folder.parent) not in text
    assert json.loads(text)["base_model_name_or_path"] == "small"


def test_recorded_and_plain_steps_agree(folder: Path) -> None:
    ours, plain = built(folder), built(folder)
    step = TrainStep(ours.model.train(), ours.patch, max_grad_norm=0.5)
    parameters = [p for p in plain.model.train().parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.01)
    generator = torch.Generator().manual_seed(3)
    for _ in range(4):
        micro = [torch.randint(0, 160, (2, 15), generator=generator) for _ in range(2)]
        for i, ids in enumerate(micro):
            inputs = {"input_ids": ids, "labels": ids, "num_items_in_batch": 56, "use_cache": False}
            loss = plain.model(**inputs).loss
            loss.backward()
            assert step.accumulate(inputs, first=i == 0).item() == pytest.approx(loss.item(), rel=1e-5)
        norm = torch.nn.utils.clip_grad_norm_(parameters, 0.5)
        optimizer.step()
        optimizer.zero_grad()
        assert step.update(1e-2).item() == pytest.approx(norm.item(), rel=1e-4)


def test_after_a_train_step_gradients_go_through_autograd_again(folder: Path) -> None:
    model = load_trainable(str(folder), r=4, device="cpu")
    ids = torch.arange(3, 20)[None]
    model.train_step(input_ids=ids, labels=ids, lr=1e-3)
    model.zero_grad(set_to_none=True)
    model(input_ids=ids, labels=ids).loss.backward()
    b = [p.grad for n, p in model.named_parameters() if "lora_B" in n]
    assert every(g is not None and g.abs().sum() > 0 for g in b)


def test_a_train_step_learns(folder: Path) -> None:
    model = load_trainable(str(folder), r=8, device="cpu", micro_batch_size=2, sequence_len=16)
    ids = torch.randint(0, 160, (2, 16), generator=torch.Generator().manual_seed(1))
    losses = [model.train_step(input_ids=ids, labels=ids, lr=2e-2).item() for _ in range(25)]
    assert losses[-1] < 0.9 * losses[0]


def test_unknown_choices_are_errors_with_the_known_ones(folder: Path) -> None:
    with pytest.raises(SpecError) as caught:
        load_trainable(str(folder), activations="some")
    assert "recompute" in caught.value.fix


def test_four_bit_layers_equal_stock(folder: Path) -> None:
    pytest.importorskip("bitsandbytes")
    ids = torch.randint(0, 160, (2, 16), generator=torch.Generator().manual_seed(1))
    found = []
    for accelerate in (False, True):
        b = built(folder, AdapterSpec(type="qlora", r=4), accelerate=accelerate)
        generator = torch.Generator().manual_seed(4)
        with torch.no_grad():
            for n, p in b.model.named_parameters():
                if "lora_B" in n:
                    p.copy_(torch.randn(p.shape, generator=generator) * 0.1)
        loss = b.model.train()(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        found.append((loss.item(), {n: p.grad for n, p in b.model.named_parameters() if p.grad is not None}))
    assert "layers.0" in b.patch.report.taken
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-5)
    for name, truth in found[0][1].items():
        assert (found[1][1][name] - truth).norm() <= 1e-4 * truth.norm(), name


@pytest.mark.parametrize("resident", [0, 1, None])
def test_where_weights_wait_changes_no_loss(resident: int | None) -> None:
    ids = torch.arange(24).view(2, 12)
    kind: Any = {"adapter": AdapterSpec(r=4), "dtype": torch.float32, "device": "cpu", "tokenizer": False}
    losses = []
    for weights in (None, Placement(format="32bit", resident=resident)):
        made = build("nbtune/tiny", weights=weights, **kind)
        assert made.patch is not None
        assert (made.patch.traffic is not None) == (weights is not None and weights.streams)
        losses.append(made.model(input_ids=ids, labels=ids).loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    with pytest.raises(PlanError, match="nbtune's own blocks"):
        build("nbtune/tiny", weights=Placement(resident=0), accelerate=False, **kind)


def test_eight_bit_weights_are_refused_where_a_block_is_not_ours(tmp_path: Path) -> None:
    make("llama", None).save_pretrained(tmp_path)
    with pytest.raises(PlanError, match="8-bit"):
        build(
            str(tmp_path),
            adapter=AdapterSpec(type="dora", r=4),
            dtype=torch.float32,
            device="cpu",
            weights=Placement(format="fp8"),
            tokenizer=False,
        )


@pytest.mark.parametrize("choice", [{"adapter": AdapterSpec(type="dora", r=4)}, {"accelerate": False}], ids=str)
def test_blocks_that_are_left_alone_recompute_too(choice: dict[str, Any], folder: Path) -> None:
    ids = torch.randint(3, 160, (2, 24), generator=torch.Generator().manual_seed(2))
    found, kept = [], []
    for policy in ("keep", "recompute"):
        b = built(folder, policy=policy, **choice)
        b.model.train()
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: s.append(t.numel()) or t, lambda t: t):
            loss = b.model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in b.model.parameters() if p.grad is not None)])
        kept.append(sum(sizes))
    assert every(torch.allclose(x, y, atol=1e-6) for x, y in zip(*found, strict=True))
    assert kept[1] < 0.5 * kept[0]
    assert "computed again" in b.report[-1]
