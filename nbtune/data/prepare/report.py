"""What preparation gives: tokens, and what was found in the data: every row's fate, counts, warnings."""

from __future__ import annotations

import html
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from nbtune.errors import DataError

if TYPE_CHECKING:
    from nbtune.data.prepare.dataset import Dataset
    from nbtune.data.prepare.stats import DataFacts
    from nbtune.data.prepare.streaming_dataset import Arriving

NO_WEIGHT, BY_FUNCTION = "its weight in `row_weights` is 0", "left it out"
"""Reasons, or how they end, that are the spec's own wish."""
EMPTY, ALIKE = "nothing in it would be trained (an empty answer or text)", "both answers are the same"
LEFT_OUT = re.compile(r"[\d,]+ of [\d,]+ rows (?:is|are) left out")  # how `Report.left_out` begins
_FIX = "check which column is the answer (of messages: if any is by an `assistant`), `train_on`, and `sequence_len`"


@dataclass
class SourceReport:
    """One source: its rows and how they were read."""

    name: str
    format: str
    mapping: dict[str, str]
    rows: int = 0


@dataclass
class Report:
    """Every row of the input is accounted for: used, cut, dropped or held out, and why.

    Attributes:
        sources: how each source was read.
        fates: (source, row, status, reason) of every row that was not simply used.
        used: examples to train on; `held_out`: examples to evaluate on.
        tokens, trained_tokens: of the training examples.
        warnings: sentences for people, with what to do.
    """

    sources: list[SourceReport] = field(default_factory=list)
    fates: list[tuple[str, int, str, str]] = field(default_factory=list)
    rows: int = 0
    used: int = 0
    held_out: int = 0
    duplicates: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    longest: int = 0
    template: str = ""
    terminator: str = ""
    warnings: list[str] = field(default_factory=list)

    def count(self, status: str) -> int:
        """Return how many rows have a status of `cut`, `split`, `dropped`."""
        return sum(fate[2] == status for fate in self.fates)

    def left_out(self) -> str:
        """Return a warning that counts the rows which were dropped, with the reasons; not those that the spec itself
        leaves out. "": there are none."""
        reasons = Counter(reason for *_, status, reason in self.fates if status == "dropped")
        counted = [(reason, n) for reason, n in reasons.most_common() if not reason.endswith((NO_WEIGHT, BY_FUNCTION))]
        if not counted:
            return ""
        shown = "; ".join(f"{n:,}: {reason}" for reason, n in counted[:3]) + " …" * (len(counted) > 3)
        gone = sum(n for _, n in counted)
        why = f": {counted[0][0]}" if len(counted) == 1 else f" ({shown})"
        return f"{gone:,} of {self.rows:,} rows {'is' if gone == 1 else 'are'} left out{why}"

    @property
    def said_to_repeat(self) -> int:
        """How many rows a warning says to repeat another one; 0: few do, and none says so."""
        return self.duplicates if self.duplicates > self.rows * 0.1 else 0

    @property
    def trained_share(self) -> float:
        """Trained tokens / tokens."""
        return self.trained_tokens / self.tokens if self.tokens else 0.0

    def to_frame(self) -> Any:
        """Return a pandas DataFrame of the rows that were not simply used: source, row, status, reason."""
        import pandas

        return pandas.DataFrame(self.fates, columns=["source", "row", "status", "reason"])

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(str(self))

    def _repr_html_(self) -> str:
        row = "<tr><th style='text-align:right'>{}</th><td style='text-align:left'>{}</td></tr>"
        return f"<table>{''.join(row.format(*map(html.escape, pair)) for pair in self._found())}</table>"

    def __str__(self) -> str:
        return "\n".join(text if name in ("in all", "ends") else f"{name}: {text}" for name, text in self._found())

    def _found(self) -> list[tuple[str, str]]:
        """Return (what, what of it) of everything that was found."""
        lines = []
        for source in self.sources:
            shown = ", ".join(f"{role} ← {column}" for role, column in source.mapping.items())
            lines.append((source.name, f"{source.rows:,} rows, read as {source.format} ({shown})"))
        lines.append(
            (
                "in all",
                f"{self.used:,} examples to learn from, {self.held_out:,} held out; {self.tokens:,} tokens, "
                f"{self.trained_tokens:,} of them trained ({self.trained_share:.1%}), the longest has {self.longest:,}",
            )
        )
        if self.terminator:
            lines.append(("ends", f"an answer ends with {self.terminator!r}, which is trained"))
        for (status, reason), count in Counter(fate[2:] for fate in self.fates).items():
            lines.append((status, f"{count:,} {'row' if count == 1 else 'rows'}: {reason}"))
        return [*lines, *(("warning", warning) for warning in self.warnings)]


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

    def whole(self) -> Prepared:
        """Wait until all rows are there; their report is whole then.

        Raises:
            DataError: one of them could not be prepared.
        """
        held = None if self.eval is None else self.eval.whole()
        return replace(self, train=self.train.whole(), eval=held if held is not None and len(held) else None)


def conclude(report: Report, train: Dataset, held: Dataset | None) -> None:
    """Write counts and warnings about what was prepared.

    Raises:
        DataError: nothing would be trained.
    """
    report.used, report.held_out = len(train), len(held) if held is not None else 0
    report.tokens, report.trained_tokens = int(train.starts[-1]), int(train.trained.sum())
    report.longest = int(train.lengths.max())
    if report.trained_tokens == 0:
        raise DataError(
            "no token would be trained (0 %)", place="data", fix="check `train_on` and which column answers"
        )
    if report.trained_share < 0.05:
        report.warnings.append(
            f"only {report.trained_share:.1%} of the tokens are trained: the prompts are much longer than the answers; "
            "check that the right column is the answer"
        )
    if repeats := report.said_to_repeat:
        report.warnings.append("1 row repeats another one" if repeats == 1 else f"{repeats} rows repeat another one")
    if left_out := report.left_out():
        report.warnings.append(left_out)
    cut = report.count("cut")
    if cut:
        rows, whose = ("1 row was", "its end") if cut == 1 else (f"{cut} rows were", "their ends")
        report.warnings.append(
            f"{rows} cut: {whose}, with the token that ends an answer, {'is' if cut == 1 else 'are'} not learnt"
        )


def nothing_left(report: Report, max_len: int) -> DataError:
    """Return the error where every row was dropped."""
    reasons = sorted({fate[3] for fate in report.fates})
    fix = f"raise `sequence_len` (it is {max_len})"
    if any(reason.startswith(ALIKE) for reason in reasons):
        fix = "see that one answer of a pair is better than the other"
    elif any("trained" in reason for reason in reasons):
        fix = _FIX
    return _all_dropped(report.rows, reasons, [source.name for source in report.sources], fix)


def refuse_untrained(facts: DataFacts, count: int) -> None:
    """Refuse rows, all of which were looked at, of which no token would be trained.

    Args:
        facts: what was found in them, by their tokens.
        count: of the rows.

    Raises:
        DataError: as a run raises it.
    """
    if count and not facts.trained_tokens:
        raise _all_dropped(count, [EMPTY], facts.sources, _FIX)


def _all_dropped(count: int, reasons: Sequence[str], sources: Sequence[str], fix: str) -> DataError:
    return DataError(
        f"no token would be trained (0 %): all {count} rows were dropped ({'; '.join(reasons[:3])})",
        place=", ".join(sources),
        fix=fix,
    )
