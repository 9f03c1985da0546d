"""Tiny random models of every family that nbtune writes, and what llama.cpp makes of their files.

``python -m tests.support.families`` writes docs/reference/gguf-families.md from a run over all of them.
"""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nbtune.export import ExportSource, LlamaRunner, export_gguf
from nbtune.models.gguf_file.pretokenizers import CL100K, QWEN2, QWEN35
from tests.support.family_cases import CASES
from tests.support.llama import VERSION, llama_library
from tests.support.tiny_models import byte_level, save_model, save_tokenizer, sentencepiece_like, split, strings

LIMIT = 1e-4
"""The largest difference of a logit, as a part of the logits' range."""
GELU_LIMIT = 5e-4
"""The same where there is a GELU: llama.cpp looks it up in a table of half-precision values."""


def family_tokenizer(kind: str, folder: Path) -> Any:
    """A tokenizer of that kind, saved in `folder`."""
    from tokenizers import pre_tokenizers

    makers: dict[str, Callable[[], Any]] = {
        "dbrx": lambda: byte_level([split(CL100K)]),
        "digits": lambda: byte_level([pre_tokenizers.Digits(True)], regex=True),
        "gemma": lambda: sentencepiece_like(prefix=False),
        "gpt2": lambda: byte_level(),
        "llama3": lambda: byte_level([split(CL100K)], ignore_merges=True),
        "qwen2": lambda: byte_level([split(QWEN2)]),
        "qwen35": lambda: byte_level([split(QWEN35)]),
        "sentencepiece": lambda: sentencepiece_like(prefix=True),
    }
    spm = kind in ("sentencepiece", "gemma")
    bos = "<s>" if spm else "<|begin|>" if kind == "llama3" else None
    return save_tokenizer(makers[kind](), folder, bos=bos, eos="</s>" if spm else "<|im_end|>", add_bos=bos is not None)


@dataclasses.dataclass(frozen=True)
class Seen:
    """What llama.cpp made of a family's file.

    Args:
        arch: llama.cpp's own description of the file.
        strings: how many were tokenized, `other` of them otherwise than by transformers.
        off: largest difference of a logit from transformers', as a part of the logits' range.
        explained: the same, with llama.cpp's GELU in transformers' place; None where the family has no GELU.
    """

    arch: str
    strings: int
    other: int
    off: float
    explained: float | None


def measure(name: str, folder: Path, tokenizer_folder: Path, tokenizer: Any, count: int) -> Seen:
    """Make the family's model in `folder`, export it in fp32, and let llama.cpp read `count` strings and compute."""
    import transformers

    case = CASES[name]
    config = getattr(transformers, case.config)(vocab_size=len(tokenizer), **case.options)
    model = save_model(config, folder / "model", spread=3.0)
    source = ExportSource(folder / "model", name="tiny", tokenizer=tokenizer_folder)
    path = export_gguf(source, ["f32"], folder)[0].path
    texts = strings(count, seed=len(name), specials=("<|im_start|>", "<|im_end|>", "</s>"))
    tokens = tokenizer("The people over there said: 2024 東京 def return import lambda x, HELLO World")["input_ids"]
    with LlamaRunner(path, library=llama_library(), n_ctx=64) as llama:
        read = llama.tokenize(texts, add_special=True)
        got = llama.logits(tokens)
        arch = str(llama.info["description"]).split(" ")[0]
    expected = [tokenizer(text)["input_ids"] for text in texts]
    other = sum(a != b for a, b in zip(read, expected, strict=True))
    off = _difference(got, _logits(model, tokens))
    explained = _difference(got, _logits(model, tokens)) if use_half_gelu(model) else None
    return Seen(arch, count, other, off, explained)


def _logits(model: Any, tokens: list[int]) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0].numpy()


def _difference(got: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(got - expected).max() / np.ptp(expected))


class _HalfGelu(torch.nn.Module):
    """GELU as llama.cpp has it on a CPU: the tanh form, looked up in a table of half-precision values."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        table = torch.nn.functional.gelu(x.half().float(), approximate="tanh").half().float()
        return torch.where(x <= -10, torch.zeros_like(x), torch.where(x >= 10, x, table))


def use_half_gelu(model: Any) -> bool:
    """Put llama.cpp's GELU in the place of the model's, and where it has gates begin; whether it has any."""
    for module in model.modules():
        if hasattr(module, "_gaussian_topk"):
            module._gaussian_topk = functools.partial(_sparse, share=module.activation_sparsity)
    places = [(parent, key) for parent in model.modules() for key, child in parent.named_children() if _is_gelu(child)]
    for parent, key in places:
        setattr(parent, key, _HalfGelu())
    return bool(places)


def _sparse(gates: torch.Tensor, share: float) -> torch.Tensor:
    """Gemma 3n's sparse gates as llama.cpp has them: by a deviation that is reckoned with one number fewer."""
    beyond = torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor(share))
    return (gates - gates.mean(-1, keepdim=True) - beyond * gates.std(-1, keepdim=True)).relu()


def has_gelu(model: Any) -> bool:
    """Whether some of a model's modules are GELUs."""
    return any(_is_gelu(module) for module in model.modules())


def _is_gelu(module: torch.nn.Module) -> bool:
    return "gelu" in type(module).__name__.lower()


_PAGE = """\
# Families that are written as GGUF

Tiny random models of each family, exported in fp32 by nbtune and run by llama.cpp (node-llama-cpp {version}'s
library, on a CPU). *Tokens*: how many of {count} strings (Unicode, code, runs of whitespace, what looks like special
tokens) became the ids that transformers makes of them. *Logits*: the largest difference from transformers in fp32, as a
part of the logits' range. llama.cpp looks GELU up in a table of half-precision values, and has one form of it (tanh);
the last column is the difference from transformers *with that GELU*: what the table does not explain.

| family | `model_type` | llama.cpp loads it as | tokens | logits | with llama.cpp's GELU |
|---|---|---|---|---|---|
{rows}

Written by `python -m tests.support.families`; `tests/export/gguf/test_families.py` checks the same.
A family that is not here is written merged, with the llama.cpp command that makes the file; a config that llama.cpp
would run otherwise is refused before any work.
Trained adapters run, too: merged, and as GGUF on the base's own file (`tests/export/gguf/test_learnt.py`; DeepSeek's
attention takes none in llama.cpp).
llama.cpp runs the sliding windows of Gemma, gpt-oss, Cohere 2, EXAONE 4, OLMo 3, Trinity and EXAONE MoE only. Of other
families (Mistral, Ministral, Mixtral, CWM, Phi-3, Qwen with `use_sliding_window`) the file's context ends where the
window does, and the export says so: up to there the numbers are the same. A window of less than 256 tokens is refused.
"""


def main(count: int = 2000) -> None:
    """Measure every family, and write the page."""
    import transformers

    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        made: dict[str, tuple[Path, Any]] = {}
        for index, (name, case) in enumerate(CASES.items()):
            if case.tokenizer not in made:
                at = Path(temporary) / case.tokenizer
                made[case.tokenizer] = (at, family_tokenizer(case.tokenizer, at))
            seen = measure(name, Path(temporary) / str(index), *made[case.tokenizer], count)
            explained = "" if seen.explained is None else f"{seen.explained:.1e}"
            kind = getattr(transformers, case.config).model_type
            equal = f"{seen.strings - seen.other} of {seen.strings}"
            rows.append(f"| {name} | `{kind}` | {seen.arch} | {equal} | {seen.off:.1e} | {explained} |")
            print(rows[-1], flush=True)
    page = Path(__file__).parents[2] / "docs" / "reference" / "gguf-families.md"
    page.write_text(_PAGE.format(version=VERSION, count=count, rows="\n".join(rows)), encoding="utf-8")


if __name__ == "__main__":
    main()
