"""Whose fault it is that a model cannot be loaded: its own, or the machine's."""

from __future__ import annotations

import pytest
import torch

from nbtune.errors import PlanError, SpecError
from nbtune.models.refusals import first_line, refusing

try:
    import triton
    import triton.language as tl
except ImportError:  # macOS, Windows
    triton = None


def _to_fp8(x, out):
    value = tl.load(x).to(tl.float8e4nv)
    tl.store(out, value.to(tl.int8, bitcast=True))


def _compiled_for_an_old_card() -> None:
    """Compile by Triton what a T4 has not; no card is needed for that."""
    if triton is None:
        pytest.skip("there is no Triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    source = ASTSource(triton.runtime.JITFunction(_to_fp8), {"x": "*fp32", "out": "*i8"}, {})
    triton.compile(source, target=GPUTarget("cuda", 75, 32), options={"enable_fp_fusion": True})


def test_what_triton_refuses_is_not_the_models_fault() -> None:
    with pytest.raises(PlanError) as refused, refusing("llama"):
        _compiled_for_an_old_card()
    assert "this machine failed" in refused.value.cause
    assert "fp8e4nv not supported" in refused.value.cause
    assert "causal" not in str(refused.value)
    assert "%nbtune doctor" in refused.value.fix


def test_also_where_a_library_hides_it_behind_its_own_words() -> None:
    def load() -> None:
        try:
            _compiled_for_an_old_card()
        except Exception as error:
            raise RuntimeError("the weights could not be converted") from error

    with pytest.raises(PlanError, match="fp8e4nv"), refusing("llama"):
        load()


def test_an_error_of_the_driver() -> None:
    with pytest.raises(PlanError, match="an illegal memory access"), refusing("llama"):
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered\nand so on")


@pytest.mark.parametrize("error", [OSError("no such file"), ValueError(), KeyError("hidden_size")])
def test_what_transformers_raises_is_said_of_the_model(error: Exception) -> None:
    with pytest.raises(SpecError) as refused, refusing("llama"):
        raise error
    assert refused.value.cause == f"llama cannot be loaded: {first_line(error)}"
    assert refused.value.fix == "Name a causal language model."


def test_memory_that_is_not_there_stays_what_it_is() -> None:
    with pytest.raises(torch.OutOfMemoryError), refusing("llama"):
        raise torch.OutOfMemoryError("CUDA out of memory")
