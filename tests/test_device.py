"""What the machine cannot do is found out by trying, and then done another way."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from nbtune import device


@pytest.fixture
def fresh() -> Iterator[None]:
    """The answer of this machine is neither known before nor kept after."""
    device.pinnable.cache_clear()
    yield
    device.pinnable.cache_clear()


def test_without_a_gpu_nothing_is_pinned(fresh: None) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert device.pinnable() is False


def test_a_machine_that_refuses_to_pin_is_asked_once_and_does_without(
    fresh: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As WSL answers: no such machine is here, so its answer is played."""
    asked = []

    def refuse(*_: object, **options: object) -> None:
        asked.append(options)
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "empty", refuse)
    assert device.pinnable() is device.pinnable() is False
    assert len(asked) == 1
    assert asked[0]["pin_memory"] is True


@pytest.mark.parametrize(
    ("name", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_a_dtype_has_one_name(name: str, dtype: torch.dtype) -> None:
    assert device.torch_dtype(name) is dtype
