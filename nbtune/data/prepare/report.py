"""What was found in the data: every row's fate, counts, warnings. As data, as text, as a table."""

from __future__ import annotations

import html
from collections import Counter
from dataclasses import dataclass, field
from typing import Any


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
