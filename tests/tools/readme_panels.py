"""The pictures of every panel in README.md and docs/panels.md, light and dark, from the kernel's real widgets,
and the page that replays the recorded run of 8B.

    python -m tests.tools.readme_panels [docs/pictures] [--only form,chat]

Runs are real ones of the embedded model, which are made first (three minutes), and the recorded one of 8B. Ends with an
error where a page complains, or where all pictures together are over 1.5 MB.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import nbtune
from nbtune import widgets
from nbtune.store.run_reader import RunReader
from tests.tools.pictures import REPO

QUESTION = "Who sells clocks? Reply in JSON (answer, topic)."
RUNS: dict[str, dict[str, Any]] = {  # real ones of the embedded model, made before the first picture
    "careful": {"data": "nbtune/json-answers", "steps": 100, "learning_rate": 1e-3, "eval": {"every": 20}},
    "kind": {"data": "nbtune/preferences", "method": "dpo", "steps": 30, "learning_rate": 1e-3},
    "demo": {"data": "nbtune/json-answers", "steps": 200, "eval": {"every": 20}, "samples": [QUESTION]},
}
RECORDED = REPO / "docs" / "recordings"  # the 8B run of docs/replay.md
SHOWN: dict[str, Callable[[Any], Any]] = {}
"""Picture's name → what brings a page there, and returns the widget."""


def shown(show: Callable[[Any], Any]) -> Callable[[Any], Any]:
    SHOWN[show.__name__] = show
    return show


@cache
def runs() -> dict[str, Any]:
    return {name: nbtune.finetune(model="nbtune/tiny", name=name, **spec).wait() for name, spec in RUNS.items()}


def at(page: Any, widget: Any, until: str = "") -> Any:
    page.show(widget)
    page.rest(until, 300)
    return widget


@shown
def home(page: Any) -> Any:
    runs()
    return at(page, widgets.home(nbtune.attach, nbtune.plan, nbtune.finetune, {}), ".nbt")


@shown
def form(page: Any) -> Any:
    widget = at(page, widgets.form(nbtune.plan, nbtune.finetune, {}))
    widget.values = {"model": "nbtune/tiny", "data": "nbtune/json-answers", "steps": 200}
    widget.do_check(dict(widget.values))
    page.rest(".nbt-form[data-costs=known]")
    return widget


@shown
def inspector(page: Any) -> Any:
    return at(page, widgets.inspect(runs()["demo"]), ".nbt-tok.nbt-on")


@shown
def monitor(page: Any) -> Any:
    return at(page, widgets.monitor(RunReader(next(RECORDED.glob("run8b-*")))), ".nbt-monitor[data-plotly=true]")


@shown
def card(page: Any) -> Any:
    widget = at(page, widgets.monitor(runs()["demo"]), ".nbt-finish")
    while page.page.get_by_text("Asking the base").count():  # they answer the held-out rows
        page.rest()
    return widget


@shown
def losses(page: Any) -> Any:
    return at(page, widgets.losses(runs()["demo"]).wait().panel(), "tbody tr")


@shown
def compare(page: Any) -> Any:
    return at(page, widgets.compare([runs()[name] for name in ("demo", "careful")]), ".nbt-compare[data-plotly=true]")


@shown
def chat(page: Any) -> Any:
    widget = at(page, widgets.chat(runs()["demo"]))
    for words in (QUESTION, "How much is 2 plus 3? Reply in JSON (answer, topic)."):
        widget.do_ask(words, max_new_tokens=60)
        page.rest()
        while widget.busy:
            page.rest()
    return widget


@shown
def export(page: Any) -> Any:
    return at(page, widgets.exporter(runs()["demo"]))


WIDTH, TALLEST = 900, 1000  # pixels
MOST_BYTES = 1_500_000


def main() -> None:
    """Take the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=REPO / "docs" / "pictures")
    parser.add_argument("--only", default="", help="names of pictures")
    arguments = parser.parse_args()
    out = arguments.folder.resolve()
    work = Path(tempfile.mkdtemp(prefix="nbtune-pictures-"))
    os.chdir(work)
    os.environ.update(NBTUNE_RUNS=str(work / "runs"), HF_HOME=str(work / "hf"), HF_HUB_OFFLINE="1", HOME=str(work))
    complaints = taken(
        out, [name for name in SHOWN if name in (arguments.only.split(",") if arguments.only else SHOWN)]
    )
    if not arguments.only:
        replayed(out / "run8b.html")
    whole = sum(path.stat().st_size for path in out.glob("*.webp"))
    print(f"{out}: {whole / 1e6:.2f} MB")
    if complaints or whole > MOST_BYTES:
        sys.exit("\n".join([*complaints, f"{whole:,} bytes, of at most {MOST_BYTES:,}"]))


def taken(out: Path, names: list[str]) -> list[str]:
    """Take pictures into a folder; return what the page complained of."""
    from lab import Browser

    from tests.tools.live_page import LivePage

    complaints: list[str] = []
    with Browser() as browser, LivePage(browser.chromium) as page:
        for name in names:
            page.look("light", WIDTH)
            widget = SHOWN[name](page)
            for theme in ("light", "dark"):
                write(shot(page, theme), out / f"{name}-{theme}.webp")
            widget.close()
            complaints += [f"{name}: {said}" for said in page.complaints]
            page.complaints.clear()
    return complaints


def replayed(path: Path) -> None:
    """Write the recorded run's page, of a copy: who looks at a run may write beside it."""
    copy = Path("recordings").resolve()
    shutil.copytree(RECORDED, copy)
    made = nbtune.attach("run8b", copy).html(path)
    print(f"{made.name}: {made.stat().st_size / 1e3:.0f} kB")


def shot(page: Any, theme: str) -> bytes:
    """Return the panel's picture (PNG) in a theme, its upper part where it is tall."""
    page.look(theme, WIDTH)
    panel = page.page.locator("#host .nbt").first
    height = min(int(panel.bounding_box()["height"]) + 24, TALLEST)
    page.page.set_viewport_size({"width": WIDTH, "height": height})
    page.page.evaluate("() => { document.activeElement?.blur(); scrollTo(0, 0); }")
    page.rest()
    return bytes(page.page.screenshot())


def write(png: bytes, path: Path) -> None:
    """Write a picture as WebP: lossless, of as many colours as text and lines need."""
    from PIL import Image

    few = Image.open(io.BytesIO(png)).convert("RGB").quantize(128, dither=Image.Dither.NONE)
    few.convert("RGB").save(path, "WEBP", lossless=True, quality=100, method=6)
    print(f"{path.name}: {path.stat().st_size / 1e3:.0f} kB", flush=True)


if __name__ == "__main__":
    main()
