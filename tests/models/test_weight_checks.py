"""Weights that are not whole are refused by name before anything trains; whole ones of every family load."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

import nbtune
from nbtune.errors import NbtuneError, SpecError
from nbtune.models import model_facts
from nbtune.models.loading import load_model
from nbtune.spec import Placement
from tests.models.test_accelerate import FAMILIES, SIZES, make
from tests.support.every import every
from tests.support.family_cases import CASES
from tests.support.tiny_models import save_speaking

ROWS = [{"prompt": f"Say {i}", "completion": f"It is {i}."} for i in range(8)]


def saved(folder: Path, family: str = "llama", **options: Any) -> Path:
    return save_speaking(family, folder, **{**SIZES, **options})


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("tied"), tie_word_embeddings=True)


@pytest.fixture(scope="module")
def sharded(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    at = tmp_path_factory.mktemp("sharded")
    shutil.copytree(whole, at, dirs_exist_ok=True)
    (at / "model.safetensors").unlink()
    AutoModelForCausalLM.from_pretrained(whole).save_pretrained(at, max_shard_size="100KB")
    assert (at / "model.safetensors.index.json").is_file()
    return at


def weights(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        held = load_file(folder / "model.safetensors")
        change(held)
        save_file(held, folder / "model.safetensors", {"format": "pt"})

    return spoil


def config(**changes: Any) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        kept = {**json.loads((folder / "config.json").read_text()), **changes}
        (folder / "config.json").write_text(json.dumps({k: v for k, v in kept.items() if v is not None}))

    return spoil


def without(part: str) -> Callable[[Path], None]:
    return weights(lambda held: [held.pop(name) for name in list(held) if part in name])


def cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def overwritten(data: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / "model.safetensors").write_bytes(data) and None  # type: ignore[func-returns-value]


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def integers(held: dict[str, torch.Tensor]) -> None:
    for name in held:
        if name.endswith("_proj.weight"):
            held[name] = (held[name] * 100).to(torch.int8)


def other_shape(held: dict[str, torch.Tensor]) -> None:
    held["model.layers.1.mlp.up_proj.weight"] = torch.zeros(95, 64)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "a layer removed": (without("layers.1."), r"lacks the weights model\.layers\.1\.\S+ and 8 others"),
    "one norm removed": (without("model.norm"), r"lacks the weight model\.norm\.weight"),
    "the head removed": (without("lm_head"), r"lacks the weight lm_head\.weight.*\n.*tie_word_embeddings"),
    "no tensors": (weights(lambda held: held.clear()), r"without any weights"),
    "another shape": (weights(other_shape), r"layers\.1\.mlp\.up_proj\.weight, \[95, 64\] in the files, \[96, 64\]"),
    "int8": (weights(integers), r"integers \(I8\) for the weight model\.layers"),
    "one more layer by the config": (config(num_hidden_layers=3), r"lacks the weights model\.layers\.2"),
    "one layer less by the config": (config(num_hidden_layers=1), r"holds the weights model\.layers\.1.*no place"),
    "another model_type": (config(model_type="qwen3", architectures=None), r"lacks the weights .*_norm"),
    "a bias that the config denies": (
        weights(lambda held: held.update({"model.layers.0.self_attn.q_proj.bias": torch.ones(64)})),
        r"holds the weight model\.layers\.0\.self_attn\.q_proj\.bias, for which",
    ),
    "truncated": (cut, r"model\.safetensors: the file is truncated"),
    "empty": (overwritten(b""), r"model\.safetensors: the file is empty"),
    "a few bytes": (overwritten(b"abc"), r"truncated"),
    "a git-lfs pointer": (overwritten(POINTER), r"git-lfs pointer.*\n.*git lfs pull"),
    "no safetensors": (overwritten(b"\x10" + bytes(7) + b"x" * 100), r"no safetensors file"),
    "a pickle": (pickled, r"no safetensors weights.*\n.*opens no pickles"),
}


@pytest.mark.parametrize("kept", ["16bit", "nf4"])
@pytest.mark.parametrize("name", BROKEN)
def test_broken_weights_are_refused_by_name(name: str, kept: Any, whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "model")
    spoil, words = BROKEN[name]
    spoil(tmp_path / "model")
    with pytest.raises(SpecError, match=words) as caught:
        load_model(str(tmp_path / "model"), dtype=torch.float32, device="cpu", weights=Placement(format=kept))
    assert caught.value.fix


@pytest.mark.parametrize("name", BROKEN)
def test_a_run_on_broken_weights_never_takes_a_step(name: str, whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "model")
    spoil, words = BROKEN[name]
    spoil(tmp_path / "model")
    spec = {"model": str(tmp_path / "model"), "data": "rows", "steps": 2, "eval": {"split": 0}, "device": "cpu"}
    with pytest.raises(NbtuneError, match=words):
        nbtune.finetune(spec, rows={"rows": ROWS}, runs_dir=tmp_path / "runs").wait()
    assert every(run.step == 0 for run in nbtune.runs(tmp_path / "runs"))


def test_a_tied_head_whose_config_forgot_it_is_refused(tied: Path, tmp_path: Path) -> None:
    load_model(str(tied), dtype=torch.float32, device="cpu")
    shutil.copytree(tied, tmp_path / "model")
    config(tie_word_embeddings=None)(tmp_path / "model")
    with pytest.raises(SpecError, match=r"lacks the weight lm_head\.weight") as caught:
        load_model(str(tmp_path / "model"), dtype=torch.float32, device="cpu")
    assert '"tie_word_embeddings": true' in caught.value.fix


def test_shards(sharded: Path, whole: Path, tmp_path: Path) -> None:
    loaded = load_model(str(sharded), dtype=torch.float32, device="cpu").state_dict()
    stored = load_file(whole / "model.safetensors")
    assert every(torch.equal(loaded[name], stored[name]) for name in stored)
    shutil.copytree(sharded, tmp_path / "model")
    shard = sorted((tmp_path / "model").glob("*.safetensors"))[1]
    shard.write_bytes(POINTER)
    with pytest.raises(SpecError, match=rf"{shard.name}: the file is a git-lfs pointer"):
        load_model(str(tmp_path / "model"), dtype=torch.float32, device="cpu")
    shard.unlink()
    with pytest.raises(SpecError, match=f"lacks {shard.name}"):
        load_model(str(tmp_path / "model"), dtype=torch.float32, device="cpu")
    (tmp_path / "model" / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(SpecError, match="index"):
        load_model(str(tmp_path / "model"), dtype=torch.float32, device="cpu")


def test_weights_that_stand_there_twice_are_not_chosen_among(sharded: Path, whole: Path, tmp_path: Path) -> None:
    """A model in parts that was saved over an older one; a tensor of one part in another, too."""
    both = Path(shutil.copytree(sharded, tmp_path / "both"))
    shutil.copy(whole / "model.safetensors", both)
    odd = Path(shutil.copytree(sharded, tmp_path / "odd"))
    first, second = sorted(odd.glob("*.safetensors"))[:2]
    name, tensor = next(iter(load_file(first).items()))
    save_file({**load_file(second), name: tensor * 3}, second, {"format": "pt"})
    for folder in (both, odd):
        with pytest.raises(SpecError, match="twice"):
            nbtune.plan(model=str(folder), data=ROWS, steps=1)
        with pytest.raises(SpecError, match="twice"):
            load_model(str(folder), dtype=torch.float32, device="cpu")


def test_what_stands_beside_a_language_model_is_left_out(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "model")
    names = ("model.layers.0.self_attn.rotary_emb.inv_freq", "v_head.summary.weight", "model.vision_tower.x.weight")
    more = {name: torch.ones(4) for name in names}
    weights(lambda held: held.update(more, **{"model.layers.0.self_attn.masked_bias": torch.ones(1)}))(
        tmp_path / "model"
    )
    loaded, alone = (
        load_model(str(folder), dtype=torch.float32, device="cpu").state_dict()
        for folder in (tmp_path / "model", whole)
    )
    assert loaded.keys() == alone.keys()
    assert every(torch.equal(loaded[name], weight) for name, weight in alone.items())


def test_four_bit_checkpoints_load_and_lack_nothing_silently(whole: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    made = load_model(str(whole), dtype=torch.float32, device="cpu", weights=Placement(format="nf4"))
    made.save_pretrained(tmp_path)
    again = load_model(str(tmp_path), dtype=torch.float32, device="cpu")
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        assert torch.allclose(again(input_ids=ids).logits, made(input_ids=ids).logits, atol=1e-5)
    without("model.layers.1.input_layernorm")(tmp_path)
    with pytest.raises(SpecError, match=r"lacks the weight model\.layers\.1\.input_layernorm"):
        load_model(str(tmp_path), dtype=torch.float32, device="cpu")


@pytest.mark.parametrize(
    "name", [n if k % 4 == 0 else pytest.param(n, marks=pytest.mark.slow) for k, n in enumerate(CASES)]
)
def test_whole_models_of_every_family_load(name: str, tmp_path: Path) -> None:
    import transformers

    case = CASES[name]
    made = AutoModelForCausalLM.from_config(getattr(transformers, case.config)(vocab_size=64, **case.options))
    made.save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path), dtype=torch.float32, device="cpu").state_dict()
    assert every(torch.equal(loaded[key], value) for key, value in made.state_dict().items())


@pytest.mark.parametrize("family", FAMILIES)
def test_whole_models_load_rounded_to_four_bits(family: str, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    made = make(family, None).eval()
    made.save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path), dtype=torch.float32, device="cpu", weights=Placement(format="nf4"))
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        stock, rounded = made(input_ids=ids).logits, loaded.eval()(input_ids=ids).logits
    assert 0 < float((rounded - stock).norm() / stock.norm()) < 0.5, "rounded, and still this model"


def test_the_embedded_model_is_whole() -> None:
    load_model("nbtune/tiny", dtype=torch.float32, device="cpu")
    assert model_facts("nbtune/tiny").parameters > 0


def test_facts_of_a_broken_file_are_no_mystery(whole: Path, tmp_path: Path) -> None:
    """The planner reads headers: of a pointer it once said that memory was out."""
    shutil.copytree(whole, tmp_path / "model")
    overwritten(POINTER)(tmp_path / "model")
    with pytest.raises(SpecError, match="git-lfs pointer"):
        model_facts(str(tmp_path / "model"))


def test_weights_that_files_hold_in_one_are_not_called_missing(tmp_path: Path) -> None:
    """Sarvam's queries, keys and values: a plan said that they lack, and to download the model again."""
    kind = "sarvam_moe"
    if kind not in CONFIG_MAPPING:
        pytest.skip(f"this transformers has no {kind}")
    sizes = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "first_k_dense_replace": 1}
    save_speaking(
        kind, tmp_path, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, **sizes,
    )  # fmt: skip
    abilities = nbtune.plan(model=str(tmp_path), data=[{"prompt": "Hi", "completion": "Ahoy"}] * 4).abilities
    assert abilities.weights.holds
    assert "joined with others in one weight" in abilities.merging.words
