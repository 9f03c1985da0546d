"""8-bit rows: the scale of a row, rounding to e4m3, the transposed copy, and a product with both scales outside."""

from __future__ import annotations

import pytest
import torch
from nbtune_kernels.fp8 import LARGEST, decode_rows, quantise_rows, reference, scaled_product, transposed


@pytest.mark.parametrize("shape", [(5, 32), (1, 48), (7, 1000), (3, 28672)])
@pytest.mark.parametrize("with_columns", [False, True])
def test_rows_are_scaled_to_the_largest_number(draw, device, dtype, shape, with_columns):
    x = draw(*shape, dtype=dtype)
    x[0] *= 100
    columns = draw(shape[1]).abs() + 0.1 if with_columns else None
    q, scale = quantise_rows(x, columns)
    value = x.float() if columns is None else x.float() * columns
    assert q.float().abs().amax(-1).eq(LARGEST).all()
    # e4m3 has 3 bits of mantissa, and numbers under 2^-6 are steps of 2^-9
    step = (q.float().abs() * 2.0**-4).clamp(min=2.0**-10) * 1.01
    assert ((q.float() * scale[:, None] - value).abs() <= step * scale[:, None]).all()
    want, scales = reference(x, columns)
    assert torch.allclose(scale, scales, rtol=1e-6)
    assert (q.float() != want.float()).float().mean() < 1e-3  # a division rounded otherwise


def test_rows_of_zeros_and_slices_of_wider_rows(draw, device):
    wide = draw(6, 100)
    wide[2, :64] = 0
    q, scale = quantise_rows(wide[:, :64])
    assert scale[2] == 1
    assert not q[2].float().any()
    assert torch.equal(q.float(), quantise_rows(wide[:, :64].contiguous())[0].float())


@pytest.mark.parametrize("shape", [(64, 128), (3, 5000), (130, 70)])
def test_rows_are_decoded_with_one_rounding(draw, device, dtype, shape):
    q, scale = quantise_rows(draw(*shape))
    out = torch.empty(2, *shape, dtype=dtype, device=device)
    decode_rows(torch.stack((q, q.flip(0))), torch.stack((scale, scale.flip(0))), out)
    want = (q.float() * scale[:, None]).to(dtype)
    assert torch.equal(out, torch.stack((want, want.flip(0))))


@pytest.mark.parametrize("shape", [(64, 128), (48, 16), (130, 70)])
def test_transposed_is_the_same_bytes(draw, device, shape):
    q, _ = quantise_rows(draw(*shape))
    out = torch.empty(shape[::-1], dtype=q.dtype, device=q.device)
    assert torch.equal(transposed(q, out).view(torch.uint8), q.view(torch.uint8).t())


def test_a_product_of_quantised_rows(draw, dtype):
    x, w, bias = draw(33, 64, dtype=dtype), draw(48, 64, dtype=dtype), draw(48, dtype=dtype)
    (q, s), (v, z) = quantise_rows(x), quantise_rows(w)
    y = scaled_product(q, s, v, z, dtype, bias).double()
    exact = (q.double() * s.double()[:, None]) @ (v.double() * z.double()[:, None]).t() + bias.double()
    assert (y - exact).norm() / exact.norm() < 6e-3
    truth = x.double() @ w.double().t() + bias.double()
    assert (y - truth).norm() / truth.norm() < 5e-2
