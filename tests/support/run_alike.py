"""A model as a run has it beside the same model in stock transformers and peft, asked the same of the same rows.

    ours, stock = both("gemma2", tmp_path)
    documents = rows([SHORT, LONG, 13])
    ours.padded(documents).error(stock.alone(documents))

nbtune's side is built, asked and differentiated by the functions that a run calls (`models.build`, `train.loss`,
`train.logprobs`, `train.packing_check`); the other side opens the adapter that a run saves.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nbtune.data.batching.collate import Batch, collate, pack
from nbtune.data.prepare.dataset import Builder, Dataset
from nbtune.methods import METHODS
from nbtune.models import build
from nbtune.models.abilities import Claim
from nbtune.models.adapters import save_adapter
from nbtune.spec import AdapterSpec
from nbtune.train.logprobs import score_answers
from nbtune.train.loss import loss_of
from nbtune.train.packing_check import packs_are_kept_apart
from tests.support.model_classes import VOCABULARY, save

CPU = torch.device("cpu")
LORA = AdapterSpec(r=4, alpha=6)

Rows = list[tuple[np.ndarray, np.ndarray]]
"""Of each row its ids, and which of them are trained."""


def rows(lengths: list[int], *, seed: int = 3) -> Rows:
    """Random rows, the first third of each not trained."""
    rng = np.random.default_rng(seed)
    return [(rng.integers(3, VOCABULARY, n).astype(np.int32), np.arange(n) >= max(1, n // 3)) for n in lengths]


def dataset(documents: Rows) -> Dataset:
    builder = Builder(["rows"])
    for number, (ids, trained) in enumerate(documents):
        builder.add(ids, trained, 0, number)
    return builder.build()


@dataclasses.dataclass(frozen=True)
class Numbers:
    """What a model says of rows: mean loss of trained tokens, log-probability of each row, gradients of the loss."""

    loss: float
    logprobs: Tensor
    gradients: dict[str, Tensor]

    def error(self, truth: Numbers) -> dict[str, float]:
        """Relative differences; a gradient of less than a hundredth of the largest one is measured by that."""
        assert self.gradients.keys() == truth.gradients.keys()
        least = 0.01 * max(float(g.norm()) for g in truth.gradients.values())
        worst = max(
            float((self.gradients[name] - g).norm()) / max(float(g.norm()), least)
            for name, g in truth.gradients.items()
        )
        return {
            "loss": abs(self.loss - truth.loss) / abs(truth.loss),
            "log-probabilities": float(((self.logprobs - truth.logprobs) / truth.logprobs).abs().max()),
            "gradients": worst,
        }


class Ours:
    """A model as `nbtune.models.build` makes it for a run.

    Args:
        folder: of the stock model.
        seed: of the LoRA's B, which is zero in a run and would hide its A.
    """

    def __init__(self, folder: Path, adapter: AdapterSpec = LORA, *, accelerate: bool = True, seed: int = 5) -> None:
        self.built = build(
            str(folder), adapter=adapter, dtype=torch.float32, device=CPU, accelerate=accelerate, tokenizer=False
        )
        self.model: Any = self.built.model.train()
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, p in self.model.named_parameters():
                if "lora_B" in name:
                    p.copy_(torch.randn(p.shape, generator=generator) * 0.1)
        patch = self.built.patch
        self.fused = patch is not None and "head" in patch.report.taken

    @property
    def taken(self) -> str:
        """How much of it is accelerated: whole, some, head, nothing."""
        patch = self.built.patch
        assert patch is not None
        layers = sum(name.startswith("layers") for name in patch.report.taken)
        left = any(name.startswith(("layers", "model")) for name in patch.report.left)
        return "some" if layers and left else "whole" if layers else "head" if self.fused else "nothing"

    def padded(self, documents: Rows) -> Numbers:
        """All rows in one batch."""
        return self._numbers(collate(dataset(documents), list(range(len(documents)))))

    def alone(self, documents: Rows) -> Numbers:
        """Each row in a batch of its own."""
        every = dataset(documents)
        return self._numbers(*(collate(every, [row]) for row in range(len(documents))))

    def packed(self, documents: Rows) -> Numbers:
        """All rows in one sequence."""
        return self._numbers(self._pack(documents))

    def check(self, documents: Rows) -> Claim:
        """What a run asks before the first step of packs."""
        return packs_are_kept_apart(self.model, dataset(documents), self._pack(documents), device=CPU, fused=self.fused)

    def moved(self, documents: Rows) -> float:
        """By how much, of its size, a document's log-probability moves when the others in its pack are changed."""
        before, worst = self._scores(documents), 0.0
        for kept in range(len(documents)):
            others = rows([len(ids) for ids, _ in documents], seed=17)
            others[kept] = documents[kept]
            worst = max(worst, float((self._scores(others)[kept] / before[kept] - 1).abs()))
        return worst

    def _pack(self, documents: Rows) -> Batch:
        length = sum(len(ids) for ids, _ in documents) + 3
        return pack(dataset(documents), [list(range(len(documents)))], length)

    def _numbers(self, *batches: Batch) -> Numbers:
        loss_of_step, total = loss_of(METHODS["sft"], fused=self.fused), 0.0
        denominator = sum(map(loss_of_step.count, batches))
        for batch in batches:
            loss = loss_of_step(self.model, batch, denominator=denominator, device=CPU).loss
            loss.backward()
            total += loss.item()
        gradients = _gradients(self.model)
        with torch.no_grad():
            logprobs = torch.cat([score_answers(self.model, batch, device=CPU)[0] for batch in batches])
        return Numbers(total, logprobs, gradients)

    @torch.no_grad()
    def _scores(self, documents: Rows) -> Tensor:
        return score_answers(self.model, self._pack(documents), device=CPU)[0]


class Stock:
    """The same model in transformers and peft alone: each row by itself, without padding."""

    def __init__(self, folder: Path, adapter: Path) -> None:
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        if getattr(model.config, "attn_logit_softcapping", None) and model.config._attn_implementation == "sdpa":
            model.set_attn_implementation("eager")  # up to transformers 5.17 sdpa leaves such caps out
        self.model = PeftModel.from_pretrained(model, adapter, is_trainable=True).train()

    def alone(self, documents: Rows) -> Numbers:
        total = sum(int(trained[1:].sum()) for _, trained in documents)
        loss, logprobs = 0.0, []
        for ids, trained in documents:
            given = torch.from_numpy(ids.astype(np.int64))
            says = self.model(input_ids=given[None], use_cache=False).logits[0, :-1].float().log_softmax(-1)
            found = says.gather(1, given[1:, None])[:, 0][torch.from_numpy(trained[1:])].sum()
            (-found / total).backward()
            loss -= found.item() / total
            logprobs.append(found.detach())
        return Numbers(loss, torch.stack(logprobs), _gradients(self.model))

    def exactly(self, documents: Rows) -> Numbers:
        """Return the same, computed in fp64."""
        self.model.double()
        try:
            return self.alone(documents)
        finally:
            self.model.float()


def both(name: str, folder: Path, adapter: AdapterSpec = LORA) -> tuple[Ours, Stock]:
    """The two of a row of the table."""
    place = save(name, folder / "base")
    ours = Ours(place, adapter)
    return ours, Stock(place, save_adapter(ours.model, folder / "adapter"))


def _gradients(model: Any) -> dict[str, Tensor]:
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found
