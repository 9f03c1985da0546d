"""Prepared: what `prepare` gives."""

from __future__ import annotations

from dataclasses import dataclass

from nbtune.data.prepare.dataset import Dataset
from nbtune.data.prepare.report import Report
from nbtune.data.prepare.stats import DataFacts
from nbtune.data.prepare.streaming_dataset import Arriving


@dataclass(frozen=True)
class Prepared:
    """Tokens to learn from and to evaluate on, and what was found on the way.

    `chat_template` is the template that was used: where the tokenizer had none, the run must keep it with the model.
    """

    train: Dataset | Arriving
    eval: Dataset | Arriving | None
    report: Report
    facts: DataFacts
    chat_template: str | None = None
