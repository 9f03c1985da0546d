"""What a plan says a model takes is what it takes: counted on a step of the embedded model."""

from __future__ import annotations

import dataclasses
import gc

import pytest
import torch
from nbtune_kernels.linear_cross_entropy import chunk_rows

from nbtune import models
from nbtune.data.batching.collate import collate
from nbtune.data.prepare.dataset import Builder
from nbtune.data.prepare.stats import longest_pair
from nbtune.models.memory_estimate import MemoryPlan, MemoryPolicy, estimate, head_bytes
from nbtune.spec import AdapterSpec, Placement
from nbtune.spec.placement import FORMATS
from nbtune.train.loss import TokenLoss
from nbtune.train.stepper import Stepper
from tests.planner.test_planner import LLAMA_8B

CPU, ROWS, LENGTH = torch.device("cpu"), 4, 256


def alive() -> dict[int, int]:
    """Bytes of all tensors' memory that Python knows of, by address."""
    gc.collect()
    tensors = [one for one in gc.get_objects() if type(one) in (torch.Tensor, torch.nn.Parameter)]
    return {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in tensors}


def step(policy: MemoryPolicy, kind: str) -> tuple[MemoryPlan, MemoryPlan]:
    """What is planned, and what is there, of one step."""
    adapter = AdapterSpec.model_validate({"type": kind, "r": 8})
    built = models.build("nbtune/tiny", adapter=adapter, dtype=torch.float32, device=CPU, policy=policy, seed=0)
    trained = [p for p in built.model.parameters() if p.requires_grad]
    stepper = Stepper(
        built.model.train(), TokenLoss(fused=True), torch.optim.AdamW(trained), max_grad_norm=1.0, seed=0, device=CPU
    )
    builder = Builder(["rows"])
    for number in range(ROWS):
        builder.add(list(range(3, 3 + LENGTH)), [False] * (LENGTH - 8) + [True] * 8, 0, number)
    batch = collate(builder.build(), list(range(ROWS)))
    before = alive()
    waits = TokenLoss(fused=True)(built.model, batch, denominator=32, device=CPU)
    kept = sum(size for place, size in alive().items() if place not in before)
    del waits
    stepper.accumulate(batch, denominator=32, step=0, micro_step=0)
    gradients = sum(p.grad.nbytes for p in trained)
    stepper.update(1e-3)
    moments = [state[name] for state in stepper.optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    planned = estimate(
        built.facts,
        adapter,
        weights=Placement(format="32bit"),
        activations=policy,
        micro_batch_size=ROWS,
        sequence_len=LENGTH,
        dtype="fp32",
        device="cpu",
    )
    own_copies = 0 if kind == "full" else sum(p.nbytes for p in trained)
    there = {"gradients": gradients, "optimizer": sum(m.nbytes for m in moments), "activations": kept}
    return planned, planned.model_copy(update={**there, "adapter": own_copies})


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_what_is_trained_takes_what_is_planned(kind: str) -> None:
    planned, there = step("keep", kind)
    assert planned.model_copy(update={"activations": 0}) == there.model_copy(update={"activations": 0})


def test_what_waits_for_the_backward_is_what_is_planned() -> None:
    """Between two policies, so that what the block at work needs, which is in none of them, drops out."""
    (planned, there), (less_planned, less_there) = step("keep", "lora"), step("recompute", "lora")
    ratio = (planned.activations - less_planned.activations) / (there.activations - less_there.activations)
    assert 0.6 < ratio < 1.4


@pytest.mark.parametrize("vocabulary", [1000, 32000, 49152, 128256, 262144])
@pytest.mark.parametrize("tokens", [1, 100, 2048, 8168, 131072])
def test_a_chunk_of_logits_is_as_large_as_the_head_makes_it(vocabulary: int, tokens: int) -> None:
    facts = dataclasses.replace(LLAMA_8B, vocab_size=vocabulary, hidden_size=0)
    rows = chunk_rows(tokens, vocabulary, 2, torch.device("cuda"))
    assert head_bytes(facts, tokens, 2, "cuda") == 2 * vocabulary * min(rows, tokens)


def test_scales_of_layers_that_are_away_stay() -> None:
    bnb = pytest.importorskip("bitsandbytes.functional")
    numbers = 2**20
    packed, state = bnb.quantize_4bit(torch.randn(1024, 1024), quant_type="nf4", compress_statistics=True)
    assert packed.nbytes == numbers // 2
    scales = state.absmax.nbytes + state.state2.absmax.nbytes
    assert scales / numbers + 0.5 == pytest.approx(FORMATS["nf4"].bytes, rel=0.001)

    def weights(layers: int) -> int:
        parameters = LLAMA_8B.parameters + (layers - 32) * LLAMA_8B.block_parameters
        model = dataclasses.replace(LLAMA_8B, num_layers=layers, parameters=parameters)
        rows = {"micro_batch_size": 1, "sequence_len": 8, "activations": "keep", "dtype": "bf16", "device": "cuda"}
        away = Placement(format="nf4", resident=0)
        return estimate(model, AdapterSpec(type="qlora", r=1), weights=away, **rows).weights  # type: ignore[arg-type]

    more = 40 * LLAMA_8B.block_parameters * scales / numbers
    assert weights(72) - weights(32) - 40 * 2 * LLAMA_8B.lora_parameters(1) / 32 == pytest.approx(more, rel=0.01)


LLAMA_1B = dataclasses.replace(
    LLAMA_8B,
    hidden_size=2048,
    intermediate_size=8192,
    num_layers=16,
    head_dim=64,
    tied=True,
    parameters=1_235_814_400,
)
HELD: list[tuple[str, str, int | None, MemoryPolicy, int, int, float]] = [
    ("lora", "16bit", None, "keep", 4, 2048, 10.413),
    ("lora", "16bit", None, "keep", 1, 512, 4.000),
    ("lora", "16bit", None, "keep", 1, 16384, 16.798),
    ("lora", "16bit", None, "selective", 4, 2048, 6.383),
    ("lora", "16bit", None, "recompute", 4, 2048, 4.577),
    ("lora", "16bit", None, "offload", 2, 4096, 4.109),
    ("lora", "16bit", 0, "keep", 4, 2048, 8.778),
    ("qlora", "nf4", None, "keep", 4, 2048, 9.161),
    ("full", "16bit", None, "keep", 4, 2048, 24.415),
]


@pytest.mark.parametrize("row", HELD, ids=lambda r: f"{r[0]}-{r[1]}-{r[3]}-{r[4]}x{r[5]}")
def test_what_an_h200_held_is_what_is_planned(row: tuple[str, str, int | None, MemoryPolicy, int, int, float]) -> None:
    """GiB at most, loading and the context included (docs/bench/2026-11-30-h200-memory.jsonl)."""
    kind, format_, resident, policy, rows, length, held = row
    planned = estimate(
        LLAMA_1B,
        AdapterSpec.model_validate({"type": kind} if kind == "full" else {"type": kind, "r": 16}),
        weights=Placement.model_validate({"format": format_, "resident": resident}),
        activations=policy,
        micro_batch_size=rows,
        sequence_len=length,
        dtype="bf16",
        device="cuda",
        accumulates=False,
    )
    assert planned.total / 2**30 == pytest.approx(held, rel=0.05)


def test_a_pair_whose_prompt_goes_through_once_takes_what_an_h200_held() -> None:
    """4 pairs in places for 512 tokens an answer, of which 776 tokens go through once (row 131 of the same file)."""
    how = {"weights": Placement(), "activations": "keep", "dtype": "bf16", "device": "cuda", "accumulates": False}
    rows = {"micro_batch_size": 4, "sequence_len": 1024}
    whole = estimate(LLAMA_1B, AdapterSpec(r=16), **how, **rows)  # type: ignore[arg-type]
    once = estimate(LLAMA_1B, AdapterSpec(r=16), **how, **rows, once=776)  # type: ignore[arg-type]
    assert once.total / 2**30 == pytest.approx(6.378, rel=0.05)
    assert whole.total > 1.08 * once.total
    assert estimate(LLAMA_1B, AdapterSpec(r=16), **how, **rows, once=1000) == whole  # type: ignore[arg-type]


def test_layers_of_transformers_own_with_plain_norms_and_mlps_take_what_an_h200_held() -> None:
    """GPT-NeoX of 410 M numbers, all of them trained, 2 × 2,048 (row 112 of the same file)."""
    neox = dataclasses.replace(
        LLAMA_8B, hidden_size=1024, intermediate_size=4096, num_layers=24, num_heads=16, num_kv_heads=16, head_dim=64,
        vocab_size=50304, parameters=405_334_016, linear=24 * 12 * 1024**2, layer_norms=True,
    )  # fmt: skip
    how = {"activations": "keep", "dtype": "bf16", "device": "cuda", "accumulates": False, "own_layers": 0.0}
    rows = {"micro_batch_size": 2, "sequence_len": 2048, "weights": Placement()}
    found = estimate(neox, AdapterSpec(type="full"), **how, **rows)  # type: ignore[arg-type]
    assert found.total / 2**30 == pytest.approx(10.10, rel=0.05)


@pytest.mark.parametrize("gap", [0, 3])
def test_the_longest_pair_counts_its_prompt_once(gap: int) -> None:
    """Up to the token that predicts the first that is learnt, and no further than the answers' prompts are alike."""
    builder = Builder(["rows"])
    for number, (prompt, better, worse) in enumerate([(20, 5, 9), (40, 8, 8), (10, 30, 1)]):
        for side, answer in enumerate((better, worse)):
            ids = [7] * prompt + [100 + side] * answer
            if side and gap:
                ids[gap] = 8
            builder.add(ids, [False] * prompt + [True] * answer, 0, number)
    rows = builder.build()
    assert longest_pair(rows.arrays, rows.lengths) == (2 * 40 + 16 - gap if gap else 40 + 16 + 1)
