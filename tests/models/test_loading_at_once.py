"""Models that several threads load at once are each whole: two runs of a notebook on a CPU begin together."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import torch

from nbtune.models import load_model
from tests.support.every import every


def test_each_has_all_its_weights() -> None:
    alone = load_model("nbtune/tiny", dtype=torch.float32, device="cpu").state_dict()
    begin = threading.Barrier(3)

    def load(dtype: torch.dtype) -> dict[str, torch.Tensor]:
        begin.wait()
        return load_model("nbtune/tiny", dtype=dtype, device="cpu").state_dict()

    dtypes = [torch.float32, torch.bfloat16, torch.float32]
    with ThreadPoolExecutor(3) as threads:
        for dtype, beside in zip(dtypes, list(threads.map(load, dtypes)), strict=True):
            assert beside.keys() == alone.keys()
            assert every(torch.equal(value.to(dtype), beside[name]) for name, value in alone.items())
    assert torch.get_default_dtype() == torch.float32
