"""Tokens that a model did not know: counted by the plan, trained, resumed exactly, and in every file that is made."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFReader
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import nbtune
from nbtune.errors import NbtuneError, SpecError
from nbtune.models.new_tokens import _rounded, folder_of, with_new_tokens
from nbtune.spec import from_mapping
from nbtune.widgets.row_inspection import Inspection
from tests.engine.test_asked import trained
from tests.support.family_cases import SIZES
from tests.support.tiny_models import save_speaking

ROWS = [{"prompt": f"Say {word}", "completion": f"<step>{word}<step>"} for word in ("salt", "tar", "rope", "sail")] * 2


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, str]:
    place = tmp_path_factory.mktemp("bases")
    return {
        tied: str(save_speaking("llama", place / str(tied), **{**SIZES, "tie_word_embeddings": tied}))
        for tied in (True, False)
    }


WHOLE: dict[str, list[str]] = {"embeddings": ["embed_tokens"], "head": ["lm_head"], "both": ["embed_tokens", "lm_head"]}


@pytest.mark.parametrize(
    ("tied", "kind"), [(True, "lora"), (False, "lora"), (True, "full"), *((False, whole) for whole in WHOLE)]
)
def test_a_new_token_is_learnt_and_goes_wherever_the_model_goes(
    start: Any, bases: dict[bool, str], tmp_path: Path, tied: bool, kind: str
) -> None:
    """Also where embeddings, the head or both are trained whole, with the new rows among theirs."""
    saved = WHOLE.get(kind, [])
    kind = "lora" if saved else kind
    adapter = {"type": kind, "new_tokens": ["<step>"], "new_special_tokens": ["<|tool|>"]}
    adapter |= {"r": 2, "target_modules": ["q_proj"], "modules_to_save": saved} if kind == "lora" else {}
    about: dict[str, Any] = {"data": ROWS, "steps": 4, "batch_size": 2, "learning_rate": 1e-2, "dtype": "fp32"}
    run = start(model=bases[tied], adapter=adapter, checkpoint={"every": 2, "keep": 9}, **about).wait()
    assert run.state == "finished", run.error
    whole = trained(run)
    assert run.plan.trainable_parameters == whole.numel()
    run.resume(step=2).wait()
    assert torch.equal(trained(run), whole)

    merged = AutoModelForCausalLM.from_pretrained(run.export.merged(tmp_path / "merged").path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    new, tool = tokenizer.convert_tokens_to_ids(["<step>", "<|tool|>"])
    old = AutoTokenizer.from_pretrained(bases[tied])
    assert (new, tool, len(tokenizer)) == (len(old), len(old) + 1, len(old) + 2)
    ids = tokenizer("Say <step> salt<|tool|>", return_tensors="pt").input_ids
    assert {new, tool} <= set(ids[0].tolist())
    with torch.no_grad():
        said = merged(ids).logits[..., : len(tokenizer)]
        if kind == "lora":  # by stock transformers and peft: a base with rows for them, whatever stands there
            assert len(AutoTokenizer.from_pretrained(run.export.adapter(tmp_path / "adapter").path)) == len(tokenizer)
            stock = AutoModelForCausalLM.from_pretrained(bases[tied])
            told = re.search(r"base\.resize_token_embeddings\((\d+), ", run.snippet())
            assert told is not None
            stock.resize_token_embeddings(int(told[1]), mean_resizing=False)
            card = run.model_card("me/mine")
            assert f"base.resize_token_embeddings({told[1]}, " in card
            opened = PeftModel.from_pretrained(stock, tmp_path / "adapter").eval()(ids).logits[..., : len(tokenizer)]
            torch.testing.assert_close(opened, said, rtol=1e-5, atol=1e-5)
            config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
            assert config["base_model_name_or_path"] == Path(bases[tied]).name
    first = AutoModelForCausalLM.from_pretrained(bases[tied])
    for end in ("get_input_embeddings", "get_output_embeddings"):
        weight, before = (getattr(model, end)().weight.detach() for model in (merged, first))
        apart = weight[new] - before[: len(old)].mean(0)
        assert float(apart.abs().max()) > 1e-3, f"trained: {end}"
        whole_one = kind == "full" or {"get_input_embeddings": "embed_tokens"}.get(end, "lm_head") in saved
        assert whole_one != torch.equal(weight[: len(old)], before[: len(old)])
    assert ("base.resize_token_embeddings(" in run.snippet()) == (kind != "full")
    (file,) = run.export.gguf("f32", out=tmp_path / "gguf", verify=False)
    fields = GGUFReader(file.path).fields
    assert fields["tokenizer.ggml.tokens"].contents()[new] == "<step>"
    kinds = fields["tokenizer.ggml.token_type"].contents()
    assert (kinds[new], kinds[tool]) == (4, 3), "defined by a user; control"
    assert "<step>" in run.spec.adapter.new_tokens
    assert run.spec.model == bases[tied]
    assert isinstance(run.generate("Say salt", max_new_tokens=3), str)


def test_what_one_run_allows_is_no_other_ones_word(bases: dict[bool, str], tmp_path: Path) -> None:
    """The folder in the cache says nothing of consent, and has a model's code only for who allows that code."""
    base = tmp_path / "base"
    shutil.copytree(bases[True], base)
    (base / "own.py").write_text("A = 1\n")
    plain, allowed = (folder_of(str(base), ("<a>",), trust_remote_code=trust) for trust in (False, True))
    assert plain != allowed
    assert not list(plain.glob("*.py"))
    assert (allowed / "own.py").read_text() == "A = 1\n"
    assert "trust" not in json.loads((allowed / "new_tokens.json").read_text())
    (base / "own.py").write_text("A = 2\n")
    changed = folder_of(str(base), ("<a>",), trust_remote_code=True)
    assert (changed / "own.py").read_text() == "A = 2\n"
    (tmp_path / "private.py").write_text("B = 1\n")
    (base / "linked.py").symlink_to(tmp_path / "private.py")
    assert folder_of(str(base), ("<a>",)) == plain
    with pytest.raises(SpecError, match="leads out of"):
        folder_of(str(base), ("<a>",), trust_remote_code=True)


@pytest.mark.parametrize("tied", [True, False])
def test_a_new_row_is_the_mean_of_what_is_known_and_the_others_stay(bases: dict[bool, str], tied: bool) -> None:
    folder = folder_of(bases[tied], ("<a>", "<b>"))
    assert not (folder / "model.safetensors").exists(), "a plan wants no weights"
    made = load_file(nbtune.models.resolve(str(folder)) / "model.safetensors")
    base = load_file(Path(bases[tied]) / "model.safetensors")
    count = len(AutoTokenizer.from_pretrained(bases[tied]))
    assert made.keys() == base.keys()
    for name, weight in base.items():
        if name not in ("model.embed_tokens.weight", "lm_head.weight"):
            assert torch.equal(made[name], weight)
            continue
        assert torch.equal(made[name][:count], weight[:count])
        for number in (count, count + 1):
            torch.testing.assert_close(made[name][number], weight[:count].mean(0))
    assert folder_of(bases[tied], ("<a>", "<b>")) == folder
    assert folder_of(bases[tied], ("<b>", "<a>")) != folder


def test_files_without_rows_of_tokens_are_links(bases: dict[bool, str], tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(bases[False])
    model.save_pretrained(tmp_path / "parts", max_shard_size="200KB")
    AutoTokenizer.from_pretrained(bases[False]).save_pretrained(tmp_path / "parts")
    folder = nbtune.models.resolve(str(folder_of(str(tmp_path / "parts"), ("<a>",))))
    files = sorted(folder.glob("*.safetensors"))
    assert len(files) > 2
    assert 0 < sum(path.is_symlink() for path in files) < len(files)
    made, count = AutoModelForCausalLM.from_pretrained(folder), model.config.vocab_size
    for name, weight in model.state_dict().items():
        rows = made.state_dict()[name]
        assert torch.equal(rows[:count] if rows.shape != weight.shape else rows, weight), name


def test_texts_hold_new_tokens_and_not_special_ones(bases: dict[bool, str]) -> None:
    def ids(**adapter: Any) -> list[int]:
        rows = [{"text": "salt <step> rope"}]
        seen = Inspection.of(rows, model=bases[True], adapter={"target_modules": ["q_proj"], **adapter})
        return [int(i) for i in seen.ids(0)]

    plain, new, special = ids(), ids(new_tokens=["<step>"]), ids(new_special_tokens=["<step>"])
    number = len(AutoTokenizer.from_pretrained(bases[True]))
    assert new.count(number) == 1
    assert number not in special
    assert special == plain


@pytest.mark.parametrize(
    ("adapter", "said"),
    [
        ({"new_tokens": ["<|im_end|>"]}, "knows `<|im_end|>` already, as number"),
        ({"new_tokens": ["<a>", "<a>"]}, "two of the new tokens"),
        ({"new_tokens": ["<a>"], "new_special_tokens": ["<a>"]}, "two of the new tokens"),
        ({"new_tokens": ["<a> "]}, "with a blank"),
        ({"new_tokens": [""]}, "at least 1 character"),
    ],
)
def test_what_is_no_new_token_is_refused(bases: dict[bool, str], adapter: dict[str, Any], said: str) -> None:
    with pytest.raises(NbtuneError) as refused:
        nbtune.plan(data=ROWS, model=bases[True], steps=2, adapter=adapter)
    assert said in str(refused.value)


def test_a_tokenizer_of_ones_own_is_given_them_by_its_owner(bases: dict[bool, str]) -> None:
    with pytest.raises(SpecError, match="given to the model's own tokenizer"):
        nbtune.plan(data=ROWS, model=bases[True], tokenizer=bases[True], steps=2, adapter={"new_tokens": ["<a>"]})


def test_the_config_of_a_model_that_also_sees_keeps_its_other_counts(bases: dict[bool, str], tmp_path: Path) -> None:
    """Only a number of tokens that is the embedding's grows with it."""
    place = Path(shutil.copytree(bases[True], tmp_path / "base"))
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps({**config, "hears": {"vocab_size": 3}, "eos_token_id": 2}))
    made = json.loads((folder_of(str(place), ("<step>",)) / "config.json").read_text())
    assert made["vocab_size"] > config["vocab_size"]
    assert made["hears"] == {"vocab_size": 3}


@pytest.mark.parametrize(
    ("rows", "before", "made"),
    [(65, 64, 128), (129, 128, 192), (17, 8, 24), (49153, 49152, 49216), (8, 7, 8), (64, 64, 64)],
)
def test_embeddings_stay_as_round_as_they_were(rows: int, before: int, made: int) -> None:
    assert _rounded(rows, before) == made


def test_rows_that_were_asked_for_are_trained_beside_new_ones(bases: dict[bool, str]) -> None:
    adapter = {"type": "lora", "new_tokens": ["<step>"], "trainable_token_indices": [3, 5]}
    spec = from_mapping({"model": bases[True], "data": "rows", "adapter": adapter})
    trained_rows = with_new_tokens(spec).adapter.trainable_token_indices
    assert trained_rows[:2] == (3, 5)
    assert len(trained_rows) == 3
