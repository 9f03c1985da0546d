"""Heads of scores as transformers' own classes have them: under their name there, or refused where there is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

import nbtune
from nbtune.errors import ExportError
from tests.fuzz.pair_levels import ROWS
from tests.support.family_cases import SIZES
from tests.support.tiny_models import save_speaking

GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 2}
SMALL = {**SIZES, "hidden_size": 32, "intermediate_size": 64}
GEMMA = {**SMALL, "head_dim": 16, "query_pre_attn_scalar": 16, "layer_types": ["sliding_attention", "full_attention"]}
WORDS = ["Row", "of", "many", "ends"]


def begin(start: Any, base: Path, method: str, **more: Any) -> Any:
    kind = {"token_classification": "tagged", "prm": "stepwise"}.get(method, "labelled")
    fields: dict[str, Any] = {"steps": 2, "learning_rate": 1e-2, "eval": {"split": 0}, "dtype": "fp32", **more}
    return start(rows=ROWS[kind], model=str(base), method=method, **fields).wait()


def said_of(model: Any, tokenizer: Any) -> torch.Tensor:
    """What a model of transformers says of `WORDS`, each at its line break."""
    inputs = tokenizer("".join(f"{word}\n" for word in WORDS), return_tensors="pt")
    ends = [inputs.char_to_token(sum(len(word) + 1 for word in WORDS[: k + 1]) - 1) for k in range(len(WORDS))]
    with torch.no_grad():
        return model.eval()(**inputs).logits[0, ends].softmax(-1)


@pytest.mark.parametrize("adapter", ["lora", pytest.param("full", marks=pytest.mark.slow)])
def test_a_layer_that_is_called_otherwise_is_saved_so(start: Any, tmp_path: Path, adapter: str) -> None:
    """GPT-2's class calls it `classifier`: as `score` it was passed over, and a drawn one stood in its place."""
    from peft import PeftModel

    base = save_speaking("gpt2", tmp_path / "base", **GPT2)
    run = begin(start, base, "token_classification", adapter=adapter)
    own = torch.tensor([list(word.values()) for word in run.score([WORDS])[0]])
    kind, tokenizer = transformers.AutoModelForTokenClassification, nbtune.models.load_tokenizer(str(base))
    whole, told = kind.from_pretrained(run.export.merged(tmp_path / "merged").path, output_loading_info=True)
    assert not {*told["missing_keys"], *told["unexpected_keys"]}
    assert whole.config.architectures == ["GPT2ForTokenClassification"]
    torch.testing.assert_close(said_of(whole, tokenizer), own, rtol=1e-3, atol=1e-5)
    if adapter == "full":
        return
    model = PeftModel.from_pretrained(kind.from_pretrained(base, num_labels=2), run.folder / "adapter")
    torch.testing.assert_close(said_of(model, tokenizer), own, rtol=1e-3, atol=1e-5)
    more: Any = {"start_from": str(run.folder / "adapter"), "learning_rate": 1e-12, "adapter": {}, "name": "on"}
    went_on = begin(start, base, "token_classification", **more)
    before, after = (load_file(one.folder / "adapter" / "adapter_model.safetensors") for one in (run, went_on))
    assert any(".classifier." in name for name in before)
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("family", "method", "of"),
    [
        ("gemma3_text", "prm", "tokens"),
        pytest.param("gemma3_text", "token_classification", "tokens", marks=pytest.mark.slow),
        pytest.param("granite", "classification", "texts", marks=pytest.mark.slow),
    ],
)
def test_where_there_is_no_class_the_plan_says_so(
    start: Any, tmp_path: Path, family: str, method: str, of: str
) -> None:
    base = save_speaking(family, tmp_path / "base", **(GEMMA if family == "gemma3_text" else SMALL))
    run = begin(start, base, method)
    sentence = f"transformers has no class that scores {of} of a {family} by one layer, so that nothing would load it"
    asked = run.spec.model_copy(update={"data": (), "steps": 1}).model_dump(exclude_defaults=True)
    rows = ROWS[{"prm": "stepwise", "classification": "labelled"}.get(method, "tagged")]
    plan = nbtune.plan({**asked, "data": "rows"}, rows={"rows": rows})
    for told in (plan, run.plan):
        assert dict(told.abilities.rows())["merging"] == f"cannot be merged: {sentence}"
    with pytest.raises(ExportError, match="transformers has no class"):
        run.export.merged(tmp_path / "merged")
    assert run.snippet().startswith("# transformers has no class")
    assert "AutoModelFor" not in run.model_card("me/it")


def test_of_which_families_there_are_classes() -> None:
    from nbtune.models.heads import layer_of

    for name, text, token in (
        ("LlamaConfig", "score", "score"),
        ("GPT2Config", "score", "classifier"),
        ("GPTNeoXConfig", "score", "classifier"),
        ("GraniteConfig", "", ""),
        ("OPTConfig", "score", ""),
        ("ModernBertDecoderConfig", "", ""),  # whose class has a layer more
    ):
        config = getattr(transformers, name)()
        assert (layer_of(config, "text"), layer_of(config, "token")) == (text, token), name


def test_a_config_whose_class_has_a_layer_without_a_bias_has_no_layer_of_ours() -> None:
    """Its class would pass over the bias; another config of the class is asked by itself."""
    from nbtune.models.heads import layer_of

    with_bias, without = (
        transformers.LlamaConfig(**SMALL, token_classification_bias=biased) for biased in (True, False)
    )
    for _ in range(2):
        assert (layer_of(with_bias, "token"), layer_of(without, "token")) == ("score", "")
        assert layer_of(without, "text") == "score"
