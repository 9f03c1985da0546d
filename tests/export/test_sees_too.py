"""A model that also sees, tuned on text alone: merged back into what it was, and its language model written as GGUF."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from nbtune.export import ExportSource
from nbtune.export.gguf.lora import write_lora_gguf
from nbtune.export.merge import write_merged
from nbtune.export.reference_model import reference_model
from nbtune.models.adapters import save_adapter
from nbtune.spec import AdapterSpec
from tests.support.families import family_tokenizer
from tests.support.family_cases import CASES, DELTA, SHARED_EXPERT
from tests.support.llama import LlamaOracle, llama_library
from tests.support.run_alike import Ours
from tests.support.tiny_models import save_model

IDS = list(range(20, 60))


def gemma3(words: int) -> Any:
    """A tiny Gemma 3 with its tower."""
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    text = {
        "vocab_size": words + 3, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "head_dim": 16,
        "num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": 32, "max_position_embeddings": 512,
        "query_pre_attn_scalar": 16,
    }  # fmt: skip
    sees = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
        "patch_size": 14,
    }  # fmt: skip
    marks = {name: words + i for i, name in enumerate(("image_token_index", "boi_token_index", "eoi_token_index"))}
    images = {"mm_tokens_per_image": 4, **marks}
    return Gemma3ForConditionalGeneration(Gemma3Config(text_config=text, vision_config=sees, **images))


def gemma4(words: int) -> Any:
    """A tiny Gemma 4 with its tower."""
    from transformers import Gemma4Config, Gemma4ForConditionalGeneration

    text = {"vocab_size": words + 8, **CASES["gemma 4 moe"].options}
    sees = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 16,
        "num_key_value_heads": 2, "patch_size": 14, "position_embedding_size": 64,
    }  # fmt: skip
    names = ("image", "video", "audio", "boi", "eoi", "boa", "eoa")
    marks = {f"{name}_token_id": words + i for i, name in enumerate(names)}
    return Gemma4ForConditionalGeneration(
        Gemma4Config(text_config=text, vision_config=sees, audio_config=None, **marks)
    )


def llama4(words: int) -> Any:
    """A tiny Llama 4 with its tower."""
    from transformers import Llama4Config, Llama4ForConditionalGeneration

    sees = {
        "hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2,
        "image_size": 28, "patch_size": 14, "projector_input_dim": 32, "projector_output_dim": 32,
        "vision_output_dim": 32,
    }  # fmt: skip
    marks = {f"{name}_token_index": words + i for i, name in enumerate(("image", "boi", "eoi"))}
    text = {"vocab_size": words + len(marks), **CASES["llama 4"].options, "pad_token_id": 0}
    return Llama4ForConditionalGeneration(Llama4Config(text_config=text, vision_config=sees, **marks))


def qwen35(words: int, kind: str = "Qwen3_5", **more: Any) -> Any:
    """A tiny Qwen 3.5 with its tower."""
    import transformers

    sees = {
        "depth": 1, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "patch_size": 14, "out_hidden_size": 64,
        "num_position_embeddings": 16,
    }  # fmt: skip
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    marks = {name: words + i for i, name in enumerate(names)}
    text = {"vocab_size": words + len(marks), **DELTA, **more}
    config = getattr(transformers, f"{kind}Config")(text_config=text, vision_config=sees, **marks)
    return getattr(transformers, f"{kind}ForConditionalGeneration")(config)


def qwen35_moe(words: int) -> Any:
    return qwen35(words, "Qwen3_5Moe", **SHARED_EXPERT)


@pytest.fixture(
    scope="module",
    params=[
        (gemma3, "gemma"),
        (gemma4, "gemma"),
        (llama4, "llama3"),
        (qwen35, "qwen35"),
        (qwen35_moe, "qwen35"),
    ],
)
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ExportSource:
    """A model that sees, and a LoRA on the text whose numbers are no zeros."""
    make, tokenizer = request.param
    folder = tmp_path_factory.mktemp("sees")
    base = folder / "base"
    words = len(family_tokenizer(tokenizer, base))
    torch.manual_seed(0)
    make(words).save_pretrained(base)
    if make is qwen35:  # as published ones have it: what predicts further tokens, which stock transformers leaves out
        save_file(
            {**load_file(base / "model.safetensors"), "mtp.fc.weight": torch.ones(2, 2)}, base / "model.safetensors"
        )
    model = Ours(base, AdapterSpec(r=4), accelerate=False).model
    assert not any("vision" in name for name, p in model.named_parameters() if p.requires_grad)
    return ExportSource(base, save_adapter(model, folder / "adapter"), name="one")


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=torch.tensor([IDS])).logits[0]


def test_it_is_merged_into_the_model_that_it_was(source: ExportSource, tmp_path: Path) -> None:
    import transformers

    write_merged(source, tmp_path / "merged", "float32")
    [name] = json.loads((source.base / "config.json").read_text())["architectures"]
    stock, said = getattr(transformers, name).from_pretrained(
        tmp_path / "merged", dtype=torch.float32, output_loading_info=True
    )
    assert not any(said[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    stock = stock.language_model if name.startswith("Llama4") else stock  # which of text alone looks for its pictures
    with reference_model(source) as model:
        true = logits(model)
        with model.disable_adapter():
            assert float((logits(model) - true).abs().max()) > 1e-3
    assert float((logits(stock) - true).abs().max()) <= 1e-5 * float(true.max() - true.min())


def test_its_language_model_and_the_adapter_run_in_llama_cpp(source: ExportSource, tmp_path: Path) -> None:
    from nbtune.export.gguf.writer import write_gguf

    with reference_model(source) as model:
        true = logits(model)
    [file] = write_gguf(source, ["f32"], tmp_path)
    assert any("language model alone" in note for note in file.notes)
    bare = ExportSource(source.base, None, name="bare")
    [base] = write_gguf(bare, ["f32"], tmp_path)
    lora = write_lora_gguf(source, tmp_path)
    for path, adapter in ((file.path, None), (base.path, lora.path)):
        with LlamaOracle(path, library=llama_library(), n_ctx=64) as llama:
            if adapter is not None:
                llama.use_adapter(adapter)
            got = torch.from_numpy(llama.logits(IDS).copy())
        assert float((got - true).abs().max()) <= 1e-3 * float(true.max() - true.min())


def test_a_gemma_3n_is_written_whose_tower_no_library_here_makes(tmp_path: Path) -> None:
    """Named as files with its tower are: of that nothing is in the file, and what is is its language model."""
    import transformers

    from nbtune.export.gguf.writer import write_gguf

    case, base = CASES["gemma 3n"], tmp_path / "base"
    config = getattr(transformers, case.config)(vocab_size=len(family_tokenizer("gemma", base)), **case.options)
    model = save_model(config, tmp_path / "text", spread=3.0)
    stored = load_file(tmp_path / "text" / "model.safetensors")
    sees = {
        "model.vision_tower.timm_model.blocks.0.weight": torch.ones(2, 2),
        "model.embed_vision.embedding.weight": torch.ones(2, 2),
    }
    save_file(
        {**{name.replace("model.", "model.language_model.", 1): weight for name, weight in stored.items()}, **sees},
        base / "model.safetensors",
    )
    text = json.loads((tmp_path / "text" / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({"model_type": "gemma3n", "text_config": text, "vision_config": {}}))
    [file] = write_gguf(ExportSource(base, None, name="one"), ["f32"], tmp_path)
    assert any("language model alone" in note for note in file.notes)
    assert any("sparse gates" in note for note in file.notes)
    true = logits(model)
    with LlamaOracle(file.path, library=llama_library(), n_ctx=64) as llama:
        got = torch.from_numpy(llama.logits(IDS).copy())
    assert float((got - true).abs().max()) <= 1e-3 * float(true.max() - true.min())
