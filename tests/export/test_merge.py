"""Merging: base + adapter on disk gives the logits that peft computes, whatever kind of adapter it is."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from nbtune.errors import ExportError
from nbtune.export import ExportSource, export_adapter, export_merged
from nbtune.export.merge import MergedModel
from nbtune.spec import Placement
from tests.support.every import every, some
from tests.support.tiny_models import byte_level, save_model, save_tokenizer

IDS = [[5, 70, 300, 12, 12, 499, 33, 7]]

KINDS: dict[str, dict[str, Any]] = {
    "lora": {"target_modules": "all-linear"},
    "rslora with patterns": {
        "target_modules": ["q_proj", "k_proj"],
        "use_rslora": True,
        "alpha_pattern": {"q_proj": 3},
        "rank_pattern": {"layers.1.self_attn.k_proj": 2},
    },
    "dora": {"target_modules": "all-linear", "use_dora": True},
    "embedding saved whole": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    "tied embedding saved whole": {
        "target_modules": ["q_proj"],
        "modules_to_save": ["embed_tokens"],
        "ensure_weight_tying": True,
    },
    "head saved whole": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "lora on the embedding": {"target_modules": ["embed_tokens", "v_proj"]},
    "lora on the head": {"target_modules": ["lm_head"]},
    "new vectors for three tokens": {"target_modules": ["q_proj"], "trainable_token_indices": [0, 20, 300]},
}


@pytest.fixture(scope="module", params=["tied", "untied"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import LlamaConfig

    folder = tmp_path_factory.mktemp(request.param)
    tokenizer = save_tokenizer(byte_level(), folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,  # bitsandbytes on a CPU takes no rows that 64 does not divide
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=request.param == "tied",
    )
    save_model(config, folder)
    return folder


def adapted(base: Path, folder: Path, **options: Any) -> torch.Tensor:
    """Save a random adapter in `folder`; the logits that peft computes with it."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(base)
    wrapped = get_peft_model(model, LoraConfig(r=4, **options)).eval()
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if any(part in name for part in ("lora_", "modules_to_save", "trainable_tokens")):
                parameter.add_(torch.randn_like(parameter) * 0.05)
    wrapped.save_pretrained(folder)
    return logits(wrapped)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor(IDS)).logits


def loaded(folder: Path) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    return logits(AutoModelForCausalLM.from_pretrained(folder))


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / (b.max() - b.min()))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_merged_logits_are_the_adapters(kind: str, base: Path, tmp_path: Path) -> None:
    expected = adapted(base, tmp_path / "adapter", **KINDS[kind])
    assert difference(loaded(base), expected) > 1e-3  # otherwise this would show nothing
    file = export_merged(ExportSource(base, tmp_path / "adapter"), tmp_path / "merged", "float32", shard_bytes=100_000)
    assert difference(loaded(file.path), expected) < 2e-6
    assert len(list(file.path.glob("*.safetensors"))) > 1
    stored = json.loads((file.path / "model.safetensors.index.json").read_text())["weight_map"]
    config = json.loads((file.path / "config.json").read_text())  # transformers 4 ties whatever the files hold
    assert config["tie_word_embeddings"] == ("lm_head.weight" not in stored)
    assert (file.path / "chat_template.jinja").is_file()


@pytest.mark.filterwarnings("ignore")
def test_a_bias_that_a_lora_adds_is_scaled_as_the_rest_of_it(tmp_path: Path) -> None:
    from transformers import LlamaConfig

    tokenizer = save_tokenizer(byte_level(), tmp_path / "base")
    sizes: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "attention_bias": True}
    save_model(LlamaConfig(vocab_size=len(tokenizer), num_attention_heads=4, **sizes), tmp_path / "base")
    options = {"target_modules": ["q_proj", "o_proj"], "lora_bias": True, "lora_alpha": 20}
    expected = adapted(tmp_path / "base", tmp_path / "adapter", **options)
    assert any(key.endswith("lora_B.bias") for key in load_file(tmp_path / "adapter" / "adapter_model.safetensors"))
    merged = export_merged(ExportSource(tmp_path / "base", tmp_path / "adapter"), tmp_path / "merged", "fp32").path
    assert difference(loaded(merged), expected) < 2e-6


@pytest.mark.filterwarnings("ignore")
def test_an_adapter_with_extra_tokens(base: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base)
    rows = model.config.vocab_size
    model.resize_token_embeddings(rows + 3)
    wrapped = get_peft_model(
        model, LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"])
    )
    wrapped.save_pretrained(tmp_path / "adapter")
    merged = export_merged(ExportSource(base, tmp_path / "adapter"), tmp_path / "merged", "fp32").path
    assert json.loads((merged / "config.json").read_text())["vocab_size"] == rows + 3
    assert loaded(merged).shape[-1] == rows + 3
    assert difference(loaded(merged), logits(wrapped)) < 2e-6


@pytest.mark.filterwarnings("ignore")
def test_an_adapter_of_a_4_bit_base_is_merged_into_the_base_that_it_was_trained_on(base: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    pytest.importorskip("bitsandbytes")
    from bitsandbytes.functional import dequantize_4bit

    quant = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(base, quantization_config=quant, dtype=torch.float32)
    layer = model.model.layers[1].mlp.down_proj  # not adapted, but quantised all the same
    trained_on = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    wrapped = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"])).eval()
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    wrapped.save_pretrained(tmp_path / "adapter")
    expected = logits(wrapped)
    source = ExportSource(base, tmp_path / "adapter")
    plain = export_merged(source, tmp_path / "plain", "fp32").path
    exact = export_merged(dataclasses.replace(source, weights=Placement(format="nf4")), tmp_path / "exact", "fp32").path
    off = difference(loaded(exact), expected)  # bitsandbytes' CPU kernel rounds activations to bf16: 5e-3
    assert off < 1e-2
    assert difference(loaded(plain), expected) > 5 * off
    merged = load_file(exact / "model.safetensors")["model.layers.1.mlp.down_proj.weight"]
    assert torch.equal(merged, trained_on)


def test_16_bit_merges_round_the_fp32_sum_once(base: Path, tmp_path: Path) -> None:
    adapted(base, tmp_path / "adapter", target_modules=["q_proj"])
    source = ExportSource(base, tmp_path / "adapter")
    name = "model.layers.0.self_attn.q_proj.weight"
    exact = MergedModel(source).get(name)
    for dtype in (torch.bfloat16, torch.float16):
        short = str(dtype).removeprefix("torch.")
        folder = export_merged(source, tmp_path / short, short).path
        assert torch.equal(load_file(folder / "model.safetensors")[name], exact.to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_merged_model_keeps_the_bases_dtype(base: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    """Numbers that the base has in 32 bits are not cut to 16 by a merge that nobody asked to."""
    shutil.copytree(base, tmp_path / "base")
    stored = {name: tensor.to(dtype) for name, tensor in load_file(base / "model.safetensors").items()}
    save_file(stored, tmp_path / "base" / "model.safetensors", metadata={"format": "pt"})
    adapted(tmp_path / "base", tmp_path / "adapter", target_modules=["q_proj"])
    made = export_merged(ExportSource(tmp_path / "base", tmp_path / "adapter"), tmp_path / "out")
    merged = load_file(made.path / "model.safetensors")
    short = str(dtype).removeprefix("torch.")
    assert made.type == f"merged-{short}"
    config = json.loads((made.path / "config.json").read_text())
    assert config["dtype"] == config["torch_dtype"] == short
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"]  # transformers 4 reads the first
    same = [name for name in stored if "q_proj" not in name]
    assert every(torch.equal(merged[name], stored[name]) for name in same)
    assert every(tensor.dtype == dtype for tensor in merged.values())


def test_rows_are_made_alone_as_in_the_whole(base: Path, tmp_path: Path) -> None:
    adapted(base, tmp_path / "adapter", target_modules="all-linear", use_dora=True)
    model = MergedModel(ExportSource(base, tmp_path / "adapter"))
    name = "model.layers.1.mlp.down_proj.weight"
    parts = torch.cat([model.rows(name, start, min(start + 7, 64)) for start in range(0, 64, 7)])
    assert torch.allclose(parts, model.get(name), rtol=0, atol=1e-6)


def test_the_exported_adapter_is_equal_and_knows_no_machine(base: Path, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    expected = adapted(base, tmp_path / "adapter", target_modules=["q_proj"])
    source = ExportSource(base, tmp_path / "adapter", name="demo", base_id="owner/base")
    assert str(base) in (tmp_path / "adapter" / "adapter_config.json").read_text()
    out = export_adapter(source, tmp_path / "out", card="# demo\n").path
    for path in some(out.iterdir()):
        assert str(tmp_path).encode() not in path.read_bytes()
        assert str(base).encode() not in path.read_bytes()
    assert json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"] == "owner/base"
    again = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(out)).eval()
    assert torch.equal(logits(again), expected)


def test_the_adapters_base_has_a_name_whatever_is_known_of_it(base: Path, tmp_path: Path) -> None:
    """peft asks for `base_model_name_or_path`; a folder of somebody's machine is called by its own name."""
    adapted(base, tmp_path / "adapter", target_modules=["q_proj"])
    snapshot = tmp_path / "hub" / "models--owner--base-2" / "snapshots" / "0a1b2c"
    shutil.copytree(base, snapshot)
    for at, known, name in (
        (base, "owner/base", "owner/base"),
        (base, "", base.name),
        (base, str(base), base.name),
        (base, "C:\\\\ada\\\\models\\\\own", "own"),
        (base, "~/models/own/", "own"),
        (base, "nbtune/tiny", "nbtune/tiny"),
        (snapshot, "", "owner/base-2"),
    ):
        source = ExportSource(at, tmp_path / "adapter", base_id=known)
        out = export_adapter(source, tmp_path / "out").path
        assert json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"] == name


def refused(source: ExportSource, out: Path) -> str:
    with pytest.raises(ExportError) as caught:
        export_merged(source, out)
    assert not out.exists()
    assert [path for path in out.parent.iterdir() if ".part-" in path.name] == []
    return str(caught.value)


def test_what_cannot_be_merged_is_refused_before_any_work(base: Path, tmp_path: Path) -> None:
    adapted(base, tmp_path / "adapter", target_modules=["q_proj"])
    config_file = tmp_path / "adapter" / "adapter_config.json"
    config = json.loads(config_file.read_text())
    source, out = ExportSource(base, tmp_path / "adapter"), tmp_path / "out"
    for change, words in (
        ({"peft_type": "VERA"}, "of type 'VERA'"),
        ({"init_lora_weights": "pissa"}, "changes the base before training"),
        ({"layer_replication": [[0, 1]]}, "layer_replication"),
    ):
        config_file.write_text(json.dumps({**config, **change}))
        assert words in refused(source, out)
    config_file.write_text(json.dumps(config))
    weights = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    save_file(
        {k.replace("layers.1", "layers.9"): v for k, v in weights.items()},
        tmp_path / "adapter/adapter_model.safetensors",
    )
    assert "which the base model does not have" in refused(source, out)
    (tmp_path / "adapter" / "adapter_model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    assert "not whole" in refused(source, out)


def test_a_vanished_base_no_space_and_foreign_folders(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "the file is not there" in refused(ExportSource(tmp_path / "gone"), tmp_path / "out")
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("mine")
    with pytest.raises(ExportError, match="holds other things"):
        export_merged(ExportSource(base), foreign)
    assert (foreign / "thesis.txt").read_text() == "mine"
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    assert "of disk, and 0.001 MB are free" in refused(ExportSource(base), tmp_path / "out")


def test_a_second_export_takes_the_place_of_the_first(base: Path, tmp_path: Path) -> None:
    export_merged(ExportSource(base), tmp_path / "out", "float32")
    export_merged(ExportSource(base), tmp_path / "out", "bfloat16")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
