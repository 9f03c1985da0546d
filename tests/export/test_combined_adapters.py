"""Several LoRAs as one: what peft's own combination says, from the files alone."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import nbtune
from nbtune.errors import ExportError, NbtuneError
from nbtune.export.peft_export import WEIGHTS

ROWS = [{"prompt": f"Say {word}", "completion": f"{word}, aye"} for word in ("salt", "tar", "rope", "keel")] * 2
HOW: dict[str, Any] = {"data": ROWS, "steps": 2, "learning_rate": 0.02, "eval": {"split": 0}, "device": "cpu"}
ADAPTERS: dict[str, dict[str, Any]] = {
    "one": {"r": 4, "alpha": 8, "target_modules": ["q_proj", "v_proj"]},
    "two": {"r": 6, "use_rslora": True, "target_modules": ["v_proj", "down_proj"], "rank_pattern": {"down_proj": 2}},
}


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(3, 19)[None]).logits


def base() -> Any:
    return AutoModelForCausalLM.from_pretrained(nbtune.models.resolve("nbtune/tiny"), dtype=torch.float32).eval()


def test_it_says_what_pefts_own_combination_says(tmp_path: Path) -> None:
    runs = {
        name: nbtune.finetune(**HOW, adapter=adapter, name=name, runs_dir=tmp_path, seed=k).wait()
        for k, (name, adapter) in enumerate(ADAPTERS.items())
    }
    made = nbtune.export.combine_adapters(
        ["one", runs["two"].folder / "adapter"], [0.7, -0.4], out=tmp_path / "both", runs_dir=tmp_path
    )
    ours = PeftModel.from_pretrained(base(), made.path).eval()
    deltas = []
    for name, share in (("one", 0.7), ("two", -0.4)):
        alone = PeftModel.from_pretrained(base(), runs[name].folder / "adapter")
        for module in alone.modules():
            if hasattr(module, "lora_A"):
                module.scaling["default"] *= share
        deltas.append(alone.merge_and_unload().state_dict())
    truth, start = base(), base().state_dict()
    truth.load_state_dict({name: deltas[0][name] + deltas[1][name] - value for name, value in start.items()})
    assert float((logits(ours) - logits(base())).abs().max()) > 0.1
    assert float((logits(ours) - logits(truth)).abs().max()) < 1e-4

    peft = PeftModel.from_pretrained(base(), runs["one"].folder / "adapter", adapter_name="one")
    peft.load_adapter(runs["one"].folder / "adapter", adapter_name="again")
    peft.add_weighted_adapter(["one", "again"], [0.5, 0.25], "sum", combination_type="cat")
    peft.set_adapter("sum")
    twice = nbtune.export.combine_adapters(["one", "one"], [0.5, 0.25], out=tmp_path / "twice", runs_dir=tmp_path)
    assert (
        float((logits(PeftModel.from_pretrained(base(), twice.path).eval()) - logits(peft.eval())).abs().max()) < 1e-5
    )

    on = nbtune.finetune(**{**HOW, "steps": 1}, start_from=str(made.path), name="on", runs_dir=tmp_path).wait()
    assert on.export.merged(tmp_path / "merged").bytes > 1e6


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    how: dict[str, Any] = {**HOW, "steps": 1}
    return nbtune.finetune(**how, adapter={"r": 2}, name="one", runs_dir=runs).wait().folder / "adapter"


@pytest.mark.parametrize("weights", [[float("nan"), 1.0], [float("inf"), 1.0], [1e39, 1.0]])
def test_numbers_that_are_none_are_refused(weights: list[float], adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"is no weight of an adapter|holds NaN or infinity"):
        nbtune.export.combine_adapters([adapter, adapter], weights, out=tmp_path / "both")
    assert not (tmp_path / "both").exists()


def _changed(adapter: Path, to: Path, change: Any) -> Path:
    shutil.copytree(adapter, to)
    tensors = {name: change(name, tensor).contiguous() for name, tensor in load_file(to / WEIGHTS).items()}
    save_file(tensors, to / WEIGHTS, metadata={"format": "pt"})
    return to


def test_adapters_that_are_damaged_or_of_other_widths_are_refused(adapter: Path, tmp_path: Path) -> None:
    broken = _changed(adapter, tmp_path / "broken", lambda _, tensor: tensor * float("nan"))
    with pytest.raises(ExportError, match="holds NaN or infinity"):
        nbtune.export.combine_adapters([adapter, broken], out=tmp_path / "both")
    narrow = _changed(adapter, tmp_path / "narrow", lambda name, t: t[:, :8] if "lora_A" in name else t)
    with pytest.raises(ExportError, match="of another width"):
        nbtune.export.combine_adapters([adapter, narrow], out=tmp_path / "both")


@pytest.mark.parametrize("name", ["adapter_config.json", WEIGHTS, "tokenizer.json", "chat_template.jinja", "x.model"])
def test_a_link_out_of_an_adapter_is_not_followed(name: str, adapter: Path, tmp_path: Path) -> None:
    sent = Path(shutil.copytree(adapter, tmp_path / "sent"))
    (sent / name).unlink(missing_ok=True)
    (sent / name).symlink_to(adapter / name if (adapter / name).exists() else adapter / "tokenizer.json")
    with pytest.raises(NbtuneError, match="this link leads out of"):
        nbtune.export.combine_adapters([sent, adapter], out=tmp_path / "both")
    assert not (tmp_path / "both").exists()


def test_other_templates_are_said(adapter: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(adapter, tmp_path / "other"))
    (other / "chat_template.jinja").write_text("{{ messages }}")
    assert not nbtune.export.combine_adapters([adapter, adapter], out=tmp_path / "same").notes
    [note] = nbtune.export.combine_adapters([adapter, other], out=tmp_path / "both").notes
    assert "chat template are those of one-" in note
    assert note.endswith("other was trained with others")


def test_what_cannot_be_combined_is_said(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="1 adapters and 1 weights"):
        nbtune.export.combine_adapters(["one"], runs_dir=tmp_path)
    with pytest.raises(ExportError, match="there is no run 'nobody'"):
        nbtune.export.combine_adapters(["nobody", "nobody"], runs_dir=tmp_path)
    nbtune.finetune(**HOW, adapter={"type": "dora", "r": 2}, name="dora", runs_dir=tmp_path).wait()
    with pytest.raises(ExportError, match=r"more of .* than a LoRA's two factors"):
        nbtune.export.combine_adapters(["dora", "dora"], runs_dir=tmp_path)
