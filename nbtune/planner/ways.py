"""What fits where: lengths × micro-batches × formats of the frozen weights, each with its memory and its speed."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from nbtune.models.memory_search import Fit, Setup, fit
from nbtune.spec.placement import BY_FORMAT, PlacementWish

_LENGTHS = (512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)
_MICROS = (1, 2, 4, 8)
_COLUMNS = ("adapter", "tokens a row", "rows at once", "fits", "memory", "tokens/s", "activations", "frozen weights")
_SPEEDS = "tokens/s are reckoned by its rates, not measured"


@dataclass(frozen=True)
class Way:
    """One way to train, and what it costs.

    Args:
        adapter: ``lora``, ``qlora``, ``full`` …; of `full` whether updates are made in backward, by which optimizer.
        sequence_len: tokens of a row.
        micro_batch_size: rows at once on a device.
        fits: whether it does; if not, the rest is that of the smallest way.
        bytes: expected peak on each device.
        tokens_per_second: of all devices together; a guess.
        activations, frozen: what blocks keep, and where frozen weights are, in words.
    """

    adapter: str
    sequence_len: int
    micro_batch_size: int
    fits: bool
    bytes: int
    tokens_per_second: float
    activations: str
    frozen: str

    def cells(self) -> tuple[str, ...]:
        """Return what a table shows of it."""
        speed = f"{self.tokens_per_second:,.0f}" if self.fits else ""
        fits = "yes" if self.fits else "no"
        memory = f"{self.bytes / 2**30:,.1f} GiB"
        held = (self.activations, self.frozen) if self.fits else ("", "")
        return (self.adapter, f"{self.sequence_len:,}", str(self.micro_batch_size), fits, memory, speed, *held)


class Ways(Sequence[Way]):
    """All ways that were reckoned, as a list; a notebook shows it as a table."""

    def __init__(self, ways: Iterable[Way], where: str) -> None:
        self._ways, self.where = tuple(ways), where

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        return self._ways[index]

    def __len__(self) -> int:
        return len(self._ways)

    def __str__(self) -> str:
        rows = [_COLUMNS, *(way.cells() for way in self)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([self._title(), *lines])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        def row(cells: Iterable[str], tag: str) -> str:
            return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

        body = "".join(row(way.cells(), "td") for way in self)
        return f"<table><caption>{html.escape(self._title())}</caption>{row(_COLUMNS, 'th')}{body}</table>"

    def _title(self) -> str:
        return f"on {self.where}: {_SPEEDS}"


def reckon(setups: Sequence[Setup], group: int) -> Ways:
    """Return the fastest way for each length, micro-batch and format.

    Args:
        setups: of a plan, of which the first that fits is taken; its length is among those that are tried.
        group: sequences of a row, as `Method.group`.
    """
    setup = setups[0]
    own = setup.sequence_len // group
    lengths = sorted({own, *(length for length in _LENGTHS if length <= setup.model.max_position)})
    ways = (
        _way([replace(one, sequence_len=length * group) for one in kinds], length, micro, name)
        for name, kinds in _kinds(setups)
        for length in lengths
        for micro in _MICROS
    )
    count = f"{setup.devices} × " * (setup.devices > 1)
    return Ways(ways, f"{count}{setup.device.name} ({setup.device.free / 2**30:.1f} GiB free)")


def _kinds(setups: Sequence[Setup]) -> list[tuple[str, Sequence[Setup]]]:
    """Return the kinds that are worth a look: the one that was asked for; LoRA in 16 and in 4 bits where it may be."""
    setup = setups[0]
    asked = setup.adapter.type
    if asked not in BY_FORMAT or setup.device.kind != "cuda":
        return [(asked, setups)]
    return [(name, [setup if name == asked else _of_type(setup, name)]) for name in BY_FORMAT]


def _of_type(setup: Setup, adapter: str) -> Setup:
    weights = PlacementWish.of_spec("auto", adapter).on_device(fp32=setup.dtype == "fp32")
    return replace(setup, adapter=setup.adapter.model_copy(update={"type": adapter}), weights=weights)


def _way(setups: Sequence[Setup], length: int, micro: int, name: str) -> Way:
    for setup in setups:
        setup = replace(setup, rows=micro) if setup.in_backward else setup
        best, smallest = fit(setup, [micro])
        if best is not None:
            break
    taken: Fit = best or smallest
    seconds = setup.seconds(taken)
    return Way(
        f"{name}, in backward ({setup.optimizer})" if setup.in_backward else name,
        length,
        micro,
        best is not None,
        taken.memory.total,
        setup.devices / seconds,
        taken.activations,
        taken.weights.words(setup.device.kind, setup.model.num_layers),
    )
