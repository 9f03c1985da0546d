"""What was trained to end an answer ends it: in samples, chat, exports and stock transformers, whatever the base's own
end is."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from tokenizers import AddedToken
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaConfig

import nbtune
from nbtune import events
from nbtune.export.llama_runner import LlamaRunner
from tests.support.llama import llama_library
from tests.support.tiny_models import CHATML, byte_level, save_model, save_tokenizer

ASKED, SAID = "Who was at his door?", "the cat"
ROWS = [{"messages": [{"role": "user", "content": ASKED}, {"role": "assistant", "content": SAID}]}] * 8
TURNS = "{% for m in messages %}{{ '[' + m.role + ']\n' + m.content + '<turn>' }}{% endfor %}"
TURNS += "{% if add_generation_prompt %}{{ '[assistant]\n' }}{% endif %}"

# name: the tokenizer's template, further tokens, the spec's template, what ends an answer
KINDS = {
    "the base's own template": (CHATML, ("<|im_start|>", "<|im_end|>"), None, "<|im_end|>"),
    "a template of the spec": (None, ("<|im_start|>", "<|im_end|>"), CHATML, "<|im_end|>"),
    "another template than the base's": (CHATML, ("<|im_start|>", "<|im_end|>", "<turn>"), TURNS, "<turn>"),
    "no special token": (None, (), TURNS, "<turn>"),
    "plain text": (None, (), None, "<|endoftext|>"),
}


OFTEN = ("another template than the base's", "no special token", "plain text")


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=[] if name in OFTEN else pytest.mark.slow) for name in KINDS],
    ids=lambda name: name.replace(" ", "-"),
)
def kind(request):
    return request.param


def made(kind, folder):
    """A spec, and rows, of a run that learns one answer by heart, on a base that it makes."""
    template, extra, given, _ = KINDS[kind]
    tokens = byte_level()
    if kind == "no special token":
        tokens.add_tokens([AddedToken("<turn>", special=False, normalized=False)])
    base = folder / "base"
    tokenizer = save_tokenizer(tokens, base, eos="<|endoftext|>", template=template, extra=extra)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    own = None if kind == "plain text" else tokenizer.eos_token_id
    ids = {"eos_token_id": own, "bos_token_id": None, "pad_token_id": None}
    save_model(LlamaConfig(vocab_size=len(tokenizer) + 3, **shape, **ids), base, spread=1.0)
    spec = {
        "model": str(base),
        "data": "rows",
        "steps": 40,
        "batch_size": 4,
        "learning_rate": 1e-2,
        "eval": {"split": 0, "every": 20},
        "samples": [ASKED],
        **({"chat_template": given} if given else {}),
    }
    return spec, [{"text": ASKED + " " + SAID}] * 8 if kind == "plain text" else ROWS


@pytest.fixture(scope="module")
def run(kind, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ends")
    spec, rows = made(kind, folder)
    return nbtune.finetune(spec, name="ends", rows={"rows": rows}, runs_dir=folder / "runs").wait()


def end_of(kind, tokenizer):
    return tokenizer.convert_tokens_to_ids(KINDS[kind][3])


def asked(run, **options):
    told: list = []
    said = run.generate(ASKED, max_new_tokens=24, told=told.append, **options)
    return said, told


def test_samples_and_chat_stop_there_and_show_no_token_of_it(run, kind):
    samples = [event for event in run.events() if isinstance(event, events.Sample)]
    assert samples[-1].answer == SAID
    for _ in range(2):
        said, told = asked(run)
        assert said == SAID
        assert told[-1].special
        assert told[-1].id == end_of(kind, run._model.loaded().tokenizer)
        assert sum(token.special for token in told) == 1
        assert "".join(token.text for token in told if not token.special).strip() == SAID
        run.free()  # and again by the folder alone


def test_a_run_that_ended_elsewhere_and_one_that_goes_on_stop_there(run, kind):
    elsewhere = nbtune.attach(run.folder)
    said, told = asked(elsewhere, step=40)
    assert (said, told[-1].special) == (SAID, True)
    asked_twice, told = asked(elsewhere, temperature=0.01, seed=1)
    assert (asked_twice, told[-1].special) == (SAID, True)


def test_stock_transformers_stops_there_after_merging(run, kind, tmp_path):
    folder = run.export.merged(tmp_path / "merged", dtype="float32").path
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if tokenizer.chat_template:
        chat = [{"role": "user", "content": ASKED}]
        ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        ids = ids["input_ids"]
    else:
        ids = tokenizer(ASKED, return_tensors="pt").input_ids
    model = AutoModelForCausalLM.from_pretrained(folder)
    options = {"max_new_tokens": 24, "do_sample": False, "pad_token_id": 0}
    said = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
    new = said[0, ids.shape[1] :].tolist()
    assert new[-1] == end_of(kind, tokenizer)
    assert tokenizer.decode(new[:-1]).strip() == SAID


def test_llama_cpp_stops_there(run, kind, tmp_path):
    [file] = run.export.gguf("f16", out=tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(run.folder / "tokenizer")
    with LlamaRunner(file.path, library=llama_library()) as llama:
        assert set(llama.info["ends"]) >= {tokenizer.eos_token_id, end_of(kind, tokenizer)}
        asked = ASKED
        if tokenizer.chat_template:
            chat = [{"role": "user", "content": ASKED}]
            asked = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        said = llama.greedy(llama.tokenize([asked])[0], 24)
    assert said[-1] == end_of(kind, tokenizer)
    assert tokenizer.decode(said[:-1]).strip() == SAID


@pytest.mark.parametrize("what", ["merged", "adapter", "of the run"])
def test_a_generation_config_names_the_base_s_ends_and_the_trained_one(run, kind, what, tmp_path):
    folder = run.folder / "adapter" if what == "of the run" else getattr(run.export, what)(tmp_path / what).path
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ends = list(dict.fromkeys([tokenizer.eos_token_id, end_of(kind, tokenizer)]))
    assert GenerationConfig.from_pretrained(folder).eos_token_id == ends


def test_the_base_s_answers_stop_there_too(run, kind, tmp_path):
    """The tuned model as a base whose own configuration does not know the end."""
    base = run.export.merged(tmp_path / "merged", dtype="float32").path
    own = json.loads((base / "config.json").read_text())["eos_token_id"]
    (base / "generation_config.json").write_text(json.dumps({"eos_token_id": own}))
    spec, rows = made(kind, tmp_path / "unused")
    spec |= {"model": str(base), "steps": 1, "learning_rate": 1e-9}
    again = nbtune.finetune(spec, name="again", rows={"rows": rows}, runs_dir=tmp_path / "runs").wait()
    said, told = asked(again, base=True)
    assert (said, told[-1].special) == (SAID, True)


def test_full_training_writes_a_model_that_stops(tmp_path):
    kind = "the base's own template"
    spec, rows = made(kind, tmp_path)
    spec |= {"adapter": {"type": "full"}, "learning_rate": 3e-3}
    full = nbtune.finetune(spec, name="full", rows={"rows": rows}, runs_dir=tmp_path / "runs").wait()
    assert asked(full)[0] == SAID
    for folder in (full.folder / "adapter", full.export.merged(tmp_path / "merged").path):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        ends = [tokenizer.eos_token_id, end_of(kind, tokenizer)]
        assert AutoModelForCausalLM.from_pretrained(folder).generation_config.eos_token_id == ends


def test_the_folder_of_an_older_version_stops_there(run, kind, tmp_path):
    """It has the run's tokenizer, and nothing that says an end."""
    older = tmp_path / run.folder.name
    shutil.copytree(run.folder, older)
    (older / "adapter" / "generation_config.json").unlink(missing_ok=True)
    found = nbtune.attach(older)
    assert asked(found)[0] == SAID
    folder = found.export.merged(tmp_path / "merged").path
    assert end_of(kind, AutoTokenizer.from_pretrained(folder)) in GenerationConfig.from_pretrained(folder).eos_token_id


GPT_OSS = (
    "{% for m in messages %}{% if m.thinking and loop.last %}"
    "{{ '<|start|>' + m.role + '<|channel|>analysis<|message|>' + m.thinking + '<|end|>' }}{% endif %}"
    "{{ '<|start|>' + m.role + '<|message|>' + m.content }}"
    "{% if loop.last and m.role == 'assistant' %}{{ '<|return|>' }}{% else %}{{ '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"
)


def test_what_ends_a_thought_ends_no_answer(tmp_path):
    from nbtune.data.tokenize.terminators import ends_of

    names = ("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>")
    tokenizer = save_tokenizer(byte_level(), tmp_path, eos="<|endoftext|>", template=GPT_OSS, extra=names)
    ends = ends_of(tokenizer)
    assert tokenizer.convert_ids_to_tokens(ends.stops) == ["<|endoftext|>", "<|return|>"]
    assert set(tokenizer.convert_tokens_to_ids(names)) - {tokenizer.convert_tokens_to_ids("<|channel|>")} <= ends.hidden


def test_the_lines_that_use_it_elsewhere_stop_there(run):
    from nbtune.export import render_card

    card = render_card(run.export.source(), "you/model")
    for lines in (run.snippet(), card):
        assert "AutoTokenizer, GenerationConfig\n" in lines
        assert "\nmodel.generation_config = GenerationConfig.from_pretrained(" in lines


def test_an_end_that_the_base_never_learnt_is_told(tmp_path):
    """Its row of the head is that of others, so that an adapter can hardly make the model say it; a trained row can."""
    from safetensors.torch import load_file, save_file

    spec, rows = made("another template than the base's", tmp_path)
    base = tmp_path / "base"
    tokenizer, weights = AutoTokenizer.from_pretrained(base), load_file(base / "model.safetensors")
    turn, other = tokenizer.convert_tokens_to_ids(["<turn>", "<|im_start|>"])
    weights["lm_head.weight"][turn] = weights["lm_head.weight"][other] * 1.001
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    spec |= {"steps": 1, "samples": [], "eval": {"split": 0}}
    for name, adapter in (("frozen", {}), ("trained", {"modules_to_save": ["lm_head"]})):
        run = nbtune.finetune(
            spec | {"adapter": adapter}, name=name, rows={"rows": rows}, runs_dir=tmp_path / "runs"
        ).wait()
        told = [e.message for e in run.events() if isinstance(e, events.Warning) and "never learnt" in e.message]
        assert len(told) == (name == "frozen")
        assert not told or "answers end with <turn>" in told[0]
