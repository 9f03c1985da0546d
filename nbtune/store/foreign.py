"""Runs that another library's trainer makes, and nbtune watches (`nbtune.watch`): the folder says whose they are.

`trainer.json` names the trainer and the plain ones of its arguments. Its spec and its plan describe what that trainer
does; nothing here could do it again, so whoever would start such a run asks `refuse` first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nbtune.atomic_io import write_json
from nbtune.errors import TrainError
from nbtune.untrusted import BadFile, harmless, load, shortened

_FILE = "trainer.json"
_KNOWN = {"trl": "TRL", "transformers": "transformers", "unsloth": "Unsloth"}
_FIX = "call its trainer again; `trainer.train(resume_from_checkpoint=True)` goes on, and `nbtune.watch` shows it"


@dataclass(frozen=True)
class Foreign:
    """Whose run it is: the trainer's class, its library and that library's version."""

    trainer: str
    library: str = ""
    version: str = ""

    @property
    def words(self) -> str:
        """The trainer, as a sentence names it: "TRL's SFTTrainer"."""
        return f"{_KNOWN.get(self.library, self.library)}'s {self.trainer}" if self.library else self.trainer


def keep(folder: Path, foreign: Foreign, arguments: Mapping[str, Any]) -> None:
    """Write down whose run it is, and the trainer's arguments (JSON)."""
    body = {"trainer": foreign.trainer, "library": foreign.library, "version": foreign.version}
    write_json(folder / _FILE, {**body, "arguments": dict(arguments)})


def of(folder: Path) -> Foreign | None:
    """Return whose run it is; None: nbtune's own."""
    try:
        body = load(folder / _FILE, links=False)
    except (OSError, ValueError, BadFile):  # there is none; one that cannot be read is refused elsewhere
        return None
    trainer, library, version = (body.get(key) for key in ("trainer", "library", "version"))
    words = [shortened(harmless(one, line=True), 60) if isinstance(one, str) else "" for one in (library, version)]
    return Foreign(shortened(harmless(str(trainer), line=True), 60), *words)


def refuse(folder: Path, what: str) -> None:
    """Refuse what only nbtune's own runs can do.

    Args:
        what: as it follows on "nbtune cannot".

    Raises:
        TrainError: it is another trainer's.
    """
    foreign = of(folder)
    if foreign is not None:
        shown = harmless(folder.name, line=True)
        raise TrainError(f"the run `{shown}` was trained by {foreign.words}: nbtune cannot {what}", fix=_FIX)
