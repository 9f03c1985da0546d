"""4-bit weights, decoded: the numbers are bitsandbytes' own, bit for bit."""

from __future__ import annotations

import pytest
import torch
from nbtune_kernels import nf4

from nbtune.models.accelerate.nf4_linear import codes_of

functional = pytest.importorskip("bitsandbytes.functional")


@pytest.mark.parametrize("nested", [True, False], ids=["double", "single"])
@pytest.mark.parametrize(("rows", "width"), [(24, 64), (7, 200), (160, 256)])
def test_every_bit(draw, device, dtype, rows, width, nested):
    weight = draw(rows, width, dtype=dtype, scale=0.02)
    packed, state = functional.quantize_4bit(weight, quant_type="nf4", compress_statistics=nested)
    codes, want = codes_of(packed, state), functional.dequantize_4bit(packed, state)
    assert torch.equal(nf4.reference(codes, width).to(dtype), want)
    out = torch.full((rows, width + 24), 7.0, dtype=dtype, device=device)[:, :width]
    if not nf4.fits(codes, out):
        assert not nf4.use_triton(packed)
        return
    nf4.decode(codes, out)
    assert torch.equal(out, want)
    assert (out.as_strided((rows, width + 24), (width + 24, 1))[:, width:] == 7).all()


def test_what_does_not_fit(draw):
    packed, state = functional.quantize_4bit(draw(8, 36), quant_type="nf4", compress_statistics=True)
    assert not nf4.fits(codes_of(packed, state), draw(8, 36))  # half a word at the end of each row
