"""Accelerated and stock models of ten families: the same losses, gradients and words, or left alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from nbtune_kernels import dropout_mask
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from nbtune.models.accelerate import Patch, apply, layer_autograd
from nbtune.models.adapters import add_adapter
from nbtune.models.memory_estimate import MEMORY_POLICIES
from nbtune.spec import AdapterSpec

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 256,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# family: (config, whether its decoder layers are taken)
FAMILIES: dict[str, tuple[dict[str, Any], bool]] = {
    "llama": ({}, True),
    "mistral": ({"sliding_window": None, "head_dim": 16}, True),
    "qwen2": ({}, True),
    "qwen3": ({"head_dim": 32}, True),
    "gemma": ({"head_dim": 16}, True),
    "gemma2": ({"head_dim": 16, "query_pre_attn_scalar": 16}, True),
    "phi3": ({}, True),
    "olmo2": ({}, True),
    "granite": ({"residual_multiplier": 0.3, "logits_scaling": 4.0, "attention_multiplier": 0.2}, True),
    "gpt_neox": ({}, True),
}
LORA = AdapterSpec(r=4, alpha=6)
ours = layer_autograd.attention_forward


def make(family: str, adapter: AdapterSpec | None = LORA, dtype: torch.dtype = torch.float32) -> Any:
    """A model of random weights, the same at each call; its LoRA is not zero."""
    extra, _ = FAMILIES[family]
    sizes = {k: v for k, v in SIZES.items() if family != "gpt_neox" or k != "num_key_value_heads"}
    config = AutoConfig.for_model(family, **{**sizes, **extra})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).to(dtype)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():  # norms' weights and biases are ones and zeros otherwise
        for p in model.parameters():
            if p.ndim == 1:
                p.add_(torch.randn(p.shape, generator=generator) * 0.1)
    if adapter is None:
        return model
    model = add_adapter(model, adapter, seed=2)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.copy_(torch.randn(p.shape, generator=generator) * 0.1)
    return model.train()


def batch(rows: int = 2, length: int = 13, seed: int = 3) -> dict[str, Tensor]:
    ids = torch.randint(3, 256, (rows, length), generator=torch.Generator().manual_seed(seed))
    labels = ids.clone()
    labels[0, : length // 2] = -100
    return {"input_ids": ids, "labels": labels}


def loss_and_gradients(model: nn.Module, *batches: dict[str, Any]) -> tuple[float, dict[str, Tensor]]:
    total = 0.0
    for b in batches:
        loss = model(**b, use_cache=False).loss
        loss.backward()
        total += loss.item()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return total, gradients


def assert_equal(ours: tuple[float, dict[str, Tensor]], stock: tuple[float, dict[str, Tensor]], limit: float) -> None:
    assert ours[0] == pytest.approx(stock[0], rel=limit)
    assert ours[1].keys() == stock[1].keys()
    for name, truth in stock[1].items():
        error = (ours[1][name] - truth).norm() / truth.norm().clamp(min=1e-12)
        assert error <= limit, f"{name}: off by {float(error):.1e}"


@pytest.mark.parametrize("family", FAMILIES)
def test_taken_or_left_alone_and_never_wrong(family: str) -> None:
    model = make(family)
    stock = loss_and_gradients(model, batch())
    patch = apply(model)
    taken = [n for n in patch.report.taken if n.startswith("layers.")]
    assert len(taken) == (2 if FAMILIES[family][1] else 0), patch.report
    assert len(taken) + sum(n.startswith(("layers", "model")) for n in patch.report.left) >= 1
    assert_equal(loss_and_gradients(model, batch()), stock, 2e-5)
    patch.remove()
    again = loss_and_gradients(model, batch())
    assert again[0] == stock[0]


@pytest.mark.parametrize("policy", MEMORY_POLICIES)
@pytest.mark.parametrize("adapter", [LORA, AdapterSpec(type="full")], ids=["lora", "full"])
def test_every_policy_gives_the_same_gradients(policy: Any, adapter: AdapterSpec) -> None:
    model = make("qwen3", adapter)
    stock = loss_and_gradients(model, batch())
    apply(model, policy)
    assert_equal(loss_and_gradients(model, batch()), stock, 2e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_full_fine_tuning(family: str) -> None:
    model = make(family, AdapterSpec(type="full"))
    stock = loss_and_gradients(model, batch())
    patch = apply(model)
    assert sum(n.startswith("layers.") for n in patch.report.taken) == (2 if FAMILIES[family][1] else 0)
    assert_equal(loss_and_gradients(model, batch()), stock, 2e-5)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma", "phi3", "granite"])
def test_accumulation_counts_trained_tokens_of_all_micro_batches(family: str) -> None:
    model = make(family)
    parts = [batch(seed=5), batch(length=9, seed=6)]
    n = sum(int((b["labels"][:, 1:] != -100).sum()) for b in parts)
    parts = [{**b, "num_items_in_batch": n} for b in parts]
    stock = loss_and_gradients(model, *parts)
    apply(model)
    assert_equal(loss_and_gradients(model, *parts), stock, 2e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_documents_packed_by_their_positions_do_not_see_each_other(family: str) -> None:
    model = make(family)
    documents = [batch(rows=1, length=n, seed=n) for n in (5, 9, 7)]
    packed = {k: torch.cat([d[k] for d in documents], 1) for k in ("input_ids", "labels")}
    packed["position_ids"] = torch.cat([torch.arange(n) for n in (5, 9, 7)])[None]
    for start in (5, 14):
        packed["labels"][0, start] = -100
    n = int((packed["labels"][:, 1:] != -100).sum())
    apart = loss_and_gradients(model, *[{**d, "num_items_in_batch": n} for d in documents])
    apply(model)
    assert_equal(loss_and_gradients(model, packed), apart, 5e-5)
    cu = torch.tensor([0, 5, 14, 21], dtype=torch.int32)
    if FAMILIES[family][1]:
        told = {**packed, "cu_seq_lens_q": cu, "cu_seq_lens_k": cu, "max_length_q": 9, "max_length_k": 9}
        assert_equal(loss_and_gradients(model, told), apart, 5e-5)


@pytest.mark.parametrize("side", ["right", "left"])
def test_padded_rows_equal_stock(side: str) -> None:
    model = make("llama")
    b = batch()
    mask = torch.ones_like(b["input_ids"])
    mask[1, -4:] = 0
    if side == "left":
        mask = mask.flip(1)
    b = {**b, "attention_mask": mask, "labels": b["labels"].masked_fill(mask == 0, -100)}
    stock = loss_and_gradients(model, b)
    apply(model)
    assert_equal(loss_and_gradients(model, b), stock, 2e-5)


class Given(nn.Module):
    """Dropout by a mask that was drawn elsewhere."""

    def __init__(self, mask: Tensor, p: float) -> None:
        super().__init__()
        self.mask, self.p = mask, p

    def forward(self, x: Tensor) -> Tensor:
        return x * self.mask.view(x.shape) / (1 - self.p)


TAKEN = [name for name, (_, taken) in FAMILIES.items() if taken]


@pytest.mark.parametrize(
    ("family", "policy"),
    [
        pytest.param(family, policy, marks=[] if (i + k) % 4 == 0 else pytest.mark.slow)
        for i, family in enumerate(TAKEN)
        for k, policy in enumerate(MEMORY_POLICIES)
    ],
)
def test_lora_with_dropout_equals_stock_with_the_same_masks(family: str, policy: Any) -> None:
    p, model, b = 0.3, make(family, AdapterSpec(r=4, dropout=0.3)), batch()
    patch = apply(model, policy)
    assert not any(n.startswith("layers") for n in patch.report.left), patch.report
    groups = [g for layer in patch.layers for g in layer.groups()]
    torch.manual_seed(7)
    ours = loss_and_gradients(model, b)
    torch.manual_seed(7)
    seed, shape = torch.randint(2**62, (1,)), b["input_ids"].numel()
    drawn = [
        (m.module.lora_dropout, m.adapter, Given(dropout_mask((shape, g.inputs), p, seed, g.stream + i), p))
        for g in groups
        for i, m in enumerate(g.members)
    ]
    assert len({g.stream + i for g in groups for i in range(len(g.members))}) == len(drawn)
    patch.remove()
    for place, name, given in drawn:
        assert 0.6 < given.mask.float().mean() < 0.8
        place[name] = given
    assert_equal(ours, loss_and_gradients(model, b), 2e-5)


def test_every_forward_draws_other_masks_and_evaluation_none() -> None:
    model = make("llama", AdapterSpec(r=4, dropout=0.5))
    stock = make("llama", AdapterSpec(r=4, dropout=0.5)).eval()
    apply(model)
    assert loss_and_gradients(model, batch())[0] != loss_and_gradients(model, batch())[0]
    model.eval()
    with torch.no_grad():
        assert model(**batch(), loss_only=True, use_cache=False).loss.item() == pytest.approx(
            stock(**batch(), use_cache=False).loss.item(), rel=1e-5
        )


@pytest.mark.parametrize("family", ["llama", "qwen3", "granite"])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_a_reference_without_the_adapter_is_computed_by_the_blocks_too(
    family: str, dropout: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, b = make(family, AdapterSpec(r=4, dropout=dropout)), batch()
    with model.disable_adapter(), torch.no_grad():
        stock = model(**b, use_cache=False).loss.item()
    patch = apply(model)
    trained = loss_and_gradients(model.eval(), b)
    used: list[int] = []
    monkeypatch.setattr(layer_autograd, "attention_forward", lambda *a: used.append(1) or ours(*a))
    with model.train().disable_adapter(), torch.no_grad():
        assert model(**b, loss_only=True, use_cache=False).loss.item() == pytest.approx(stock, rel=1e-5)
    assert len(used) == len(patch.layers) == 2
    assert_equal(loss_and_gradients(model.eval(), b), trained, 1e-6)  # and it is there again
    assert trained[0] != pytest.approx(stock, rel=1e-4)


def test_dora_is_left_alone() -> None:
    model = make("llama", AdapterSpec(type="dora", r=4))
    stock = loss_and_gradients(model, batch())
    patch = apply(model)
    assert "DoRA" in patch.report.left["layers.0"]
    assert_equal(loss_and_gradients(model, batch()), stock, 1e-5)


def test_only_some_targets() -> None:
    model = make("llama", AdapterSpec(r=4, target_modules=("q_proj", "v_proj")))
    stock = loss_and_gradients(model, batch())
    patch = apply(model)
    assert "layers.0" in patch.report.taken
    assert_equal(loss_and_gradients(model, batch()), stock, 2e-5)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen3", "gemma", "phi3", "granite"])
def test_generation_with_a_cache_equals_stock(family: str) -> None:
    model = make(family).eval()
    ids = batch(rows=1)["input_ids"]

    def words() -> Tensor:
        return model.generate(input_ids=ids, max_new_tokens=8, do_sample=False, use_cache=True)

    stock = words()
    apply(model)
    assert torch.equal(words(), stock)
    loss_and_gradients(model.train(), batch())
    assert torch.equal(model.eval() and words(), stock)


def test_generation_makes_logits_of_the_next_word_only() -> None:
    """transformers reads the signature of `forward` for what it may ask; its own Phi-3 relies on it."""
    lengths = []
    for fast in (False, True):
        model = make("llama").eval()
        if fast:
            apply(model)
        head = model.get_output_embeddings()
        with head.register_forward_hook(lambda module, inputs, output: lengths.append(output.shape[1])):
            model.generate(input_ids=batch(rows=1)["input_ids"], max_new_tokens=2, do_sample=False)
    assert lengths == [1] * 4


def test_logits_are_there_when_no_loss_is_asked_for() -> None:
    model = make("llama")
    b = batch()
    stock = model(input_ids=b["input_ids"]).logits
    apply(model)
    assert torch.allclose(model(input_ids=b["input_ids"]).logits, stock, atol=1e-5)
    model.eval()
    out = model(**b)
    assert out.logits is not None
    assert model(**b, loss_only=True).loss.item() == pytest.approx(out.loss.item(), rel=1e-6)


def test_a_switched_off_adapter_is_honoured() -> None:
    model = make("llama")
    with model.disable_adapter(), torch.no_grad():
        stock = model(**batch(), use_cache=False).loss.item()
    apply(model)
    with model.disable_adapter(), torch.no_grad():
        assert model(**batch(), use_cache=False).loss.item() == pytest.approx(stock, rel=1e-6)


@pytest.mark.parametrize("grad", [False, True])
def test_an_adapter_of_which_a_part_is_switched_off_is_honoured(grad: bool) -> None:
    model = make("llama")
    whole = model(**batch(), use_cache=False).loss.item()
    off = [at for name, at in model.named_modules() if name.endswith("layers.0.self_attn.q_proj")]
    assert len(off) == 1
    off[0].enable_adapters(False)
    stock = model(**batch(), use_cache=False).loss.item()
    off[0].enable_adapters(True)
    apply(model)
    off[0].enable_adapters(False)
    with torch.set_grad_enabled(grad):
        assert model(**batch(), use_cache=False).loss.item() == pytest.approx(stock, rel=2e-6)
    assert stock != pytest.approx(whole, rel=2e-5)


def test_a_second_backward_is_an_error_and_no_wrong_number() -> None:
    model = make("llama")
    apply(model)
    loss = model(**batch(), use_cache=False).loss
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError):
        loss.backward()


@pytest.mark.parametrize("spoil", ["scale", "activation"])
def test_a_layer_that_is_not_what_it_looks_like_is_left_alone(spoil: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("llama")
    layer = model.base_model.model.model.layers[1]
    stock: Callable[..., Any] = layer.forward
    if spoil == "scale":
        layer.forward = lambda *a, **k: stock(*a, **k) * 1.01
    else:
        del layer.mlp.act_fn
        layer.mlp.act_fn = lambda x: x * torch.sigmoid(1.1 * x)
    before = loss_and_gradients(model, batch())
    patch = apply(model)
    assert "layers.0" in patch.report.taken
    assert "layers.1" in patch.report.left
    assert_equal(loss_and_gradients(model, batch()), before, 2e-5)


def test_the_report_counts_equal_reasons_together() -> None:
    patch: Patch = apply(make("llama"))
    lines = patch.report.lines()
    assert len(lines) == 3
    assert lines[0].startswith("accelerated: 2 blocks (layers.0 … layers.1)")


def test_bf16_stays_as_close_to_fp32_as_stock_does() -> None:
    truth = loss_and_gradients(make("llama"), batch())[1]
    model = make("llama", dtype=torch.bfloat16)
    stock = loss_and_gradients(model, batch())[1]
    patch = apply(model)
    assert not patch.report.left
    ours = loss_and_gradients(model, batch())[1]

    def distance(gradients: dict[str, Tensor]) -> float:
        return max(float((gradients[n].float() - truth[n]).norm() / truth[n].norm()) for n in truth)

    assert distance(ours) <= 1.3 * distance(stock)
