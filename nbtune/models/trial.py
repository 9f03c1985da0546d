"""A model tried before it is loaded: its small copy with the run's adapter and acceleration, and what came of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from nbtune.errors import NbtuneError
from nbtune.models.abilities import Blocks, grouped
from nbtune.models.adapters import add_adapter
from nbtune.models.causal_check import refuse_unless_causal
from nbtune.models.loading import load_model
from nbtune.models.miniature import miniature
from nbtune.models.transformers_state import hidden_bars
from nbtune.spec.placement import PLAIN, Placement

if TYPE_CHECKING:
    from torch import nn

    from nbtune.models.accelerate import Patch, Report
    from nbtune.models.accelerate.layer_spec import Layer
    from nbtune.spec import AdapterSpec


@dataclass(frozen=True)
class Trial:
    """What was tried.

    Args:
        model: the small copy, ready to train, on the CPU in float32; None: it could not be made.
        patch: its acceleration.
        blocks: of the real model: which are accelerated, which are left alone and why.
        why: what kept it from being made.
    """

    model: nn.Module | None
    patch: Patch | None = None
    blocks: tuple[Blocks, ...] = ()
    why: str = ""

    @property
    def layers(self) -> list[Layer]:
        """Those that are accelerated."""
        return [] if self.patch is None else self.patch.layers


def try_small(
    model: str,
    adapter: AdapterSpec,
    *,
    weights: Placement = PLAIN,
    accelerate: bool = True,
    trust_remote_code: bool = False,
) -> Trial:
    """Build a small copy of a model as a run builds the model.

    Args:
        model: ``nbtune/tiny``, a folder, or a Hub id; of its files the config alone is read.
        weights: in what format the frozen ones are; 32 bits in place of 16.
        adapter, accelerate, trust_remote_code: of the run.

    Raises:
        SpecError, HubError: see `nbtune.models.build`.
    """
    try:
        small = miniature(model, trust_remote_code=trust_remote_code)
        refuse_unless_causal(small.model, model)
        # a stranger's code need not be saved to be loaded again, and a plan may be made where nothing rounds to 4 bits
        rounds = weights.four_bit and not trust_remote_code and find_spec("bitsandbytes") is not None
        base = _in_four_bits(small.model) if rounds else small.model
        made: Any = add_adapter(base, adapter.anywhere, seed=0)
        if not accelerate:
            return Trial(made, blocks=(Blocks(what="model", count=1, accelerated=False, why="`accelerate` is off"),))
        from nbtune.models.accelerate import apply

        patch = apply(made, weights=weights if rounds or weights.eight_bit else PLAIN)
    except NbtuneError:
        raise
    except Exception as error:  # noqa: BLE001 — a family's own code may not run in small: then nothing is claimed
        said = " ".join(str(error).split())[:200]
        return Trial(None, why=f"a small copy of it could not be tried ({type(error).__name__}: {said})")
    return Trial(made, patch, blocks_of(patch.report, small.kinds))


def _in_four_bits(model: Any) -> nn.Module:
    """Return a model rounded as one that is loaded is."""
    import torch

    with TemporaryDirectory(prefix="nbtune-small-", ignore_cleanup_errors=True) as folder:
        with hidden_bars():
            model.save_pretrained(folder)
        return load_model(folder, dtype=torch.float32, device="cpu", weights=Placement(format="nf4"))


def blocks_of(report: Report, layers: Sequence[int] | None = None) -> tuple[Blocks, ...]:
    """Return a report by kinds of blocks.

    Args:
        report: of the acceleration.
        layers: which layer of the report each layer of the model is like; None: it is of that model.
    """
    entries: list[tuple[str, bool, str, int]] = []
    for name, why in [*((name, "") for name in report.taken), *report.left.items()]:
        what, _, number = name.partition(".")
        count = sum(layer == int(number) for layer in layers) if number and layers is not None else 1
        entries.append((what, name in report.taken, why, count))
    return grouped(entry for entry in entries if entry[3])
