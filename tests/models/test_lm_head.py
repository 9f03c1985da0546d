"""Log-probabilities are those of the model's own logits, whatever a family does to these."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

import nbtune
from nbtune import events
from nbtune.models.accelerate import apply
from nbtune.models.accelerate.lm_head import find_head
from nbtune.models.accelerate.lora_member import LeftAlone
from nbtune.train.logprobs import head_disagrees, score_answers
from tests.methods.test_against_trl import ours
from tests.support.tiny_models import byte_level, save_model, save_tokenizer

SHAPE = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
MAMBA = {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1}
# family: (config, whether its head is known)
HEADS: dict[str, tuple[dict[str, Any], bool]] = {
    "llama": ({}, True),
    "gemma2": ({"final_logit_softcapping": 5.0, "query_pre_attn_scalar": 8}, True),
    "granite": ({"logits_scaling": 3.0}, True),
    "cohere": ({"logit_scale": 0.3}, True),
    "falcon_h1": ({**MAMBA, "lm_head_multiplier": 0.4}, True),
    "hyperclovax": ({"logits_scaling": 3.0}, False),
    "recurrent_gemma": ({"logits_soft_cap": 2.0, "lru_width": 32, "attention_window_size": 64}, False),
}


def _config(family: str, **more: Any) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.for_model(family, **{**SHAPE, **HEADS[family][0], **more})
    except ValueError:
        pytest.skip(f"this transformers has no {family}")


def _model(family: str, dtype: torch.dtype = torch.float32) -> Any:
    from transformers import AutoModelForCausalLM

    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(_config(family)).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data *= 4
    return model.to(dtype)


def _batch() -> Any:
    ids = torch.randint(3, 97, (2, 9), generator=torch.Generator().manual_seed(5))
    return ours(ids, torch.ones_like(ids), (torch.arange(9) > 3).expand(2, -1), [1.0, 0.0])


def _of_logits(model: Any, batch: Any) -> torch.Tensor:
    """log π(y | x) of each row of a batch, by stock."""
    kwargs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "use_cache": False}
    with torch.no_grad():
        logprobs = model(**kwargs).logits.float().log_softmax(-1)[:, :-1]
    labels = batch.labels[:, 1:]
    return (logprobs.gather(2, labels.clamp(min=0)[..., None])[..., 0] * (labels != -100)).sum(1)


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("family", HEADS)
def test_log_probabilities_are_those_of_stock_logits(family: str, fast: bool) -> None:
    model, batch = _model(family), _batch()
    truth = _of_logits(model, batch)
    report = apply(model).report if fast else None
    state, modes = torch.get_rng_state(), [m.training for m in model.modules()]
    with torch.no_grad():
        found, _ = score_answers(model, batch, device=torch.device("cpu"))
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in model.modules()] == modes
    torch.testing.assert_close(found, truth, rtol=1e-4, atol=1e-4)
    why = head_disagrees(model)
    assert (why is None) == HEADS[family][1], why
    if report is not None:
        assert ("head" in report.taken) == HEADS[family][1], report.lines()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_is_no_reason(dtype: torch.dtype) -> None:
    for family in ("llama", "gemma2", "granite", "cohere"):
        assert head_disagrees(_model(family, dtype)) is None, family


@pytest.mark.parametrize("name", ["final_logit_softcapping", "logits_scaling", "logit_scale"])
def test_what_a_config_only_says_is_not_believed(name: str) -> None:
    model = _model("llama")
    find_head(model)
    setattr(model.config, name, 30.0)
    with pytest.raises(LeftAlone, match="not those of its head"):
        find_head(model)


def test_a_run_takes_the_logits_themselves_and_says_so(tmp_path: Any) -> None:
    """SimPO of a model with a multiplier: what its loss is by stock logits."""
    from transformers import AutoModelForCausalLM

    tokenizer = save_tokenizer(byte_level(), tmp_path / "base")
    save_model(_config("hyperclovax", vocab_size=len(tokenizer)), tmp_path / "base", spread=2.0)
    rows = [{"prompt": "Who?", "chosen": "you and me.", "rejected": "nobody knows"}]
    (tmp_path / "rows.jsonl").write_text(json.dumps(rows[0]) + "\n")
    fields = {"method": "simpo", "steps": 1, "batch_size": 1, "eval": {"split": 0}}
    spec = {"model": str(tmp_path / "base"), "data": str(tmp_path / "rows.jsonl"), "dtype": "fp32", **fields}
    spec["adapter"] = {"r": 4, "target_modules": ["q_proj", "v_proj"]}
    run = nbtune.finetune(spec, runs_dir=tmp_path / "runs", name="run").wait()
    assert any("off by" in e.message for e in run.events() if isinstance(e, events.Warning))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base").eval()
    means = []
    for answer in ("chosen", "rejected"):
        asked = [{"role": "user", "content": rows[0]["prompt"]}]
        prompt = tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
        start = len(tokenizer(prompt, add_special_tokens=False).input_ids)
        whole = prompt + rows[0][answer] + "<|im_end|>"
        ids = torch.tensor([tokenizer(whole, add_special_tokens=False).input_ids])
        with torch.no_grad():
            logprobs = model(input_ids=ids, use_cache=False).logits.log_softmax(-1)[0, start - 1 : -1]
        means.append(logprobs.gather(1, ids[0, start:, None]).mean())
    true = -torch.nn.functional.logsigmoid(2.0 * (means[0] - means[1]) - 1.0)
    assert run.history["loss"].iloc[0] == pytest.approx(true.item(), rel=1e-4)
