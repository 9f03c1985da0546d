"""GGUF: llama.cpp itself loads the file, reads text as the same tokens and computes the same logits."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nbtune.errors import ExportError
from nbtune.export import ExportSource, export_adapter_gguf, export_gguf, export_ollama
from nbtune.export.gguf import families, family
from nbtune.export.gguf.general import general_name
from nbtune.export.gguf.hf_config import Config
from tests.support.every import some
from tests.support.llama import LlamaOracle, llama_library
from tests.support.tiny_models import byte_level, save_model, save_tokenizer, split, strings

SPECIALS = ("<|im_start|>", "<|im_end|>", "<tool_call>")
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What's 12 + 30?\n\n  Say  it in 東京."},
    {"role": "assistant", "content": "42 <|im_start|> 🙂"},
    {"role": "user", "content": "And now?"},
]


@dataclasses.dataclass
class Tiny:
    folder: Path
    model: Any
    tokenizer: Any
    tokens: list[int]

    def logits(self) -> np.ndarray:
        with torch.no_grad():
            return self.model(torch.tensor([self.tokens])).logits[0].numpy()


def make_tiny(folder: Path, **changes: Any) -> Tiny:
    from transformers import LlamaConfig

    from nbtune.models.gguf_file.pretokenizers import QWEN2

    tokenizer = save_tokenizer(byte_level([split(QWEN2)]), folder)
    config = LlamaConfig(
        **{
            "vocab_size": len(tokenizer) + 3,
            "hidden_size": 256,
            "intermediate_size": 512,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 256,
            "tie_word_embeddings": True,
            **changes,
        }
    )
    model = save_model(config, folder)
    tokens = tokenizer("The people over there said: 2024 東京 def return import lambda")["input_ids"]
    return Tiny(folder, model, tokenizer, tokens)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return make_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def files(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    out = tmp_path_factory.mktemp("gguf")
    made = export_gguf(ExportSource(tiny.folder, name="owner/tiny"), ["f32", "f16", "bf16", "q8_0", "q4_0"], out)
    assert sorted(path.name for path in out.iterdir()) == sorted(f"tiny-{file.type}.gguf" for file in made)
    return {file.type: file.path for file in made}


def runner(path: Path | None = None) -> LlamaOracle:
    return LlamaOracle(path, library=llama_library())


def difference(got: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference of two sets of logits, relative to their range."""
    return float(np.abs(got - expected).max() / (expected.max() - expected.min()))


def dequantised(tiny: Tiny, path: Path) -> np.ndarray:
    """transformers' logits with the weights that gguf's own decoder reads from the file."""
    from gguf import GGUFReader, dequantize
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny.folder)
    names = {family_tensor.name: source for family_tensor, source in _sources(tiny)}
    state = {}
    for tensor in GGUFReader(path).tensors:
        value = torch.tensor(
            dequantize(tensor.data, tensor.tensor_type).reshape(tuple(int(n) for n in tensor.shape[::-1]))
        )
        heads = {"attn_q": 4, "attn_k": 2}.get(tensor.name.split(".")[-2])
        if heads:  # back to transformers' order of rows
            value = value.reshape(heads, -1, 2, value.shape[1]).transpose(1, 2).reshape(value.shape)
        state[names[tensor.name]] = value
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert (missing, unexpected) == (["lm_head.weight"], [])
    with torch.no_grad():
        return model(torch.tensor([tiny.tokens])).logits[0].numpy()


def _sources(tiny: Tiny) -> list[tuple[Any, str]]:
    from nbtune.export.merge import MergedModel

    model = MergedModel(ExportSource(tiny.folder))
    config = Config(model.config)
    family = families.family_of(config)
    found = []
    for source in list(model.names):
        model.names = [source]
        found += [(tensor, source) for tensor in family.tensors(config, model)]
    return found


def test_every_token_is_the_same(tiny: Tiny, files: dict[str, Path]) -> None:
    texts = strings(1000, specials=SPECIALS)
    with runner(files["f16"]) as llama:
        got = llama.tokenize(texts)
    assert got == [tiny.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]


def test_the_chat_template_and_its_tokens_are_the_same(tiny: Tiny, files: dict[str, Path]) -> None:
    text = tiny.tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
    with runner(files["f16"]) as llama:
        assert llama.info["chat_template"] == tiny.tokenizer.chat_template
        assert llama.info["ends"] == [tiny.tokenizer.eos_token_id]
        tokens = llama.tokenize([text], add_special=True)[0]
    assert tokens == tiny.tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, return_dict=False)


@pytest.mark.parametrize(("kind", "limit"), [("f32", 1e-5), ("f16", 2e-3), ("bf16", 2e-2)])
def test_logits(tiny: Tiny, files: dict[str, Path], kind: str, limit: float) -> None:
    """These random weights are four times the usual size, to make differences larger than a trained model's are."""
    with runner(files[kind]) as llama:
        assert difference(llama.logits(tiny.tokens), tiny.logits()) < limit


@pytest.mark.parametrize(("kind", "limit"), [("f16", 1e-3), ("q8_0", 3e-2)])
def test_what_is_lost_is_what_the_decoder_explains(tiny: Tiny, files: dict[str, Path], kind: str, limit: float) -> None:
    """llama.cpp rounds activations to the type of the weights, which leaves `limit`; the weights themselves agree."""
    with runner(files[kind]) as llama:
        assert difference(llama.logits(tiny.tokens), dequantised(tiny, files[kind])) < limit


def test_q8_0_is_bit_for_bit_what_gguf_encodes(tiny: Tiny, files: dict[str, Path]) -> None:
    from gguf import GGUFReader, quants

    weight = tiny.model.model.layers[1].mlp.down_proj.weight.detach().numpy()
    tensor = next(t for t in GGUFReader(files["q8_0"]).tensors if t.name == "blk.1.ffn_down.weight")
    assert np.array_equal(tensor.data, quants.quantize(weight, tensor.tensor_type))


def test_a_file_in_parts_is_that_file(tiny: Tiny, files: dict[str, Path], tmp_path: Path) -> None:
    source = ExportSource(tiny.folder, name="owner/tiny")
    made = export_gguf(source, ["f16", "q8_0"], tmp_path, part_bytes=700_000)
    for file in some(made):
        parts = sorted(path for path in tmp_path.iterdir() if f"-{file.type}-" in path.name)
        assert len(parts) > 2
        names = [f"tiny-{file.type}-{n:05}-of-{len(parts):05}.gguf" for n in range(1, len(parts) + 1)]
        assert [path.name for path in parts] == names
        assert file.path == parts[0]
        assert file.bytes == sum(path.stat().st_size for path in parts)
        assert f"it is {len(parts)} files" in file.notes[-1]
        with runner(file.path) as apart, runner(files[file.type]) as whole:
            assert (apart.logits(tiny.tokens) == whole.logits(tiny.tokens)).all()
            assert apart.info["chat_template"] == whole.info["chat_template"]


def test_a_trap_no_permutation(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(families.FAMILIES, "llama", dataclasses.replace(families.LLAMA, permute=False))
    path = export_gguf(ExportSource(tiny.folder), ["f32"], tmp_path)[0].path
    with runner(path) as llama:
        assert difference(llama.logits(tiny.tokens), tiny.logits()) > 0.05


def test_a_trap_llama3_scaling_needs_its_factors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rope = {
        "rope_type": "llama3",
        "rope_theta": 10000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    }
    tiny = make_tiny(tmp_path / "model", rope_parameters=rope)
    source = ExportSource(tiny.folder, name="scaled")
    with runner(export_gguf(source, ["f32"], tmp_path)[0].path) as llama:
        assert difference(llama.logits(tiny.tokens), tiny.logits()) < 1e-5
    monkeypatch.setattr(family, "rope_tensors", lambda config, read: [])
    with runner(export_gguf(source, ["f32"], tmp_path)[0].path) as llama:
        assert difference(llama.logits(tiny.tokens), tiny.logits()) > 0.05


def test_a_trap_a_name_with_phi3_in_it(tiny: Tiny, tmp_path: Path) -> None:
    assert general_name("my-Phi-3-tune") == "my-phi_3-tune"
    path = export_gguf(ExportSource(tiny.folder, name="my-phi-3-phi3-tune"), ["f16"], tmp_path)[0].path
    assert path.name == "my-phi-3-phi3-tune-f16.gguf"
    with runner(path) as llama:
        assert llama.tokenize(["hello"]) == [tiny.tokenizer("hello")["input_ids"]]


def test_an_unknown_family_and_type_are_refused_before_any_work(tiny: Tiny, tmp_path: Path) -> None:
    import json
    import shutil

    folder = tmp_path / "alien"
    shutil.copytree(tiny.folder, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "alien"}))
    out = tmp_path / "out"
    with pytest.raises(ExportError, match="cannot write a 'alien' model"):
        export_gguf(ExportSource(folder), ["f16"], out)
    with pytest.raises(ExportError, match="no GGUF type 'q9_x'"):
        export_gguf(ExportSource(tiny.folder), ["q9_x"], out)
    (folder / "config.json").write_text(
        json.dumps({**config, "rope_parameters": {"rope_type": "proportional", "factor": 2.0}})
    )
    with pytest.raises(ExportError, match="factors of its rotary scaling"):
        export_gguf(ExportSource(folder), ["f16"], out)
    assert not out.exists() or list(out.iterdir()) == []


def test_a_bad_file_is_a_sentence(files: dict[str, Path], tmp_path: Path) -> None:
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(files["q8_0"].read_bytes()[:200_000])
    with pytest.raises(ExportError, match=r"does not load this file|crashed"):
        runner(bad)


@pytest.mark.filterwarnings("ignore")
def test_an_adapter_as_gguf_is_the_adapter(tiny: Tiny, files: dict[str, Path], tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    for options in (
        {"target_modules": "all-linear"},
        {"target_modules": ["q_proj", "k_proj", "o_proj"], "use_rslora": True, "alpha_pattern": {"q_proj": 3},
         "rank_pattern": {"k_proj": 2}},
    ):  # fmt: skip
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny.folder), LoraConfig(r=4, **options)).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_" in name:
                    parameter.add_(torch.randn_like(parameter) * 0.05)
            expected = model(torch.tensor([tiny.tokens])).logits[0].numpy()
        model.save_pretrained(tmp_path / "adapter")
        source = ExportSource(tiny.folder, tmp_path / "adapter", name="demo")
        made = export_adapter_gguf(source, tmp_path)
        assert made.path.name == "demo-lora-f32.gguf"
        with runner(files["f32"]) as llama:
            llama.use_adapter(made.path)
            assert difference(llama.logits(tiny.tokens), expected) < 1e-5
        with runner(export_gguf(source, ["f32"], tmp_path)[0].path) as llama:
            assert difference(llama.logits(tiny.tokens), expected) < 1e-5


def test_an_ollama_folder(tiny: Tiny, tmp_path: Path) -> None:
    made = export_ollama(ExportSource(tiny.folder, name="Demo"), tmp_path / "ollama")
    assert sorted(path.name for path in made.path.iterdir()) == ["Demo-q8_0.gguf", "Modelfile", "README.md"]
    text = (made.path / "Modelfile").read_text()
    assert text.startswith("FROM ./Demo-q8_0.gguf\n")
    assert 'PARAMETER stop "<|im_end|>"' in text
    assert 'if eq .Role "user" }}<|im_start|>user\n{{ .Content }}<|im_end|>\n' in text


def test_a_file_says_where_it_comes_from(tiny: Tiny, tmp_path: Path) -> None:
    """Names by the specification of GGUF; nothing of the machine, and nothing that nobody said."""
    from gguf import GGUFReader, Keys

    def general(path: Path) -> dict[str, Any]:
        fields = GGUFReader(path).fields
        return {key: field.contents() for key, field in fields.items() if key.startswith("general.")}

    folder = tmp_path / "ada" / "own-base"
    shutil.copytree(tiny.folder, folder)
    (folder / "README.md").write_text("---\nlicense: mit\nlanguage: [en, fr]\n---\n")
    source = ExportSource(folder, name="demo", base_id="owner/Base-2-0.6B-Instruct", method="dpo")
    [made] = export_gguf(source, ["q8_0"], tmp_path, "my demo")
    keys = general(made.path)
    numbers = sum(parameter.numel() for parameter in tiny.model.parameters())
    expected = {
        Keys.General.TYPE: "model",
        Keys.General.NAME: "my demo",
        Keys.General.BASENAME: "Base-2",
        Keys.General.FINETUNE: "my-demo",
        Keys.General.SIZE_LABEL: f"{numbers / 1e6:.1f}M",
        Keys.General.LICENSE: "mit",
        Keys.General.BASE_MODEL_COUNT: 1,
        Keys.General.BASE_MODEL_NAME.format(id=0): "Base-2-0.6B-Instruct",
        Keys.General.BASE_MODEL_ORGANIZATION.format(id=0): "owner",
        Keys.General.BASE_MODEL_REPO_URL.format(id=0): "https://huggingface.co/owner/Base-2-0.6B-Instruct",
        Keys.General.TAGS: ["nbtune", "dpo", "text-generation"],
        Keys.General.LANGUAGES: ["en", "fr"],
    }
    assert {key: keys.get(key) for key in expected} == expected
    (folder / "README.md").unlink()
    [made] = export_gguf(ExportSource(folder, name="demo", base_id=str(folder)), ["q8_0"], tmp_path)
    keys = general(made.path)
    assert keys["general.base_model.0.name"] == "own-base"
    assert not {"general.finetune", "general.license", "general.languages", "general.base_model.0.repo_url"} & {*keys}
    assert str(tmp_path) not in str(keys)


def test_the_embedded_model(tmp_path: Path) -> None:
    """nbtune/tiny, as `make demo` exports it: tokens, template, logits, and an answer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = Path(families.__file__).parents[2] / "models" / "embedded" / "weights"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = strings(1000, seed=2, specials=SPECIALS)
    made = {f.type: f.path for f in export_gguf(ExportSource(folder, name="tiny"), ["f16", "q8_0"], tmp_path)}
    prompt = tokenizer.apply_chat_template(CHAT[:2], add_generation_prompt=True, return_dict=False)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        expected = model(torch.tensor([prompt])).logits[0].numpy()
        answer = model.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False)[0, len(prompt) :].tolist()
    with runner(made["f16"]) as llama:
        assert llama.tokenize(texts) == [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        rendered = tokenizer.apply_chat_template(CHAT, tokenize=False)
        assert llama.tokenize([rendered], add_special=True)[0] == tokenizer(rendered)["input_ids"]
        assert difference(llama.logits(prompt), expected) < 1e-3
        assert llama.greedy(prompt, 12) == answer
    with runner(made["q8_0"]) as llama:
        assert difference(llama.logits(prompt), expected) < 2e-2
