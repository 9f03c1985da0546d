"""Every kernel compiles for every supported card, and products run on tensor cores or not at all."""

from __future__ import annotations

import re

import pytest
import torch

pytest.importorskip("triton")

from tests.kernels.ahead import Launch, compile_for, compile_for_amd, llama_step, record

MMA = re.compile(r"\b(mma\.sync|wgmma\.mma_async|tcgen05\.mma)")
WITH_DOT = {"lora_kernels._xa_kernel", "lora_kernels._dxa_kernel", "lora_kernels._tn_kernel"}


def launches(capability: int, monkeypatch: pytest.MonkeyPatch) -> list[Launch]:
    dtype = torch.float16 if capability < 80 else torch.bfloat16
    with record(capability, monkeypatch) as kept:
        for _, call in llama_step(dtype):
            call()
    return kept


def uses_dot(launch: Launch) -> bool:
    """Whether the kernel, or a function that it calls, has a tl.dot."""
    return launch.name in WITH_DOT


def check(capability: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = set()
    for launch in launches(capability, monkeypatch):
        if capability < 80 and (uses_dot(launch) or launch.name in seen):
            continue  # products go to cuBLAS there (test_lora.py); the variants of a kernel are compiled for sm_90
        ptx = compile_for(launch, capability)
        assert f".target sm_{capability}" in ptx
        assert bool(MMA.search(ptx)) == uses_dot(launch), launch.name
        seen.add(launch.name)
    assert len(seen) >= 12


@pytest.mark.parametrize("capability", [75, 90])
def test_compiles(capability: int, monkeypatch: pytest.MonkeyPatch) -> None:
    check(capability, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 86, 89, 100, 120])
def test_compiles_everywhere(capability: int, monkeypatch: pytest.MonkeyPatch) -> None:
    check(capability, monkeypatch)


@pytest.mark.slow
def test_compiles_for_amd(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = set()
    for launch in launches(90, monkeypatch):
        if launch.name not in seen:
            assert ("mfma" in compile_for_amd(launch)) == uses_dot(launch), launch.name
            seen.add(launch.name)


def test_dot_has_no_tensor_cores_on_a_t4(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason for the gate: if this changes, so may the gate in lora.uses_kernel."""
    dots = [launch for launch in launches(75, monkeypatch) if uses_dot(launch)]
    assert {launch.name for launch in dots} == WITH_DOT
    small = dots[0]._replace(arguments=dots[0].arguments | {"BLOCK_T": 16, "BLOCK_K": 16})
    ptx = compile_for(small, 75)
    assert not MMA.search(ptx)
    assert "fma.rn" in ptx


def test_wide_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory-bound kernels move 16 bytes a thread at once."""
    for launch in launches(90, monkeypatch):
        if launch.name in ("rms_norm._forward_kernel", "activation._forward_kernel", "cross_entropy._kernel"):
            ptx = compile_for(launch, 90)
            assert "ld.global.v4" in ptx, launch.name
            assert "st.global.v4" in ptx or "cross_entropy" not in launch.name


def test_every_kernel_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib

    from triton.runtime.jit import JITFunction

    from tests.kernels.ahead import MODULES

    defined = {
        f"{name}.{attribute}"
        for name in MODULES
        for attribute, value in vars(importlib.import_module(f"nbtune_kernels.{name}")).items()
        if isinstance(value, JITFunction) and attribute.endswith("kernel") and value.fn.__module__.endswith(name)
    }
    assert defined == {launch.name for launch in launches(90, monkeypatch)}
