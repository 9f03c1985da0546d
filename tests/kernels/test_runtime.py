"""Layouts of rows, the launch table, the public names, and what the ops tell the dispatcher."""

from __future__ import annotations

import importlib

import nbtune_kernels as nk
import pytest
import torch
from nbtune_kernels import fp8, nf4, packed, routing, tables  # noqa: F401 (the first four: their ops)
from nbtune_kernels._runtime import flat_rows, next_power_of_2, row_layout
from nbtune_kernels.tables import DEFAULT, launch, stages_for, warps_for

from tests.support.every import every


def gather(x: torch.Tensor) -> torch.Tensor:
    """Rows of x read through its layout."""
    layout = row_layout(x)
    n = x.shape[:-1].numel()
    i = torch.arange(n)
    start = (i // layout.inner) * layout.outer_stride + (i % layout.inner) * layout.inner_stride
    base = layout.tensor
    flat = base.as_strided((base.untyped_storage().nbytes() // base.element_size(),), (1,), 0)
    return flat[base.storage_offset() + start[:, None] + torch.arange(x.shape[-1])[None]]


def test_row_layout_reads_the_rows():
    wider = torch.arange(6 * 80.0).view(6, 80)
    views = [
        wider,
        wider[:, 16:48],
        wider.view(2, 3, 80)[..., 8:40],
        wider.view(2, 3, 5, 16)[:, :, 1:3],
        wider.view(6, 5, 16)[:, 2:3],
        wider.view(2, 3, 5, 16)[:, :2, 1:3],  # three strides: copied
        wider.t(),
        wider[:1, :4],
    ]
    for view in views:
        assert torch.equal(gather(view), view.reshape(-1, view.shape[-1]))
        assert torch.equal(flat_rows(view), view.reshape(-1, view.shape[-1]))


def test_refuses_to_write_a_copy():
    with pytest.raises(ValueError, match="cannot write"):
        flat_rows(torch.zeros(4, 8).t(), written=True)


def test_next_power_of_2():
    assert [next_power_of_2(n) for n in (1, 2, 3, 4, 5, 1000, 1025)] == [1, 2, 4, 4, 8, 1024, 2048]


def test_launch_takes_the_nearest_older_architecture():
    assert launch("lora_xa", 89) == launch("lora_xa", 86)
    assert launch("lora_xa", 75) == DEFAULT["lora_xa"]
    assert launch("lora_xa", 103) == launch("lora_xa", 90)
    assert warps_for("rms_norm", 90, 16) == 1
    assert warps_for("rms_norm", 90, 1 << 20) == DEFAULT["rms_norm"]["max_warps"]


def test_entries_of_this_machine_come_first(tmp_path, monkeypatch):
    table = tmp_path / "kernels.json"
    table.write_text('{"103": {"rope": {"warps": 8, "unknown": 1}, "no such op": {}}}')
    monkeypatch.setenv("NBTUNE_KERNEL_TABLE", str(table))
    tables.forget()
    assert launch("rope", 103) == {**DEFAULT["rope"], "warps": 8}
    assert launch("rope", 90)["warps"] == DEFAULT["rope"]["warps"]
    table.write_text("[1]")
    tables.forget()
    with pytest.warns(UserWarning, match=r"kernels\.json is no table"):
        assert launch("rope", 103) == DEFAULT["rope"]
    monkeypatch.undo()
    tables.forget()


def test_stages_give_way_to_what_fits():
    wanted = launch("lora_xa", 90)["stages"]
    assert stages_for("lora_xa", 90, 1000) == wanted
    assert stages_for("lora_xa", 90, 100_000) == 2
    assert stages_for("lora_xa", 90, 10**6) == 1
    assert stages_for("lora_xa", 0, 10**6) == DEFAULT["lora_xa"]["stages"]  # the interpreter has no such limit


def test_public_names_are_sorted_and_there():
    assert nk.__all__ == sorted(nk.__all__)
    assert every(hasattr(nk, name) for name in nk.__all__)


def test_every_op_file_has_formula_and_reference():
    for name in (
        "activation",
        "adamw",
        "dropout",
        "embedding",
        "layer_norm",
        "linear_cross_entropy",
        "linear_logprobs",
    ):
        module = importlib.import_module(f"nbtune_kernels.{name}")
        assert callable(module.reference)
        assert "=" in module.__doc__


def op_calls() -> list[tuple]:
    """One call of every registered op on small CPU tensors."""
    x, w, rstd = torch.randn(4, 8), torch.randn(8), torch.rand(4)
    q, c = torch.randn(1, 4, 2, 8), torch.randn(1, 4, 8)
    labels, rows = torch.tensor([1, -100, 2, 0]), torch.tensor([0, 1, 2, 3])
    weight, seed = torch.randn(5, 8), torch.tensor(3)
    e = torch.empty_like
    head = [0.0, 1.0, 0.0, 0.0]
    heads, bounds = torch.randn(4, 2, 8), torch.tensor([0, 4], dtype=torch.int32)
    scores = (bounds, None, 4, 0.3, 2.0, 0)
    ends, experts, b = torch.tensor([3, 4], dtype=torch.int32), torch.randn(2, 5, 8), torch.randn(5, 3, 2)
    pairs, code = torch.randint(0, 256, (64, 1), dtype=torch.uint8), torch.randn(16)
    return [
        ("grouped_tiles", (ends, 4)),
        ("grouped_rows", (x, experts, ends, None, None, None, None, torch.empty(4, 5))),
        ("grouped_sums", (torch.randn(4, 3), x, ends, None, 0.5, False, False, torch.empty(2, 3, 8))),
        ("grouped_turn", (b, 0.5, torch.empty(2, 5, 3))),
        ("grouped_combine", (x, rows.int(), torch.rand(2, 2), 2, torch.empty(2, 8))),
        ("grouped_gate_backward", (x.clone(), x.clone(), x.clone(), rstd, "silu", e(rstd))),
        (
            "sort_by_group",
            (rows.view(2, 2), 4, 2, torch.empty(4, 4, dtype=torch.int32), torch.empty(4, dtype=torch.int32)),
        ),
        ("nf4_decode", (pairs, code, torch.rand(2), None, None, None, 64, 256, torch.empty(2, 64))),
        ("unpack", (torch.randint(0, 256, (96,), dtype=torch.uint8), 100, 0, torch.empty(8, 8, dtype=torch.bfloat16))),
        ("rms_norm", (x, w, x.clone(), 1e-6, 0.0, True, 1.0, False, e(x), e(x), e(rstd))),
        ("rms_norm_apply", (x, w, rstd, 0.0, True, e(x))),
        ("rms_norm_backward", (x, x.clone(), w, rstd, 0.0, True, None, e(x), e(w))),
        ("layer_norm", (x, w, w.clone(), 1e-6, e(x), e(rstd), e(rstd))),
        ("layer_norm_apply", (x, w, w.clone(), rstd, rstd.clone(), e(x))),
        ("layer_norm_backward", (x, x.clone(), w, rstd, rstd.clone(), None, e(x), e(w), e(w))),
        ("rope", (q, q.clone(), c, c.clone(), 8, False, False, e(q), e(q))),
        ("rope_", (q, q.clone(), c, c.clone(), 8, False, False)),
        ("act_mul", (x, x.clone(), "silu", e(x))),
        ("act_mul_backward", (x, x.clone(), x.clone(), "silu", e(x), e(x), e(x))),
        ("lora_xa", (x, torch.randn(2, 8), torch.empty(4, 2), torch.empty(4, 2))),
        ("lora_dxa", ([x], [torch.randn(8, 2)], [1.0], torch.empty(4, 2))),
        ("grouped_tn", ([torch.randn(4, 2)], [x], [1.0], [torch.empty(2, 8)], [False], False, [torch.rand(8)])),
        ("dropout", (x, 0.5, seed, 0, False, e(x))),
        ("embedding", (rows, weight[:4].repeat(1, 1), 2.0)),
        ("embedding_backward", (x, rows, 5, 1.0, -1)),
        ("fp8_quantise", (x, w, x.to(torch.float8_e4m3fn), e(rstd))),
        ("fp8_decode", (x.to(torch.float8_e4m3fn), rstd, e(x))),
        ("fp8_transpose", (x.to(torch.float8_e4m3fn), torch.empty(8, 4, dtype=torch.float8_e4m3fn))),
        ("scored_attention", (heads, heads.clone(), heads.clone(), *scores)),
        ("scored_attention_backward", (*(heads.clone() for _ in range(5)), torch.randn(2, 4), *scores)),
        ("linear_cross_entropy", (x, weight, None, labels, rows, rstd, head, -100, 3, True, True)),
        ("linear_logprobs", (x, weight, None, labels, None, 0.0, 1.0, -100, 3)),
        (
            "linear_logprobs_backward",
            (rstd, rstd.clone(), x, weight, None, labels, None, 0.0, 1.0, -100, 3, True, True),
        ),
    ]


@pytest.mark.parametrize(("name", "arguments"), op_calls(), ids=[c[0] for c in op_calls()])
def test_ops_keep_their_word(name, arguments):
    """Schema (mutations, aliases) and fake version agree with what the op does."""
    op = getattr(torch.ops.nbtune, name).default
    # the schema's test multiplies results by numbers, which 8-bit ones do not know
    tests = ("test_faketensor",) if name.startswith("fp8") else ("test_schema", "test_faketensor")
    torch.library.opcheck(op, arguments, test_utils=tests)


def test_every_registered_op_is_called_above():
    registered = {s.name.split("::")[1] for s in torch._C._jit_get_all_schemas() if s.name.startswith("nbtune::")}
    assert registered == {name for name, _ in op_calls()}
