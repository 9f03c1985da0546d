"""A model from a GGUF file: the same numbers and tokens as the model that was written, and every bad file refused."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import nbtune
from nbtune import models
from nbtune.errors import SpecError
from nbtune.export import ExportSource, export_gguf
from nbtune.export.gguf.families import FAMILIES
from nbtune.models.gguf_file.architectures import ARCHITECTURES
from nbtune.models.gguf_file.header import read_header
from nbtune.models.gguf_file.numbers import values
from nbtune.models.gguf_file.pretokenizers import _ALIASES
from tests.support.families import family_tokenizer
from tests.support.family_cases import CASES
from tests.support.family_variants import VARIANTS
from tests.support.llama import LlamaOracle, llama_library
from tests.support.tiny_models import CHATML, save_model, strings

SHORT = (
    "llama 2, codellama, yi", "qwen3 moe", "gemma 3", "phi 3 long", "falcon 40b", "gpt-oss", "deepseek v3",
    "granite 4 h", "qwen 3.5 moe", "nemotron 3", "falcon, a key a query", "arcee, llama 3's scaling",
)  # fmt: skip
FP32 = nbtune.device.torch_dtype("fp32")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own: what it finds decoded there, it has made."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("NBTUNE_CACHE", str(folder))
    return folder


def made(name: str, folder: Path, *types: str) -> tuple[Any, Any, list[Path]]:
    """A tiny model of a family, its tokenizer, and its GGUF files."""
    import transformers

    case = (CASES | VARIANTS)[name]
    tokenizer = family_tokenizer(case.tokenizer, folder / "tokenizer")
    config = getattr(transformers, case.config)(vocab_size=len(tokenizer), **case.options)
    model = save_model(config, folder / "model", spread=3.0)
    source = ExportSource(folder / "model", name="tiny", tokenizer=folder / "tokenizer")
    return model, tokenizer, [file.path for file in export_gguf(source, list(types) or ["f32"], folder)]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Path]:
    model, tokenizer, [path] = made("llama 3, smollm, deepseek distilled", tmp_path_factory.mktemp("tiny"))
    return model, tokenizer, path


def logits(model: Any, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0]


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max() / (other.max() - other.min()))


@pytest.mark.parametrize(
    "name", [n if n in SHORT else pytest.param(n, marks=pytest.mark.slow) for n in CASES | VARIANTS]
)
def test_what_is_written_is_read_back(name: str, tmp_path: Path) -> None:
    model, tokenizer, [path] = made(name, tmp_path)
    got = models.load_model(str(path), dtype=FP32, device="cpu")
    ids = tokenizer("The people over there said: 2024 東京 def return import lambda x, HELLO World").input_ids
    assert apart(logits(got, ids), logits(model, ids)) < 1e-6 * (CASES | VARIANTS)[name].times
    own = models.load_tokenizer(str(path))
    nfc = (
        own.backend_tokenizer.normalizer if (CASES | VARIANTS)[name].tokenizer.startswith("qwen") else None
    )  # Qwen's own, not this test's
    for text in strings(150, seed=3, specials=("<|im_start|>", "<|im_end|>", "</s>")):
        asked = nfc.normalize_str(text) if nfc else text
        assert own(text).input_ids == tokenizer(asked).input_ids
        assert own.decode(own(text).input_ids) == tokenizer.decode(tokenizer(asked).input_ids)
    assert own.eos_token == tokenizer.eos_token


def test_every_family_that_is_written_is_read() -> None:
    variants = {"granite", "granitemoe", "nemotron_h_moe"}  # that an entry's `instead` names
    assert {family.arch for family in FAMILIES.values()} | variants == set(ARCHITECTURES)


@pytest.mark.parametrize(
    "kind", ["q4_k_m", "f16", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("q8_0", "bf16", "q4_0"))]
)
def test_weights_are_the_decoded_ones(kind: str, tmp_path: Path) -> None:
    from gguf import GGUFReader, dequantize

    _, _, [path] = made("granite", tmp_path, kind)
    got = models.load_model(str(path), dtype=FP32, device="cpu").state_dict()
    stored = {tensor.name: dequantize(tensor.data, tensor.tensor_type) for tensor in GGUFReader(path).tensors}
    folder = models.resolve(str(path))
    exact = {"f16": torch.float16}.get(kind, torch.bfloat16)
    for ours, theirs in (("mlp.up_proj", "ffn_up"), ("mlp.down_proj", "ffn_down"), ("self_attn.v_proj", "attn_v")):
        wanted = torch.from_numpy(stored[f"blk.1.{theirs}.weight"].copy()).to(exact).float()
        assert torch.equal(got[f"model.layers.1.{ours}.weight"], wanted)
    assert torch.equal(got["model.norm.weight"], torch.from_numpy(stored["output_norm.weight"].copy()))  # fp32 stays
    assert str(exact).removeprefix("torch.") in (folder / "config.json").read_text()


def test_the_way_of_a_person(tiny: tuple[Any, Any, Path], tmp_path: Path) -> None:
    """Planned, trained, talked to; the adapter's file on the very file that was named, and merged."""
    model, _, path = tiny
    rows = [{"messages": [{"role": "user", "content": "who"}, {"role": "assistant", "content": f"the {w}"}]}
            for w in ("people", "time", "day")]  # fmt: skip
    shutil.copy(path, tmp_path / "sha256-0123")  # as Ollama keeps it
    spec = {"model": str(tmp_path / "sha256-0123"), "data": "rows", "steps": 2, "learning_rate": 0.01, "dtype": "fp32"}
    spec |= {"chat_template": CHATML}
    plan = nbtune.plan(spec, rows={"rows": rows})
    assert "to be decoded from sha256-0123 (F32), once" in str(plan)
    run = nbtune.finetune(spec, name="g", rows={"rows": rows}, runs_dir=tmp_path / "runs").wait()
    tuned = run.export.merged(tmp_path / "merged").path
    from transformers import AutoModelForCausalLM

    ids = list(range(20, 60))
    expected = logits(AutoModelForCausalLM.from_pretrained(tuned, dtype=torch.float32), ids)
    assert apart(logits(model, ids), expected) > 1e-3
    lora = run.export.adapter_gguf(tmp_path).path
    with LlamaOracle(tmp_path / "sha256-0123", library=llama_library(), n_ctx=64) as llama:
        llama.use_adapter(lora)
        assert apart(torch.from_numpy(llama.logits(ids).copy()), expected) < 1e-4
    assert run.export.gguf("q8_0", out=tmp_path)[0].path.is_file()
    card = run.model_card("me/it")
    assert "sha256-0123" in card
    assert str(tmp_path) not in card


def test_it_is_decoded_once(tiny: tuple[Any, Any, Path], tmp_path: Path, own_cache: Path) -> None:
    path = shutil.copy(tiny[2], tmp_path / "a.gguf")
    folder = models.resolve(str(path), weights=False)
    assert not list(folder.glob("*.safetensors"))
    assert models.missing_bytes(str(path), 10) == 0
    assert models.resolve(str(path)) == folder
    written = (folder / "model.safetensors").stat().st_mtime_ns
    other = shutil.copy(path, tmp_path / "b.gguf")  # what is in it counts, not how it is called
    assert models.resolve(str(other)) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == written


def test_a_split_model_is_one(tmp_path: Path, own_cache: Path) -> None:
    model, tokenizer, [path] = made("qwen3", tmp_path)
    names = split(path, tmp_path / "parts")
    ids = tokenizer("The people over there").input_ids
    for named in names:
        got = models.load_model(str(named), dtype=FP32, device="cpu")
        assert apart(logits(got, ids), logits(model, ids)) < 1e-6
    assert len(list((own_cache / "gguf").glob("*/model.safetensors"))) == 1
    names[1].unlink()
    with pytest.raises(SpecError, match=r"tiny-00002-of-00002\.gguf is not beside it"):
        models.resolve(str(names[0]))


def split(path: Path, folder: Path) -> list[Path]:
    """Write a file as two parts."""
    from gguf import GGUFReader, GGUFWriter

    reader = GGUFReader(path)
    folder.mkdir()
    names = [folder / f"tiny-{i:05}-of-00002.gguf" for i in (1, 2)]
    half = len(reader.tensors) // 2
    for i, tensors in enumerate((reader.tensors[:half], reader.tensors[half:])):
        writer = GGUFWriter(names[i], "qwen3")
        writer.add_uint16("split.no", i)
        writer.add_uint16("split.count", 2)
        writer.add_int32("split.tensors.count", len(reader.tensors))
        for field in () if i else reader.fields.values():
            if not field.name.startswith("GGUF.") and field.name != "general.architecture":
                inner = field.types[1] if len(field.types) > 1 else None
                writer.add_key_value(field.name, field.contents(), field.types[0], inner)
        for tensor in tensors:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return names


@pytest.mark.parametrize("alias", _ALIASES)
def test_other_names_of_splittings_are_llama_cpp_s(alias: str, tiny: tuple[Any, Any, Path], tmp_path: Path) -> None:
    """The file's vocabulary under each name: llama.cpp's tokens are ours."""
    path = with_keys(tiny[2], tmp_path / "a.gguf", {"tokenizer.ggml.pre": alias})
    own = models.load_tokenizer(str(path))
    nfc = own.backend_tokenizer.normalizer
    texts = [t for t in strings(150, seed=5) if nfc is None or nfc.normalize_str(t) == t]
    with LlamaOracle(path, library=llama_library(), n_ctx=64) as llama:
        assert llama.tokenize(texts, add_special=True) == [own(text).input_ids for text in texts]


def with_keys(path: Path, out: Path, keys: dict[str, Any]) -> Path:
    """Copy a file with other values of some keys; None takes one out."""
    from gguf import GGUFReader, GGUFValueType, GGUFWriter

    reader = GGUFReader(path)
    arch = keys.get("general.architecture", reader.fields["general.architecture"].contents())
    writer = GGUFWriter(out, arch)
    kept = {f.name: (f.contents(), f.types) for f in reader.fields.values() if not f.name.startswith("GGUF.")}
    for key, value in keys.items():
        kinds = {
            str: GGUFValueType.STRING,
            int: GGUFValueType.UINT32,
            float: GGUFValueType.FLOAT32,
            bool: GGUFValueType.BOOL,
        }
        kinds_of = [GGUFValueType.ARRAY, kinds[type(value[0])]] if isinstance(value, list) else [kinds.get(type(value))]
        kept[key] = (value, kinds_of)
    for key, (value, types) in kept.items():
        if key != "general.architecture" and value is not None:
            writer.add_key_value(key, value, types[0], types[1] if len(types) > 1 else None)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"general.type": "adapter"}, "it is an adapter, not a model"),
        ({"general.type": "mmproj"}, "it is a mmproj"),
        ({"general.type": "imatrix"}, "it is a imatrix"),
        ({"general.architecture": "clip"}, "sees or hears"),
        ({"general.architecture": "martian"}, "its architecture is 'martian', which is none of"),
        ({"llama.block_count": 4_000_000_000}, "it tells of 4,000,000,000 blocks, and holds those of 2"),
        ({"llama.block_count": 1}, "it tells of 1 blocks"),
        ({"llama.attention.head_count": 0}, "describe no model"),
        ({"llama.embedding_length": 1 << 20}, "has the shape"),
        ({"llama.feed_forward_length": 17}, "has the shape"),
        ({"llama.context_length": 1 << 31}, "context_length is"),
        ({"llama.attention.layer_norm_rms_epsilon": None}, "layer_norm_rms_epsilon is missing"),
        ({"llama.attention.layer_norm_rms_epsilon": float("nan")}, "no number"),
        ({"llama.embedding_length": "wide"}, "no whole number"),
        ({"llama.rope.scaling.type": "spiral"}, "rope.scaling.type 'spiral'"),
        ({"tokenizer.ggml.model": "bert"}, "its tokenizer is a 'bert'"),
        ({"tokenizer.ggml.pre": "unheard-of"}, "splits text by 'unheard-of'"),
        ({"tokenizer.ggml.tokens": ["a"] * 9000}, "9,000 tokens"),
        ({"tokenizer.ggml.tokens": [1, 2]}, "holds other things"),
        ({"tokenizer.chat_template": 7}, "not a text"),
        ({"split.count": 3}, "one part of a model"),
        ({"split.count": "three"}, "one part of a model"),
    ],
)  # fmt: skip
def test_a_file_that_is_none_is_refused_in_a_sentence(
    keys: dict[str, Any], words: str, tiny: tuple[Any, Any, Path], tmp_path: Path, own_cache: Path
) -> None:
    path = with_keys(tiny[2], tmp_path / "bad.gguf", keys)
    with pytest.raises(SpecError, match=r"bad\.gguf") as caught:
        nbtune.plan({"model": str(path), "data": "rows", "steps": 1}, rows={"rows": [{"text": "a"}]})
    assert words in str(caught.value)
    assert len(str(caught.value)) < 600
    assert not [entry for entry in (own_cache / "gguf").glob("*") if entry.suffix != ".lock"]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "it is empty"),
        (b"GGUF", "truncated"),
        (b"tjgg" + bytes(64), "a ggjt file, the kind before GGUF"),
        (b"lmgg" + bytes(64), "a ggml file"),
        (b"GGUF" + struct.pack("<I", 1) + bytes(64), "GGUF of version 1"),
        (b"GGUF" + struct.pack(">I", 3) + bytes(64), "big-endian"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 1), "which no model has"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1 << 50), "a text of"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<IIQ", 9, 8, 1 << 40), "lists of"),
        (
            b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<IIQ", 9, 9, 1),
            "which nbtune does not read",
        ),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<I", 99), "a value of kind 99"),
        (b"version https://git-lfs.github.com/spec/v1\n", "no GGUF file"),
        (b"<html>Not found</html>", "no GGUF file"),
    ],
)
def test_bytes_that_are_no_model_are_refused(data: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(data)
    with pytest.raises(SpecError, match=r"bad\.gguf") as caught:
        models.resolve(str(tmp_path / "bad.gguf"), weights=False)
    assert words in str(caught.value)


def test_a_file_cut_anywhere_is_refused(tiny: tuple[Any, Any, Path], tmp_path: Path) -> None:
    whole, path = tiny[2].read_bytes(), tmp_path / "cut.gguf"
    for size in random.Random(0).sample(range(len(whole) - 31), 40):
        path.write_bytes(whole[:size])
        with pytest.raises(SpecError, match=r"cut\.gguf"):
            read_header(path)


def test_a_file_with_any_byte_changed_is_read_or_refused(tiny: tuple[Any, Any, Path], tmp_path: Path) -> None:
    whole, path = bytearray(tiny[2].read_bytes()), tmp_path / "odd.gguf"
    end = min(stored.start for stored in read_header(tiny[2]).tensors.values())
    rng = random.Random(1)
    for _ in range(60):
        changed = bytearray(whole)
        for _ in range(3):
            changed[rng.randrange(end)] = rng.choice((0, 1, 0x7F, 0x80, 0xFF))
        path.write_bytes(changed)
        with contextlib.suppress(SpecError):  # nothing else is raised, and nothing takes long
            read_header(path)


def test_numbers_that_are_none_are_refused(tiny: tuple[Any, Any, Path], tmp_path: Path) -> None:
    path = shutil.copy(tiny[2], tmp_path / "nan.gguf")
    stored = read_header(tiny[2]).tensors["blk.1.ffn_up.weight"]
    with path.open("r+b") as file:
        file.seek(stored.start + 4000)
        file.write(np.float32("inf").tobytes())
    with pytest.raises(SpecError, match="no finite numbers"):
        models.resolve(str(path))
    assert not list(models.resolve(str(path), weights=False).glob("*.safetensors"))


def test_rows_are_read_alone(tiny: tuple[Any, Any, Path]) -> None:
    stored = read_header(tiny[2]).tensors["token_embd.weight"]
    assert np.array_equal(values(stored, 7, 5), values(stored)[7:12])


def test_what_is_named_wrongly_is_said(tiny: tuple[Any, Any, Path], tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    shutil.copy(tiny[2], tmp_path / "folder" / "in.gguf")
    (tmp_path / "pytorch_model.bin").write_bytes(b"PK")
    for model, words in (
        (str(tmp_path / "folder"), "folder/in.gguf"),
        (str(tmp_path / "pytorch_model.bin"), "is weights alone"),
        ("nobody/name-GGUF/file-q4.gguf", "hf download nobody/name-GGUF file-q4.gguf"),
        (str(tmp_path / "none.gguf"), "there is no file"),
    ):
        with pytest.raises(SpecError) as caught:
            models.resolve(model, weights=False)
        assert words in str(caught.value)


def test_nothing_waits_for_a_pipe_or_a_device(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    (tmp_path / "zero.gguf").symlink_to("/dev/zero")
    for name in ("pipe.gguf", "zero.gguf"):
        with pytest.raises(SpecError, match="no ordinary file"):
            models.resolve(str(tmp_path / name), weights=False)


def test_what_is_decoded_is_listed(tiny: tuple[Any, Any, Path], own_cache: Path) -> None:
    from nbtune.system_report import cached

    models.resolve(str(tiny[2]))
    assert [entry.name for entry in cached() if entry.kind == "decoded"] == ["tiny-f32.gguf"]


def test_a_lock_that_nobody_gives_back_is_not_waited_for(
    tiny: tuple[Any, Any, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a disk without locks."""
    from nbtune.models.gguf_file import decoded

    monkeypatch.setattr(decoded, "try_lock", lambda file: False)
    monkeypatch.setattr(decoded, "_PATIENCE", 0.0)
    assert (models.resolve(str(tiny[2])) / "model.safetensors").is_file()


def test_files_here_are_offered(tiny: tuple[Any, Any, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nbtune.commands.values import models as offered
    from nbtune.models.gguf_file.found import facts_of_file

    monkeypatch.chdir(tmp_path)
    for name in ("a.gguf", "b-00001-of-00002.gguf", "b-00002-of-00002.gguf", "mmproj-a.gguf"):
        shutil.copy(tiny[2], tmp_path / name)
    assert [name for name in offered({}) if name.endswith(".gguf")] == ["a.gguf", "b-00001-of-00002.gguf"]
    assert facts_of_file("a.gguf").parameters == models.model_facts("a.gguf").parameters
    assert facts_of_file("a.gguf").tied
