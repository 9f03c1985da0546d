"""The kernels on a real card: the folder tests/kernels again, and what only a card can show."""

from __future__ import annotations

import importlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import nbtune_kernels as nk
import pytest
import torch

from tests.support.every import every

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def room(gigabytes: float) -> None:
    if torch.cuda.is_available() and torch.cuda.mem_get_info()[0] < gigabytes * 2**30:
        pytest.skip(f"needs {gigabytes} GiB of free GPU memory")


def draw(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(shape, device="cuda").to(dtype)


def error(got: torch.Tensor, truth: torch.Tensor) -> float:
    difference = (got.double() - truth.double()).norm() / truth.double().norm().clamp(min=1e-30)
    return float(difference) if torch.isfinite(got).all() else float("inf")


def test_every_kernel_test_on_this_card(repo: Path) -> None:
    run = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", str(repo / "tests/kernels"), "-p", "no:cacheprovider", "-W", "default"),
            *(
                ("-n", str(min(14, CORES))) if importlib.util.find_spec("xdist") else ()
            ),  # most of the time is compiling
        ],
        env={**os.environ, "NBTUNE_TEST_DEVICE": "cuda"},
        cwd=repo,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert run.returncode == 0, run.stdout[-6000:]
    assert " passed" in run.stdout


@pytest.mark.parametrize(
    "op", ["rms_norm", "layer_norm", "rope", "activation", "lora", "linear_cross_entropy", "adamw", "dropout"]
)
def test_bf16_at_8b_widths(op: str) -> None:
    from benchmarks.measure import LLAMA_8B

    checks = [row.check for row in importlib.import_module(f"benchmarks.{op}").rows(LLAMA_8B) if row.check]
    assert checks
    for check in checks:
        assert check() <= 1.2e-2


def test_rows_beyond_2_to_31_elements() -> None:
    room(20)
    rows, width = 2**19 + 3, 4096  # 2^31 + 12,288 elements, 4 GiB
    x = torch.empty(rows, width, device="cuda", dtype=torch.bfloat16)
    x[:1000].normal_()
    x[-1000:].normal_()
    x[1000:-1000] = 1
    weight = draw(width)
    y, rstd = nk.rms_norm(x, weight, 1e-5)
    want, want_rstd = nk.rms_norm(x[-1000:].clone(), weight, 1e-5)
    assert torch.equal(y[-1000:], want)
    assert torch.equal(rstd[-1000:], want_rstd)
    h = nk.act_mul(x, x, out=y)
    assert torch.equal(h[-1000:], nk.act_mul(x[-1000:].clone(), x[-1000:].clone()))
    ids = torch.tensor([rows - 1, 0, rows - 1000], device="cuda")
    assert torch.equal(nk.embedding(ids, x), x[ids])
    seed = torch.tensor(3, device="cuda")
    dropped = nk.dropout(x, 0.5, seed)
    assert 0.4 < (dropped[-1000:] == 0).float().mean().item() < 0.6


def test_logits_beyond_2_to_31_elements() -> None:
    room(12)
    from nbtune_kernels.cross_entropy import Head, RowStats, cross_entropy_rows_

    rows, vocabulary = 16800, 128256
    logits = torch.empty(rows, vocabulary, device="cuda", dtype=torch.bfloat16)
    tail = draw(16, vocabulary)
    logits[:-16] = 0
    logits[-16:] = tail
    labels = torch.randint(0, vocabulary, (rows,), device="cuda")
    stats = RowStats(*(torch.empty(rows, device="cuda") for _ in range(4)))
    cross_entropy_rows_(logits, labels, torch.ones(rows, device="cuda"), Head(), stats)
    want = torch.nn.functional.cross_entropy(tail.float(), labels[-16:], reduction="none")
    assert error(stats.loss[-16:], want) < 1e-5
    grad = torch.softmax(tail.double(), -1)
    grad[torch.arange(16), labels[-16:]] -= 1
    assert error(logits[-16:], grad) < 1e-2


def test_rope_strides_beyond_2_to_31() -> None:
    room(10)
    tokens, width = 2**16, 2**15 + 64
    packed = torch.empty(tokens, width, device="cuda", dtype=torch.bfloat16)
    q = packed[:, :256].view(1, tokens, 2, 128)
    q.normal_()
    cos, sin = (f(torch.rand(1, tokens, 128, device="cuda")) for f in (torch.cos, torch.sin))
    last = q[:, -8:].clone()
    want, _ = nk.rope(last, None, cos[:, -8:], sin[:, -8:])
    nk.rope(q, None, cos, sin, inplace=True)
    assert torch.equal(q[:, -8:], want)


def test_a_step_in_a_cuda_graph() -> None:
    """Norm, rotary, activation, head, clipping and update captured once; the replay follows lr, seed and inputs."""
    h, v = 256, 1000
    x, weight, labels = draw(64, h), draw(v, h), torch.randint(0, v, (64,), device="cuda")
    p, g = torch.zeros(h, device="cuda"), torch.zeros(h, device="cuda")
    optimizer, lr = nk.FusedAdamW([p], [g], betas=(0.0, 0.0), eps=0.0), torch.tensor(1.0, device="cuda")
    seed = torch.tensor(1, device="cuda")

    def step() -> tuple[torch.Tensor, torch.Tensor]:
        y, rstd = nk.rms_norm(x, None, 1e-5)
        y = nk.dropout(y, 0.5, seed)
        out = nk.linear_cross_entropy(y, weight, labels, scale=1 / 64)
        dx, _ = nk.rms_norm_backward(out.dhidden, x, None, rstd)
        g.copy_(dx.float().sum(0) + 1)
        norm = optimizer.grad_norm()
        optimizer.step(lr, clip=optimizer.clip_factor(norm, 1.0))
        return out.loss, y

    for _ in range(2):
        step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        loss, y = step()
    graph.replay()
    first = loss.clone(), y.clone(), p.clone()
    graph.replay()
    assert torch.equal(loss, first[0])
    seed.fill_(2)
    lr.fill_(0.5)
    graph.replay()
    assert not torch.equal(y, first[1])
    assert optimizer.step_count == 5  # 2 before the capture, none in it, 3 replays
    x.copy_(draw(64, h))
    graph.replay()
    assert torch.isfinite(loss)
    assert not torch.equal(loss, first[0])


@pytest.mark.filterwarnings("default")  # inductor's own
def test_under_torch_compile() -> None:
    x, w, up = draw(64, 512), draw(512), draw(64, 512)

    def block(x: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        y, _ = nk.rms_norm(x, w, 1e-5)
        return nk.act_mul(y * 2, up)

    compiled = torch.compile(block, fullgraph=True)
    assert error(compiled(x, up), block(x, up)) < 1e-2


def test_same_bits_twice() -> None:
    x, dys = draw(8192, 1024), [draw(8192, 2048), draw(8192, 512)]
    a, bs = draw(32, 1024), [draw(2048, 16), draw(512, 16)]
    xa, dxa = nk.lora_xa(x, a), nk.lora_dxa(dys, bs, [1.0, 1.0])
    first, second = (nk.lora_grads(x, xa, dxa, dys, [16, 16], [1.0, 1.0]) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert every(torch.equal(p, q) for p, q in zip(first[1], second[1], strict=True))


def test_shares_that_8_bit_products_lack() -> None:
    """Gate and up with their activation, and the residual's sum, each with LoRA's share added on its way."""
    room(4)
    from nbtune.models.accelerate.lora_epilogues import act_with_lora, sum_with_lora

    t, i, h, r = 2048 + 40, 14336, 4096, 16
    both, xa, out = draw(t, 2 * i), draw(t, 2 * r), torch.empty(t, i, device="cuda", dtype=torch.bfloat16)
    beside = torch.zeros(2 * i, 2 * r, device="cuda", dtype=torch.bfloat16)
    beside[:i, :r], beside[i:, r:] = draw(i, r), draw(i, r)
    truth = both.double() + xa.double() @ beside.double().t()
    act_with_lora(both[:, :i], both[:, i:], xa, beside, "silu", out)
    assert error(both, truth) < 4e-3
    gate, up = both.double().split(i, 1)
    assert error(out, torch.nn.functional.silu(gate) * up) < 4e-3
    y, residual = draw(t, h), draw(t, h)
    want = residual.double() + 0.5 * (y.double() + xa[:, :r].double() @ beside[:h, :r].double().t())
    assert error(sum_with_lora(residual, y, xa[:, :r], beside[:h, :r], 0.5), want) < 4e-3
