"""A model that is handed over trains as the one of its name does, and is afterwards what it was before, bit for bit."""

from __future__ import annotations

import copy
import gc
import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

import nbtune
from nbtune import events
from nbtune.errors import NbtuneError, SpecError, TrainError
from nbtune.widgets.row_inspection import Inspection
from tests.engine.conftest import ROWS, SPEC
from tests.support.every import every

FIELDS = {key: value for key, value in SPEC.items() if key not in ("model", "data")} | {"steps": 2, "data": ROWS}
LOST = {"learning_rate": 1e30, "max_grad_norm": 0, "lr_scheduler_type": "constant", "warmup_ratio": 0}


def _stock(dtype: torch.dtype = torch.float32) -> Any:
    return AutoModelForCausalLM.from_pretrained(nbtune.models.resolve("nbtune/tiny"), dtype=dtype)


def _with_a_lora(**more: Any) -> Any:
    torch.manual_seed(3)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM", **more)
    model = get_peft_model(_stock(), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    return model


def _bytes(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()


def state(model: Any) -> dict[str, Any]:
    """All of a model that somebody could notice."""
    found: dict[str, Any] = {"config": model.config.to_dict(), "generation": model.generation_config.to_dict()}
    for name, module in model.named_modules():
        hooks = {key: list(value) for key, value in vars(module).items() if key.endswith("hooks")}
        found[f"module {name}"] = (id(module), module.training, sorted(vars(module)), str(hooks))
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        place = id(tensor), tensor.data_ptr(), tensor.requires_grad, tensor.dtype, tensor.device, tensor.grad is None
        found[name] = (*place, _bytes(tensor))
    return copy.deepcopy(found)


@pytest.mark.parametrize("case", ["stock", "full", "peft", "failed", "stopped"])
def test_it_is_left_as_it_was(case: str, until: Any) -> None:
    model, called = _with_a_lora() if case == "peft" else _stock(), []
    model.eval() if case == "stock" else model.train()
    model.generation_config.max_new_tokens = 7
    model.get_input_embeddings().weight.requires_grad_(False)
    list(model.modules())[-1].register_forward_hook(lambda *_: called.append(1))
    if case == "stock":
        for module in model.modules():
            if hasattr(module, "gradient_checkpointing"):
                module.gradient_checkpointing = True
    before = state(model)
    more: dict[str, Any] = {"adapter": {"type": "full"}} if case == "full" else LOST if case == "failed" else {}
    run = nbtune.finetune({**FIELDS, **more, "steps": 10_000 if case == "stopped" else 2}, model=model)
    if case == "failed":
        with pytest.raises(TrainError, match="is no number any more"):
            run.wait()
    elif case == "stopped":
        until(run, lambda event: isinstance(event, events.Step))
        assert state(model) == before, "nor while it is trained"
        run.stop(wait=True)
        assert run.state == "stopped"
    else:
        run.wait()
        assert run.generate("What is 1 plus 1?", max_new_tokens=4)
    assert state(model) == before
    assert not called


def test_it_trains_what_the_one_of_its_name_trains(tmp_path: Path) -> None:
    by_value = nbtune.finetune(FIELDS, model=_stock(), name="value").wait()
    by_name = nbtune.finetune(FIELDS, model="nbtune/tiny", dtype="fp32", device="cpu", name="name").wait()
    assert by_value.spec.model == "var:model"
    assert by_value.spec.tokenizer == "nbtune/tiny", "where the model came from"
    assert by_value.history["loss"].to_list() == by_name.history["loss"].to_list()
    for file in ("adapter_model.safetensors", "tokenizer.json", "chat_template.jinja", "adapter_config.json"):
        assert (by_value.folder / "adapter" / file).read_bytes() == (by_name.folder / "adapter" / file).read_bytes()
    question = "What is 2 plus 3?"
    assert by_value.generate(question, max_new_tokens=6) == by_name.generate(question, max_new_tokens=6)
    merged = [run.export.merged(dtype="float32").path / "model.safetensors" for run in (by_value, by_name)]
    assert merged[0].read_bytes() == merged[1].read_bytes()
    assert nbtune.repeat(by_value.folder).wait().history["loss"].to_list() == by_name.history["loss"].to_list()


def test_a_peft_model_goes_on_with_what_it_has_learnt() -> None:
    model = _with_a_lora()
    run = nbtune.finetune(FIELDS, model=model, learning_rate=1e-12).wait()
    adapter = run.spec.adapter
    assert (adapter.r, adapter.lora_alpha, set(adapter.target_modules)) == (4, 8.0, {"q_proj", "down_proj"})
    reloaded = PeftModel.from_pretrained(_stock(), run.folder / "adapter")
    mine = {name: p for name, p in model.named_parameters() if "lora_" in name}
    theirs = {name: p for name, p in reloaded.named_parameters() if "lora_" in name}
    assert mine.keys() == theirs.keys()
    assert every(torch.allclose(mine[name], theirs[name], atol=1e-8) for name in mine)
    with pytest.raises(SpecError, match=r"adapter: \{r: 8\}.*has 4"):
        nbtune.validate(FIELDS, model=model, adapter={"r": 8})
    with pytest.raises(SpecError, match="begins with what it has learnt"):
        nbtune.validate(FIELDS, model=model, start_from="demo")


@pytest.mark.filterwarnings("ignore:`lora_bias=True` was passed")
@pytest.mark.parametrize(
    "more", [{"lora_bias": True}, {"trainable_token_indices": [1]}, {"alora_invocation_tokens": [5]}], ids=str
)
def test_a_peft_model_that_has_learnt_more_than_a_plain_lora_is_refused(more: dict[str, Any]) -> None:
    """What is no A and no B would be left behind, or act otherwise, without a word."""
    with pytest.raises(SpecError, match=f"one plain LoRA are trained on; it has {next(iter(more))}"):
        nbtune.validate(FIELDS, model=_with_a_lora(**more))


def test_preferences_are_measured_against_what_the_peft_model_had_learnt() -> None:
    pairs = [{"prompt": f"What is {n}?", "chosen": "A number.", "rejected": "No idea."} for n in range(8)]
    run = nbtune.finetune(FIELDS, model=_with_a_lora(), data=pairs, method="dpo", steps=1, beta=0.1).wait()
    assert run.history["loss"].iloc[0] == pytest.approx(0.6931, abs=1e-4), "ln 2: not the base"


def test_a_variable_s_name_is_told_from_a_hub_id_and_a_folder() -> None:
    mine = _stock()
    names = {"mine": mine, "rows": ROWS, "tok": AutoTokenizer.from_pretrained(nbtune.models.resolve("nbtune/tiny"))}
    body = {**FIELDS, "data": "rows"}
    for model in ("mine", "var:mine", mine):
        spec = nbtune.validate(body, model=model, tokenizer="tok", rows=names)
        assert (spec.model, spec.tokenizer) == ("var:mine", "var:tok")
    assert nbtune.validate(body, model="owner/mine", rows=names).model == "owner/mine"
    assert nbtune.validate(body, model="nbtune/tiny", rows={**names, "tiny": mine}).model == "nbtune/tiny"
    assert Inspection.of({**body, "model": "mine"}, names).row(0) == Inspection.of(body, names).row(0)
    Path("mine").mkdir()
    with pytest.raises(SpecError, match="`mine` is a variable and a folder") as caught:
        nbtune.validate(body, model="mine", rows=names)
    assert "`var:mine` or `./mine`" in caught.value.fix


REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "detached": ({"detach": True}, "cannot be detached", "model: my-model"),
    "several processes": ({"gpus": 2, "device": "cpu"}, "not on `gpus: 2`", "model: my-model"),
    "four bits": ({"adapter": "qlora"}, "no adapter `qlora`", "model: my-model"),
    "streamed": ({"weights": "streamed"}, "no weights `streamed`", "model: my-model"),
    "another precision": ({"dtype": "bf16"}, "`dtype: bf16` is asked for", "drop `dtype`"),
    "no variable": ({"model": "var:modle"}, "no variable `modle`", "did you mean `var:model`"),
    "no model": ({"model": "var:rows"}, "type list is not a model", "my-model"),
    "something else": ({"model": 3}, "type int is not a model", "its Hub id, or its folder"),
    "a tokenizer for it": ({"tokenizer": 3}, "type int is not a tokenizer", "its Hub id, or its folder"),
}


def test_what_says_no_words_is_refused() -> None:
    base = _stock().model  # as `AutoModel` loads it
    with pytest.raises(SpecError, match="LlamaModel, which has no head") as caught:
        nbtune.finetune({**FIELDS, "data": ROWS}, model=base)
    assert "AutoModelForCausalLM" in caught.value.fix


def test_a_pipeline_is_told_what_of_it_is_the_model() -> None:
    class Pipeline:
        model = _stock()

    with pytest.raises(SpecError, match="type Pipeline is not a model") as caught:
        nbtune.finetune({**FIELDS, "data": ROWS}, model=Pipeline())
    assert "`….model`" in caught.value.fix


@pytest.mark.parametrize("case", REFUSED)
def test_what_needs_files_says_so_in_a_sentence(case: str) -> None:
    fields, cause, fix = REFUSED[case]
    model = _stock()
    with pytest.raises(SpecError, match=cause) as caught:
        nbtune.finetune(**{**FIELDS, "model": model, "rows": {"model": model, "rows": ROWS}, **fields})
    assert fix in str(caught.value)
    assert not Path("runs").exists() or not any(Path("runs").iterdir())


@pytest.mark.slow
def test_another_session_resumes_once_the_weights_are_in_the_folder(until: Any) -> None:
    model = _stock()
    run = nbtune.finetune({**FIELDS, "steps": 4, "checkpoint": {"every": 1}}, model=model).wait()
    whole = run.history["loss"].to_list()
    folder = run.folder
    run.free()
    del run, model
    gc.collect()
    again = nbtune.attach(folder)
    with pytest.raises(NbtuneError, match="handed over as an object, which this session no longer has") as caught:
        again.resume(step=3)
    assert "save_pretrained" in caught.value.fix
    _stock().save_pretrained(folder / "model")
    again.resume(step=3, detach=True).wait()
    assert again.history["loss"].to_list()[:4] == pytest.approx(whole)


def test_a_tokenizer_of_one_s_own_is_kept_byte_for_byte(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(nbtune.models.resolve("nbtune/tiny"))
    tokenizer.chat_template = tokenizer.chat_template.replace("user", "user") + "{# mine #}"
    tokenizer.save_pretrained(tmp_path / "saved")
    run = nbtune.finetune(FIELDS, tokenizer=tokenizer).wait()
    assert run.spec.tokenizer == "var:tokenizer"
    for file in (tmp_path / "saved").iterdir():
        assert (run.folder / "adapter" / file.name).read_bytes() == file.read_bytes(), file.name
    by_folder = nbtune.finetune(FIELDS, tokenizer=tmp_path / "saved", name="folder").wait()
    assert by_folder.history["loss"].to_list() == run.history["loss"].to_list()
    for many in (tokenizer, tmp_path / "saved"):
        assert nbtune.plan(FIELDS, tokenizer=many).rows == len(ROWS)
    tokenizer.add_tokens([f"<mine {n}>" for n in range(9000)])
    with pytest.raises(SpecError, match=r"the tokenizer has tokens up to number .* and the model knows"):
        nbtune.plan(FIELDS, tokenizer=tokenizer)
    assert nbtune.finetune(FIELDS, model="nbtune/tiny", name="plain").wait().state == "finished"
