"""The door of the acceleration: attach, report, remove."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nbtune.models.policy import MemoryPolicy

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Handle", "Report", "accelerate"]


@dataclass
class Report:
    """What was taken, and what was left alone and why (name of the block → reason)."""

    taken: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """The report for people: equal reasons are counted together."""
        out = []
        for verb, entries in (("accelerated", self.taken), ("left as it is", self.left)):
            for reason in dict.fromkeys(entries.values()):
                names = [n for n, r in entries.items() if r == reason]
                what = names[0] if len(names) == 1 else f"{len(names)} blocks ({names[0]} … {names[-1]})"
                out.append(f"{verb}: {what}: {reason}")
        return out


@dataclass
class Handle:
    """The acceleration of one model; `remove` puts its stock forward back."""

    report: Report
    policy: MemoryPolicy
    undo: list[Callable[[], None]] = field(default_factory=list)

    def remove(self) -> None:
        """Puts the stock model back; calling it twice does no harm."""
        while self.undo:
            self.undo.pop()()


def accelerate(model: "nn.Module", policy: MemoryPolicy = "keep") -> Handle:
    """Replaces `forward` on the blocks of this very model that are understood, and only there."""
    return Handle(Report(), policy)
