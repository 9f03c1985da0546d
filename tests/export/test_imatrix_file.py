"""llama.cpp's importance matrices, of both formats, are what an export's own measure is; others are a sentence."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from nbtune.errors import ExportError
from nbtune.export import ExportSource, export_gguf
from nbtune.export.base_model import BaseModelExporter
from nbtune.export.imatrix_file import fitted, read_importance
from tests.export.gguf.test_writer import make_tiny

NAMES = {
    "blk.0.attn_q.weight": "model.layers.0.self_attn.q_proj.weight",
    "blk.1.ffn_up.weight": "model.layers.1.mlp.up_proj.weight",
}


def felt() -> dict[str, torch.Tensor]:
    return {name: torch.rand(256, generator=torch.Generator().manual_seed(n)) * 9 for n, name in enumerate(NAMES)}


def older(path: Path, matrix: dict[str, torch.Tensor], calls: int = 4) -> Path:
    parts = [struct.pack("<i", len(matrix))]
    for name, values in matrix.items():
        text = name.encode()
        parts += [struct.pack("<i", len(text)), text, struct.pack("<ii", calls, values.numel())]
        parts.append((values * calls).numpy().astype("<f4").tobytes())
    path.write_bytes(b"".join(parts) + struct.pack("<i", calls) + struct.pack("<i", 4) + b"text")
    return path


def newer(path: Path, matrix: dict[str, torch.Tensor], count: float = 64.0) -> Path:
    from gguf import GGUFWriter

    writer = GGUFWriter(path, "imatrix")
    writer.add_type("imatrix")
    for name, values in matrix.items():
        writer.add_tensor(f"{name}.in_sum2", (values * count).numpy().reshape(1, -1))
        writer.add_tensor(f"{name}.counts", np.full((1, 1), count, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("write", [older, newer])
def test_bits_are_spent_by_it(write: object, tmp_path: Path) -> None:
    folder, matrix = make_tiny(tmp_path / "tiny").folder, felt()
    file = write(tmp_path / "it.imatrix", matrix)  # type: ignore[operator]
    found = read_importance(file)
    assert found.keys() == matrix.keys()
    for name, values in matrix.items():
        torch.testing.assert_close(found[name], values)
    [made] = BaseModelExporter(str(folder)).gguf("q4_k_s", out=tmp_path / "by_file", importance=file)
    ours = {NAMES[name]: values for name, values in found.items()}
    [same] = export_gguf(ExportSource(folder, name="tiny"), ["q4_k_s"], tmp_path / "ours", importance=ours)
    [plain] = export_gguf(ExportSource(folder, name="tiny"), ["q4_k_s"], tmp_path / "plain")
    assert made.path.read_bytes() == same.path.read_bytes() != plain.path.read_bytes()


def test_what_is_none_or_of_another_model_is_a_sentence(tmp_path: Path) -> None:
    folder, good = make_tiny(tmp_path / "tiny").folder, older(tmp_path / "good", felt())
    whole = good.read_bytes()
    for number, body in enumerate(
        (b"", b"GGUF", whole[:-900], b"\xff" * 64, whole[:4] + b"\xff" * 40, b"hello, world")
    ):
        (tmp_path / f"bad{number}").write_bytes(body)
        with pytest.raises(ExportError, match="no importance matrix"):
            read_importance(tmp_path / f"bad{number}")
    with pytest.raises(ExportError, match="cannot be read"):
        read_importance(tmp_path / "none")
    for matrix in ({"blk.0.attn_q.weight": torch.ones(100)}, {"blk.77.attn_q.weight": torch.ones(256)}):
        with pytest.raises(ExportError, match="of another model"):
            BaseModelExporter(str(folder)).gguf("q4_k_s", out=tmp_path, importance=older(tmp_path / "other", matrix))
    assert not list(tmp_path.glob("*.gguf"))


def test_of_a_mixtures_stack_the_mean_of_its_experts_is_taken() -> None:
    from nbtune.export.gguf.tensors import GgufTensor

    stack = GgufTensor("blk.0.ffn_up_exps.weight", (2, 8, 4), lambda: iter(()))
    assert fitted({stack.name: torch.arange(8.0)}, [stack])[stack.name].tolist() == [2.0, 3.0, 4.0, 5.0]
