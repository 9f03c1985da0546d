"""What will be possible with a model, said before anything is spent: one object, shown by plan, run, panels and card.

Each room answers for its part (`nbtune.engine.abilities` gathers them). A plan asks a small copy with random weights
and the headers of the weight files, a run asks the loaded model before its first step. Nothing is claimed that was not
tried: what could not be is None, with the reason.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from nbtune import events
from nbtune.errors import PlanError
from nbtune.untrusted import harmless

_UNKNOWN = "not known"


_APART = "rows in one sequence do not see each other"


def leaks(architecture: str, words: str) -> PlanError:
    """Return the refusal of packs: the same sentence by a plan and by a run."""
    return PlanError(
        f"{architecture} does not keep the rows of a pack apart: {words}",
        fix="leave `packing` out, or write `packing: auto`, so that each row is a sequence of its own",
    )


class Claim(BaseModel):
    """Whether something holds, as it was tried, and what there is to say of it in a sentence; None: it is not known."""

    model_config = ConfigDict(frozen=True)

    holds: bool | None = None
    words: str = ""

    def said(self, yes: str, no: str) -> str:
        """Return the claim for people."""
        word = _UNKNOWN if self.holds is None else yes if self.holds else no
        return f"{word}: {self.words}" if self.words else word


class Blocks(BaseModel):
    """Some blocks of a model that nbtune's kernels are put onto, or that are left as they are, and why.

    `what` is ``layers``, ``norm``, ``head`` or ``model``.
    """

    model_config = ConfigDict(frozen=True)

    what: str
    count: int
    accelerated: bool
    why: str = ""


class Abilities(BaseModel):
    """What was found of a model, with the adapter and the method of a run.

    Args:
        tried: on a ``small`` copy with random weights, or on the ``loaded`` model.
        blocks: which are accelerated, and which are not and why.
        trained: numbers that are trained.
        frozen_bytes: of what is not, in memory.
        rounded: frozen numbers that are kept in 4 or 8 bits.
        experts: numbers in a mixture's experts, which are no linear layers.
        settings: windows, caps and multipliers as the config has them.
        weights: every weight of the model comes from its files, and these hold no others.
        packing: documents of a pack leave each other alone.
        ends: generation stops at what trained answers end with.
        merging: the adapter can be merged into its base.
        gguf: the merged model can be written as GGUF.
    """

    model_config = ConfigDict(frozen=True)

    tried: Literal["small", "loaded"] = "small"
    blocks: tuple[Blocks, ...] = ()
    trained: int = 0
    frozen_bytes: int = 0
    rounded: int = 0
    experts: int = 0
    settings: dict[str, str] = {}
    weights: Claim = Claim()
    packing: Claim = Claim()
    ends: Claim = Claim()
    merging: Claim = Claim()
    gguf: Claim = Claim()

    def takes(self, what: str) -> bool | None:
        """Return whether all blocks of a kind are accelerated; None: it is not known."""
        accelerated = [blocks.accelerated for blocks in self.blocks if blocks.what in (what, "model")]
        return all(accelerated) if accelerated else None

    def share_of_layers(self) -> float | None:
        """Return the share of layers that are accelerated, 0 to 1; None: it is not known."""
        counts = [(one.accelerated, one.count) for one in self.blocks if one.what in ("layers", "model")]
        every = sum(count for _, count in counts)
        return sum(count for accelerated, count in counts if accelerated) / every if every else None

    def event(self) -> events.Abilities:
        """Return the same as what a run says."""
        return events.Abilities(tried=self.tried, said=dict(self.rows()))

    def rows(self) -> list[tuple[str, str]]:
        """Return (what, value) pairs, in the order a person asks for them."""
        rows = [
            ("accelerated", self._accelerated()),
            ("settings", ", ".join(f"{name} {value}" for name, value in self.settings.items())),
            ("weights", self.weights.said("all there", "refused")),
            ("packing", self.packing.said(_APART, "rows in one sequence see each other")),
            ("answers end", self.ends.said("generation stops", "generation does not stop")),
            ("merging", self.merging.said("can be merged", "cannot be merged")),
            ("GGUF", self.gguf.said("can be written", "cannot be written")),
        ]
        return [(name, harmless(value, line=True)) for name, value in rows if value]

    def known(self) -> list[tuple[str, str]]:
        """Return those of the rows that say something."""
        return [(name, value) for name, value in self.rows() if not value.startswith(_UNKNOWN)]

    def _accelerated(self) -> str:
        taken = [_counted(blocks) for blocks in self.blocks if blocks.accelerated]
        left = [f"{_counted(blocks)} left as {_they(blocks)}: {blocks.why}" for blocks in self.blocks if blocks.why]
        return "; ".join([", ".join(taken) or "nothing", *left]) if self.blocks else f"{_UNKNOWN} before it is loaded"


def _counted(blocks: Blocks) -> str:
    layers = "1 layer" if blocks.count == 1 else f"{blocks.count} layers"
    if blocks.what == "experts":
        return f"the experts of {layers}"
    return layers if blocks.what == "layers" else f"the {blocks.what}"


def _they(blocks: Blocks) -> str:
    return "they are" if blocks.count > 1 else "it is"


def needs_own_blocks(blocks: Iterable[Blocks]) -> PlanError | None:
    """Return the refusal of 8-bit weights where some layers are left alone: what is exported is rounded in the same
    way.

    The same sentence by a plan and by a run; None: all layers are nbtune's.
    """
    left = next((one for one in blocks if one.what in ("layers", "model") and not one.accelerated), None)
    if left is None:
        return None
    verb = "are" if left.count > 1 else "is"
    return PlanError(
        f"8-bit weights need nbtune's own blocks, and {_counted(left)} {verb} none: {left.why}",
        fix="write `weights: auto`",
    )


# What changes numbers and is easily forgotten by a kernel; sizes, counts and switches of training are something else.
_SETTING = re.compile(r"window|soft_?cap|logits?_(cap|scal)|multiplier|attention_chunk|_scalar$|alibi|sinks")
_NOT = re.compile(r"layer|pattern|rope|initializer|loss|coef")


def settings_of(config: Any) -> dict[str, str]:
    """Return windows, soft caps and multipliers of a model's config, by name; what is off or 1 is left out.

    Args:
        config: of transformers; of a model of several kinds its text's is read.
    """
    part = config.get_text_config() if hasattr(config, "get_text_config") else config
    off = not getattr(part, "use_sliding_window", True)
    figures = {}
    for name, value in sorted(vars(part).items()):
        if name.startswith("_") or not _SETTING.search(name) or _NOT.search(name):
            continue
        if isinstance(value, bool) or not _tells(value) or (off and "window" in name):
            continue
        figures[name] = ", ".join(f"{one:g}" for one in value) if isinstance(value, list | tuple) else f"{value:g}"
    return figures


def _tells(value: Any) -> bool:
    """Return a number, or a few, that would change something."""
    if isinstance(value, list | tuple):
        return 0 < len(value) <= 8 and all(isinstance(one, int | float) for one in value) and set(value) != {1}
    return isinstance(value, int | float) and value not in (0, 1)


def grouped(entries: Iterable[tuple[str, bool, str, int]]) -> tuple[Blocks, ...]:
    """Return (what, accelerated, why, count) with equal ones counted together, layers first."""
    counts: dict[tuple[str, bool, str], int] = {}
    for what, accelerated, why, count in entries:
        counts[what, accelerated, why] = counts.get((what, accelerated, why), 0) + count
    order = sorted(counts, key=lambda key: (not key[1], key[0] != "layers"))
    return tuple(Blocks(what=k[0], accelerated=k[1], why=k[2], count=counts[k]) for k in order)
