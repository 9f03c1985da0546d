"""The kernels across ops against autograd, under Triton's interpreter; and that they compile for their cards."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as f

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
interpreted = pytest.mark.skipif(not INTERPRETED, reason="run by test_under_the_interpreter")


@pytest.mark.skipif(INTERPRETED, reason="it is")
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("which", "marked"),
    [
        pytest.param("interpreted", "not slow", id="interpreted"),
        pytest.param("interpreted", "slow", marks=pytest.mark.slow, id="other policies"),
        pytest.param("every_policy and lora", "not slow and not gpu", marks=pytest.mark.slow, id="whole models"),
    ],
)
def test_under_the_interpreter(which: str, marked: str, repo: Path) -> None:
    """This file, and accelerated models, by Triton's kernels: TRITON_INTERPRET=1 before they are imported."""
    files = [__file__, str(repo / "tests/models/test_accelerate.py")]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *files, "-x", "-p", "no:cacheprovider", "-k", which, "-m", marked],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        cwd=repo,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert run.returncode == 0, run.stdout[-6000:]
    assert " passed" in run.stdout


def activations() -> dict[str, object]:
    return {
        "silu": f.silu,
        "gelu": f.gelu,
        "gelu_tanh": lambda t: f.gelu(t, approximate="tanh"),
        "relu": f.relu,
    }


@interpreted
@pytest.mark.parametrize("act", ["silu", "gelu", "gelu_tanh", "relu"])
@pytest.mark.parametrize(("tokens", "width", "rank"), [(96, 200, 5), (1100, 40, 16), (17, 64, 32)])
def test_activation_backward_interpreted(act: str, tokens: int, width: int, rank: int) -> None:
    from nbtune.models.accelerate.triton_epilogues import act_backward_grads

    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    both, dh, dha, xa = draw(tokens, 2 * width), draw(tokens, width), draw(tokens, rank), draw(tokens, 2 * rank)
    gate, up = (t.double().clone().requires_grad_() for t in both.split(width, 1))
    h = activations()[act](gate) * up  # type: ignore[operator]
    dgate, dup = torch.autograd.grad(h, (gate, up), dh.double())
    truths = [dha.double().t() @ h.detach(), xa[:, :rank].double().t() @ dgate, xa[:, rank:].double().t() @ dup]

    sums = act_backward_grads(dh, both[:, :width], both[:, width:], act, dha, xa, rank)
    assert sums is not None
    torch.testing.assert_close(both, torch.cat([dgate, dup], 1).float(), atol=1e-5, rtol=1e-5)
    places = [torch.ones(rank, width), torch.empty(width, rank).t(), torch.ones(width, rank).t()]
    for which, place in reversed(list(enumerate(places))):
        sums.into(which, place, which + 0.5, add=which != 1)
    for which, (place, truth) in enumerate(zip(places, truths, strict=True)):
        want = truth * (which + 0.5) + (which != 1)
        torch.testing.assert_close(place, want.float(), atol=2e-4, rtol=1e-4)


@interpreted
@pytest.mark.parametrize("act", ["silu", "gelu"])
@pytest.mark.parametrize(("tokens", "width", "rank"), [(96, 200, 5), (130, 40, 16), (17, 64, 32)])
def test_late_shares_interpreted(act: str, tokens: int, width: int, rank: int) -> None:
    from nbtune.models.accelerate.lora_epilogues import act_with_lora, sum_with_lora

    generator = torch.Generator().manual_seed(2)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    room, xa, beside = draw(tokens, 2 * width + 7), draw(tokens, 2 * rank), torch.zeros(2 * width, 2 * rank)
    beside[:width, :rank], beside[width:, rank:] = draw(width, rank), draw(width, rank)
    both, behind = room[:, : 2 * width], room[:, 2 * width :].clone()
    truth = both + xa @ beside.t()
    h = torch.empty(tokens, width + rank)[:, :width]
    act_with_lora(both[:, :width], both[:, width:], xa, beside, act, h)
    torch.testing.assert_close(both, truth, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(h, activations()[act](truth[:, :width]) * truth[:, width:], atol=2e-4, rtol=1e-5)  # type: ignore[operator]
    assert torch.equal(room[:, 2 * width :], behind)

    y, residual = draw(tokens, width + 3)[:, :width], draw(tokens, 2 * width)[:, :width]
    want = residual + 0.5 * (y + xa[:, rank:] @ beside[width:, rank:].t())
    assert sum_with_lora(residual, y, xa[:, rank:], beside[width:, rank:], 0.5) is y
    torch.testing.assert_close(y, want, atol=2e-5, rtol=1e-5)


@interpreted
@pytest.mark.parametrize(
    "policy", ["selective", *(pytest.param(p, marks=pytest.mark.slow) for p in ("keep", "recompute"))]
)
def test_eight_bit_layers_with_late_shares_interpreted(policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same losses and gradients as where each share is a pass of its own, and the kernels are what makes them."""
    from nbtune.models.accelerate import apply, fp8_linear, mlp_half
    from nbtune.spec import Placement
    from tests.models.test_accelerate import batch, loss_and_gradients, make

    asked = []
    for module in (fp8_linear, mlp_half):
        gate = module.applies
        monkeypatch.setattr(module, "applies", lambda x, r, gate=gate: (asked.append(r), gate(x, r))[1])
    model = make("llama")
    assert not apply(model, policy, weights=Placement(format="fp8")).report.left  # type: ignore[arg-type]
    late = loss_and_gradients(model, batch())
    assert asked
    for module in (fp8_linear, mlp_half):
        monkeypatch.setattr(module, "applies", lambda x, r: False)
    plain = loss_and_gradients(model, batch())
    assert late[0] == pytest.approx(plain[0], rel=1e-5)
    for name, truth in plain[1].items():
        assert torch.nn.functional.cosine_similarity(late[1][name].flatten(), truth.flatten(), 0) > 0.999, name


@interpreted
def test_rotary_of_the_gradients_interpreted() -> None:
    from nbtune_kernels import rope

    from nbtune.models.accelerate.triton_epilogues import rotate_back

    q, k, v = (torch.randn(2, 9, heads, 16) for heads in (4, 2, 2))
    angle = torch.randn(1, 9, 8)
    cos, sin = (torch.cat([t, t], -1) for t in (angle.cos(), angle.sin()))
    out = torch.empty(18, 8 * 16)
    assert rotate_back(q, k, v, cos, sin, out)
    rope(q, k, cos, sin, inplace=True, inverse=True, rotary_dim=16)
    torch.testing.assert_close(out, torch.cat([t.reshape(18, -1) for t in (q, k, v)], 1))


@pytest.mark.skipif(INTERPRETED, reason="the interpreter's kernels cannot be compiled")
@pytest.mark.parametrize("rank", [16, 32])
def test_compiles_without_spilling_far(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """For the card that it was measured on, with an activation computed once and no more registers than it is given."""
    from triton.backends.compiler import GPUTarget

    from nbtune.models.accelerate import triton_epilogues
    from tests.kernels.ahead import NVIDIA, assemble, record

    t, width = 8192, 14336
    like = {"dtype": torch.bfloat16, "device": "meta"}
    with record(90, monkeypatch) as kept:
        monkeypatch.setattr(triton_epilogues, "_NVIDIA", True)
        both, dh = torch.empty(t, 2 * width, **like), torch.empty(t, width, **like)  # type: ignore[arg-type]
        xa = torch.empty(t, 2 * rank, **like)  # type: ignore[arg-type]
        sums = triton_epilogues.act_backward_grads(dh, both[:, :width], both[:, width:], "silu", xa[:, :rank], xa, rank)
        assert sums is not None
        for which in range(3):
            sums.into(which, torch.empty(rank, width, device="meta"), 1.0, False)
    assert [launch.kernel.fn.__name__ for launch in kept] == ["_act_backward_kernel", "_add_up_kernel"]
    tile = kept[0].arguments
    text = assemble(kept[0], GPUTarget("cuda", 90, 32))[NVIDIA]
    assert text.count("ex2.approx.ftz") == tile["BT"] * tile["BN"] // (32 * kept[0].options["num_warps"])
    assemble(kept[1], GPUTarget("cuda", 90, 32))
