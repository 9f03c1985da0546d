"""Pictures of every panel in every state, to be looked at one by one, and what a ruler and axe-core find wrong in each.

    python -m tests.tools.pictures FOLDER [--only monitor,form] [--looks light-1400,dark-320]

Leaves FOLDER/STATE-LOOK.png, FOLDER/sheets/STATE.png with the narrow looks side by side, and prints what was found.
docs/explanation/design.md says what a picture is looked at for.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPO / "tests" / "widgets"), str(REPO / "tests" / "e2e")]
LOOKS = [(theme, width) for width in (320, 700, 1400) for theme in ("light", "dark")]
TALLEST = 6000  # pixels of a picture
ON_ITS_WAY = "() => [...document.querySelectorAll('#host .nbt-skeleton')].some((bar) => bar.checkVisibility())"
PATIENCE = 100  # times that a page may come to rest with something on its way
CONTRASTS = (REPO / "tests" / "tools" / "contrast.js").read_text(encoding="utf-8").split("\n", 2)[2]
LEAST = 4.5  # contrast of a button's words (WCAG 2, AA)
TOUCHED = ([], ["hover"], ["hover", "active"], ["focus", "focus-visible"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", default="", help="beginnings of states' names")
    parser.add_argument("--language", default="en", help="of the page: en, de")
    parser.add_argument("--looks", default=",".join(f"{theme}-{width}" for theme, width in LOOKS))
    arguments = parser.parse_args()
    out = arguments.folder.resolve()
    out.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="nbtune-pictures-"))
    os.chdir(work)
    os.environ.update(NBTUNE_RUNS=str(work / "runs"), HF_HOME=str(work / "hf"), HF_HUB_OFFLINE="1", HOME=str(work))
    looks = [(theme, int(width)) for theme, width in (look.split("-") for look in arguments.looks.split(","))]
    return taken(out, tuple(filter(None, arguments.only.split(","))), looks, arguments.language)


def taken(out: Path, only: tuple[str, ...], looks: list[tuple[str, int]], language: str = "en") -> int:
    from lab import Browser

    from tests.tools.live_page import LivePage
    from tests.tools.panel_states import STATES

    wrong = 0
    with Browser() as browser, LivePage(browser.chromium) as page:
        page.page.evaluate("(language) => { document.documentElement.lang = language; }", language)
        for name, show in STATES.items():
            if only and not name.startswith(only):
                continue
            page.look("light", 1400)
            try:
                widget = show(page)
                found = [
                    f"{theme} {width}: {each}"
                    for theme, width in looks
                    for each in looked(page, out, name, theme, width)
                ]
                widget.close()
            except Exception as error:  # noqa: BLE001  # one state that cannot be shown is a finding, the others are taken
                found = [f"NOT TAKEN: {type(error).__name__}: {error}"]
            found += page.complaints
            page.complaints.clear()
            print(f"{name}: {'fine' if not found else ''}", *found, sep="\n    ", flush=True)
            wrong += len(found)
            sheet(out, name)
    return min(wrong, 1)


def looked(page: Any, out: Path, name: str, theme: str, width: int) -> list[str]:
    """Take one picture; return what is wrong with what it shows."""
    page.look(theme, width)
    whole(page)
    panel = page.page.locator("#host .nbt").first
    for _ in range(3):  # what is on its way makes a panel higher
        tall = int(panel.bounding_box()["height"]) + 40
        page.page.set_viewport_size({"width": width, "height": max(600, min(tall, TALLEST))})
        whole(page)
        if int(panel.bounding_box()["height"]) + 40 == tall:
            break
    page.page.screenshot(path=str(out / f"{name}-{theme}-{width}.png"))
    return [
        *panel.evaluate(Path(__file__).with_suffix(".js").read_text(encoding="utf-8").partition("\n")[2]),
        *grave(page.page),
        *pale(page.page),
    ]


def whole(page: Any) -> None:
    """Let a page come to rest, until no grey bar stands in place of what is on its way."""
    for _ in range(PATIENCE):
        page.rest()
        if not page.page.evaluate(ON_ITS_WAY):
            return


def pale(page: Any) -> list[str]:
    """Return the buttons whose words are hard to read, as they are, under the pointer, pressed, and with the focus."""
    reach = page.context.new_cdp_session(page)
    reach.send("DOM.enable")
    reach.send("CSS.enable")
    root = reach.send("DOM.getDocument")["root"]["nodeId"]
    buttons = reach.send("DOM.querySelectorAll", {"nodeId": root, "selector": ".nbt button"})["nodeIds"]
    found = []
    for touched in TOUCHED:
        for button in buttons:
            reach.send("CSS.forcePseudoState", {"nodeId": button, "forcedPseudoClasses": touched})
        weak = [each for each in page.evaluate(CONTRASTS) if each["contrast"] < LEAST]
        found += [f"pale ({' '.join(touched)}): {each['words'][:40]} {each['contrast']:.2f}" for each in weak]
    reach.detach()
    return found


def grave(page: Any) -> list[str]:
    """Return what axe-core finds serious or critical."""
    page.evaluate((REPO / "js" / "node_modules" / "axe-core" / "axe.min.js").read_text(encoding="utf-8"))
    found = page.evaluate("() => axe.run('#host', { resultTypes: ['violations'] })")["violations"]
    some = [each for each in found if each["impact"] in ("serious", "critical")]
    return [f"axe {each['id']}: {node['html'][:160]}" for each in some for node in each["nodes"][:3]]


def sheet(out: Path, name: str) -> None:
    """Put the narrow pictures of a state side by side."""
    from PIL import Image

    paths = [out / f"{name}-{theme}-{width}.png" for width in (320, 700) for theme in ("light", "dark")]
    shown = [Image.open(path).convert("RGB") for path in paths if path.exists()]
    if not shown:
        return
    whole = Image.new("RGB", (sum(one.width + 8 for one in shown), max(one.height for one in shown)), "#888")
    left = 0
    for one in shown:
        whole.paste(one, (left, 0))
        left += one.width + 8
    (out / "sheets").mkdir(exist_ok=True)
    whole.save(out / "sheets" / f"{name}.png")


if __name__ == "__main__":
    raise SystemExit(main())
