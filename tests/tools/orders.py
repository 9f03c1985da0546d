"""Panels in one page in every order: can the words of each button still be read, whichever came first?

    python -m tests.tools.orders [--longer 40] [--seed 1]

Every panel after every other one, then a sample of longer orders; in light and dark, each visible button as it is,
under the pointer, pressed and with the focus (`pictures.pale`). Prints what has less than 4.5 : 1.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPO / "tests" / "widgets"), str(REPO / "tests" / "e2e")]
WIDE = 1000  # pixels
KINDS = {
    "home": "home-with-all-kinds-of-runs",
    "form": "form-filled",
    "inspector": "inspector-tokens",
    "monitor": "monitor-finished",
    "chat": "chat-answered",
    "export": "export-made-and-pushing",
    "compare": "compare-two",
    "losses": "losses-measured",
}
"""Each kind of panel, and the state of `panel_states` in which it has most buttons."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--longer", type=int, default=40, help="orders of three panels and more")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="nbtune-orders-"))
    os.chdir(work)
    os.environ.update(NBTUNE_RUNS=str(work / "runs"), HF_HOME=str(work / "hf"), HF_HUB_OFFLINE="1", HOME=str(work))
    from lab import Browser

    from tests.tools.live_page import LivePage

    wrong = done = 0
    with Browser() as browser, LivePage(browser.chromium) as page:
        widgets = panels(page, KINDS)
        for order in [*pairs(KINDS), *longer(KINDS, arguments.longer, arguments.seed)]:
            found = pale_in(page, widgets, order) + page.complaints
            page.complaints.clear()
            print(f"{' → '.join(order)}: {'fine' if not found else ''}", *found, sep="\n    ", flush=True)
            wrong, done = wrong + len(found), done + 1
    print(f"{done} orders, {wrong} findings")
    return min(wrong, 1)


def pairs(names: Iterable[str]) -> Iterator[tuple[str, ...]]:
    """Yield every panel after every other one."""
    return itertools.permutations(names, 2)


def longer(names: Iterable[str], count: int, seed: int) -> Iterator[tuple[str, ...]]:
    """Yield so many orders of three panels and more, each drawn."""
    draw, every = random.Random(seed), list(names)
    for _ in range(count):
        yield tuple(draw.sample(every, draw.randint(3, len(every))))


def panels(page: Any, kinds: dict[str, str]) -> dict[str, Any]:
    """Return a widget of each kind, brought into its state."""
    from tests.tools.panel_states import STATES

    return {name: STATES[state](page) for name, state in kinds.items()}


def pale_in(page: Any, widgets: dict[str, Any], order: Sequence[str]) -> list[str]:
    """Show panels in an order in an empty page; return the buttons whose words are hard to read."""
    from tests.tools.pictures import pale

    page.clear()
    for name in order:
        page.show(widgets[name], beside=True)
    found = []
    for theme in ("light", "dark"):
        page.look(theme, WIDE)
        tall = page.page.evaluate("() => document.body.scrollHeight")
        page.page.set_viewport_size(
            {"width": WIDE, "height": tall + 40}
        )  # what is out of sight is painted when it is seen
        page.rest()
        found += [f"{theme}: {each}" for each in pale(page.page)]
    return found


if __name__ == "__main__":
    raise SystemExit(main())
