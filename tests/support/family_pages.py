"""What nbtune does with each family of models: the page docs/reference/families.md, from tiny copies that are tried.

``python -m tests.support.family_pages`` writes it (minutes), ``… family_pages gemma2 falcon`` says a few rows.
"""

from __future__ import annotations

import dataclasses
import re
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from nbtune.errors import NbtuneError
from nbtune.export.gguf.families import FAMILIES
from nbtune.models import build
from nbtune.models.abilities import Abilities
from nbtune.models.accelerate.detect import causal_lm, decoder
from nbtune.models.trial import try_small
from nbtune.spec import AdapterSpec
from nbtune.spec.placement import Placement
from nbtune.train.packing_check import small_packs_are_kept_apart
from tests.support.model_classes import CLASSES, config_of, make

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "families.md"

# Where a card ran the family's published shape: docs/speed.md has the rows, and what was compared.
MEASURED = {
    "llama": "1.15-1.17× Unsloth",
    "qwen2": "1.20× Unsloth, 1.68× in 4 bits",
    "phi3": "1.27× Unsloth",
    "gemma2": "2.85× Hugging Face",
    "falcon": "6.8× Hugging Face",
    "mpt": "4.0× Hugging Face",
    "gpt_neox": "2.4× Hugging Face",
    "olmo2": "3.1× Hugging Face",
}


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of the page.

    Args:
        whole: norm, head and every layer, experts included, are nbtune's.
        fast, packing, methods, four_bits, gguf: words.
    """

    name: str
    kind: str
    whole: bool
    fast: str
    packing: str
    methods: str
    four_bits: str
    gguf: str

    def __str__(self) -> str:
        speed = MEASURED.get(self.name, "")
        cells = (self.name, f"`{self.kind}`", self.fast, self.packing, self.methods, self.four_bits, self.gguf, speed)
        return f"| {' | '.join(cells)} |"


def row_of(name: str) -> Row:
    """Try a class of the table of tests, small, as a plan tries a model."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "config"
        config_of(name).save_pretrained(place)
        trial = try_small(str(place), AdapterSpec(r=4))
        packing = small_packs_are_kept_apart(trial, fused="head" in _taken(trial.patch))
        made = Path(folder) / "model"
        make(name).save_pretrained(made)
        four_bits = _in_four_bits(made)
    abilities = Abilities(blocks=trial.blocks)
    heads = trial.model is not None and decoder(causal_lm(trial.model)) is not None
    family = FAMILIES.get(CLASSES[name].kind)
    return Row(
        name,
        CLASSES[name].kind,
        not any(blocks.why for blocks in trial.blocks) and bool(trial.blocks),
        _words(abilities) if trial.blocks else _short(trial.why),
        "yes" if packing.holds else "rows side by side",
        "all" if heads else "those without a head",
        four_bits,
        f"`{family.arch}`" if family else "merged",
    )


def _taken(patch: Any) -> dict[str, str]:
    return {} if patch is None else patch.report.taken


def _words(abilities: Abilities) -> str:
    left = [blocks for blocks in abilities.blocks if blocks.why]
    if not left:
        return "whole"
    taken = [blocks.what for blocks in abilities.blocks if blocks.accelerated]
    counted = Counter(blocks.what for blocks in left for _ in range(blocks.count))
    some = {"layers": "some layers", "experts": "some experts"}
    words = [some[what] if what in counted and what in some else what for what in taken]
    parts = ", ".join(dict.fromkeys(words)) or "nothing"
    why = "; ".join(dict.fromkeys(f"{blocks.what}: {_short(blocks.why)}" for blocks in left))
    return f"{parts} ({why})"


def _short(why: str) -> str:
    """Return a reason without the numbers of one tiny model, which a page cannot hold."""
    words = re.sub(r" ?\(off by [^)]*\)", "", why).replace("|", "/").replace("\n", " ")
    return words if len(words) <= 110 else words[:107] + "…"


def _in_four_bits(model: Path) -> str:
    try:
        built = build(
            str(model), adapter=AdapterSpec(type="qlora", r=4), dtype=torch.float32, device="cpu", tokenizer=False,
            weights=Placement(format="nf4"),
        )  # fmt: skip
        ids = torch.arange(3, 15)[None]
        built.model.train()(input_ids=ids, labels=ids).loss.backward()
    except NbtuneError as error:
        return f"no: {_short(str(error).splitlines()[0])}"
    except (KeyError, RuntimeError) as error:  # transformers' own code of a family may not want them
        return f"no ({type(error).__name__} in transformers)"
    layers = any(name.startswith("layers.") for name in _taken(built.patch))
    return "nbtune's blocks" if layers else "bitsandbytes'"


_TEXT = """\
# Families of models

What is done with each family, tried on a tiny model of its config class in {count} cases (transformers {version}), as a
plan tries the model that it is given: `nbtune plan` says the same of yours, with its own sizes. Losses,
log-probabilities and LoRA gradients of each are those of stock transformers and peft, padded and packed
(`tests/models/test_model_classes.py`).

- *accelerated*: `whole` means that every layer, of a mixture its experts, too, the last norm and the head are nbtune's
  blocks; else what is, and why the rest is left to transformers: slower, never another number.
  **{whole} of {count} are whole.**
- *packing*: several rows in one sequence. Where layers carry a state from one row into the next they go side by side.
- *methods*: all of docs/reference/spec.md, or those that put no head of scores onto the model.
- *4 bits*: `adapter: qlora`, by nbtune's blocks or bitsandbytes' own layers.
- *GGUF*: llama.cpp's name of the family, where nbtune writes it; `merged`: `export --gguf` writes the merged model, and
  says which of llama.cpp's commands finishes it.
- *measured*: a training step of the published shape on an NVIDIA H200, in docs/speed.md.

| family | `model_type` | accelerated | packing | methods | 4 bits | GGUF | measured |
|---|---|---|---|---|---|---|---|
{rows}

Written by `python -m tests.support.family_pages`; `tests/models/test_family_pages.py` holds it to what is tried.
"""


def page_of(rows: list[Row]) -> str:
    """Return the page."""
    import transformers

    version = ".".join(transformers.__version__.split(".")[:2])
    about = {"count": len(rows), "whole": sum(row.whole for row in rows), "version": version}
    return _TEXT.format(rows="\n".join(map(str, rows)), **about)


def main(*names: str) -> None:
    """Try families, all unless some are named; write the page of all."""
    from _pytest.outcomes import Skipped

    rows = []
    for name in names or CLASSES:
        try:
            rows.append(row_of(name))
        except Skipped as reason:
            print(name, reason, flush=True)
            continue
        print(rows[-1], flush=True)
    print(f"{sum(row.whole for row in rows)} of {len(rows)} are accelerated whole")
    if not names:
        PAGE.write_text(page_of(rows), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
