"""Every kernel compiles for every supported card, and products run on tensor cores or not at all."""

from __future__ import annotations

import importlib
import re
import resource

import pytest
import torch

pytest.importorskip("triton")

from nbtune_kernels.tables import SHARED
from triton.backends.compiler import GPUTarget

from tests.kernels.ahead import (
    NVIDIA,
    Launch,
    assemble,
    chosen,
    compile_for,
    compile_for_amd,
    compiled,
    llama_step,
    record,
)
from tests.support.every import some

MMA = re.compile(r"\b(mma\.sync|wgmma\.mma_async|tcgen05\.mma)")
ATTENTION = {f"attention_kernels.{name}_kernel" for name in ("forward", "keys", "queries")}
GROUPED = {"grouped_kernels._rows_kernel", "grouped_kernels._sums_kernel"}
WITH_DOT = {"lora_kernels._xa_kernel", "lora_kernels._dxa_kernel", "lora_kernels._tn_kernel"} | GROUPED | ATTENTION
OF_BLOCKS = {"triton_epilogues._act_backward_kernel", "lora_epilogues._act_kernel", "lora_epilogues._sum_kernel"}
# of a step of a Llama with LoRA on one card, whatever its size: the others belong to other families
OF_A_LLAMA = {
    "rms_norm", "add_rms_norm", "rms_norm_apply", "rms_norm_backward", "rope", "rope_in_place", "act_silu",
    "act_backward", "cross_entropy", "scatter", "times", "adamw", "embedding",
}  # fmt: skip


def launches(capability: int, monkeypatch: pytest.MonkeyPatch) -> list[Launch]:
    dtype = torch.float16 if capability < 80 else torch.bfloat16
    with record(capability, monkeypatch) as kept:
        for _, call in llama_step(dtype):
            call()
    return kept


def uses_dot(launch: Launch) -> bool:
    """Whether the kernel, or a function that it calls, has a tl.dot."""
    return launch.name in WITH_DOT | OF_BLOCKS


def check(capability: int, monkeypatch: pytest.MonkeyPatch, *, once: bool = False) -> None:
    """Compile what a step launches; `once`: of each kernel the first variant."""
    seen = set()
    of_blocks = [launch for launch in picked(capability, monkeypatch) if "_epilogues." in launch.name]
    for launch in [*launches(capability, monkeypatch), *of_blocks]:
        if once and launch.name in seen:
            continue
        if capability < 80 and (uses_dot(launch) or launch.name in seen):
            continue  # products go to cuBLAS there (test_lora.py); the variants of a kernel are compiled for sm_90
        if capability < 89 and launch.name in ("fp8._quantise_kernel", "fp8._decode_kernel"):
            continue  # no card before has e4m3
        result = compiled(launch, GPUTarget("cuda", capability, 32))
        ptx = result.asm[NVIDIA]
        assert result.metadata.shared <= 1024 * SHARED[90 if capability == 100 else capability], launch.name
        assert f".target sm_{capability}" in ptx
        assert bool(MMA.search(ptx)) == uses_dot(launch) == ("tt.dot" in result.asm["ttir"]), launch.name
        seen.add(launch.name)
    assert len(seen) >= 12
    assert "triton_epilogues._rotate_back_kernel" in seen
    assert (capability < 80) or seen >= OF_BLOCKS


@pytest.mark.parametrize("capability", [75, 90])
def test_compiles(capability: int, monkeypatch: pytest.MonkeyPatch) -> None:
    check(capability, monkeypatch, once=True)


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 86, 89, 90, 100, 120])
def test_compiles_everywhere(capability: int, monkeypatch: pytest.MonkeyPatch) -> None:
    check(capability, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 86, 90, 120])
def test_wide_rows_and_high_ranks_fit_the_card(capability: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stages give way where rows are wide or ranks high: a launch that does not fit ends a run."""
    nk, lora_kernels = (importlib.import_module(f"nbtune_kernels{name}") for name in ("", ".lora_kernels"))

    def z(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype)

    stats, t = z(64, dtype=torch.float32), 4096
    with record(capability, monkeypatch) as kept:
        for width, dtype in ((8192, torch.float32), (16384, torch.bfloat16)):
            x, w = z(64, width, dtype=dtype), z(width, dtype=dtype)
            nk.rms_norm_backward(x, x, w, stats, need_dweight=True, dresidual=x)
            nk.layer_norm_backward(x, x, w, stats, stats, need_dweight=True, dresidual=x)
        for rank in (32, 64, 128):
            lora_kernels.launch_xa(z(t, 4096), z(rank, 4096), z(t, rank))
            lora_kernels.launch_dxa([z(t, 4096)], [z(4096, rank)], [1.0], z(t, rank))
            out = z(rank, 4096, dtype=torch.float32)
            lora_kernels.launch_tn([z(t, rank)], [z(t, 4096)], [1.0], [out], [False], False)
        for dim, dtype in ((128, torch.float32), (256, torch.bfloat16)):
            q, k, cu = z(512, 4, dim, dtype=dtype), z(512, 2, dim, dtype=dtype), z(3, dtype=torch.int32)
            attention = importlib.import_module("nbtune_kernels.attention")
            o, lse = attention._launch_forward(q, k, k, cu, None, 512, 0.1, 50.0, 0)
            attention._launch_backward(o, q, k, k, o, lse, cu, None, 512, 0.1, 50.0, 0)
    for launch in some(kept):
        shared = compiled(launch, GPUTarget("cuda", capability, 32)).metadata.shared
        assert shared <= 1024 * SHARED[capability], (launch.name, launch.options)


@pytest.mark.slow
def test_compiles_for_amd(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = set()
    for launch in launches(90, monkeypatch):
        if launch.name not in seen:
            assert ("mfma" in compile_for_amd(launch)) == uses_dot(launch), launch.name
            seen.add(launch.name)


def picked(capability: int, monkeypatch: pytest.MonkeyPatch) -> list[Launch]:
    """What the gates let through on a card of that capability."""
    dtype = torch.float16 if capability < 80 else torch.bfloat16
    with record(capability, monkeypatch) as kept:
        for _, call in chosen(dtype):
            call()
    return kept


def slow_on_a_t4(launch: Launch) -> bool:
    """Its sm_75 PTX multiplies matrices, and not by tensor cores."""
    stages = assemble(launch, GPUTarget("cuda", 75, 32))
    return "tt.dot" in stages["ttir"] and not MMA.search(stages[NVIDIA])


def test_no_product_without_tensor_cores_on_a_t4(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every kernel with tl.dot is without mma in its sm_75 PTX, and none of them is launched there: cuBLAS is."""
    halves = {"PRECISION": "tf32"}
    there = {launch.name: launch for launch in picked(80, monkeypatch)}
    small = {"BLOCK_T": 16, "BLOCK_K": 16, "BLOCK_N": 16, "BT": 16, "BM": 16, "BN": 16, "BK": 16} | halves
    slow = set()
    for name, launch in there.items():
        fewer = {k: v for k, v in small.items() if k in launch.arguments and launch.kernel.fn.__name__ != "_sum_kernel"}
        if slow_on_a_t4(launch._replace(arguments=launch.arguments | fewer)):
            slow.add(name)
    assert slow == (WITH_DOT - ATTENTION) | OF_BLOCKS | {"attention_kernels.forward_kernel"}
    names = {launch.name for launch in picked(75, monkeypatch)}
    assert not names & slow
    assert names == {"triton_epilogues._rotate_back_kernel"}


@pytest.mark.slow
def test_cold_compile_of_a_llama_step_on_a_t4(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    """At most 30 s of one core, which is the longer way: a run on two cores compiles while the other one works."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    with record(75, monkeypatch) as kept:
        for name, call in llama_step(torch.float16):
            if name in OF_A_LLAMA:
                call()
    kept += picked(75, monkeypatch)
    before = cpu_seconds()
    for launch in kept:
        compile_for(launch, 75)
    spent = cpu_seconds() - before
    print(f"{len(kept)} kernels compiled cold in {spent:.1f} s of CPU time")
    assert any(tmp_path.iterdir())
    assert spent <= 30


def cpu_seconds() -> float:
    """Of this process and those that it waited for (ptxas)."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def test_wide_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory-bound kernels move 16 bytes a thread at once."""
    for launch in launches(90, monkeypatch):
        if launch.name in ("rms_norm._forward_kernel", "activation._forward_kernel", "cross_entropy._kernel"):
            ptx = compile_for(launch, 90)
            assert "ld.global.v4" in ptx, launch.name
            assert "st.global.v4" in ptx or "cross_entropy" not in launch.name


def test_every_kernel_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    from triton.runtime.jit import JITFunction

    from tests.kernels.ahead import MODULES

    defined = {
        f"{name}.{attribute}"
        for name in MODULES
        for attribute, value in vars(importlib.import_module(f"nbtune_kernels.{name}")).items()
        if isinstance(value, JITFunction) and attribute.endswith("kernel") and value.fn.__module__.endswith(name)
    }
    assert defined == {launch.name for launch in launches(90, monkeypatch)}
