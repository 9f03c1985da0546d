"""The moving picture of README.md, taken from the real thing: a notebook in JupyterLab, its cell, the run, an answer.

    python -m tests.tools.readme_picture docs/pictures/run.gif

A headless Chromium runs the README's own cell with the embedded model and is looked at until the run is over; frames in
which nothing moved are left out. Ends with an error above 3 MB.
"""

from __future__ import annotations

import io
import os
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPO / "tests" / "e2e")]
MOST_BYTES = 3_000_000
WIDTH, HEIGHT, SHOWN = 900, 900, 820  # pixels of the page, and of the picture's width
MOST_FRAMES, BETWEEN = 40, 1.2  # seconds between two looks


def main() -> None:
    """Take the picture."""
    out = Path(sys.argv[1] if sys.argv[1:] else REPO / "docs" / "pictures" / "run.gif").resolve()
    os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    frames = looked_at(readme_cell())
    out.parent.mkdir(parents=True, exist_ok=True)
    write(frames, out)
    print(f"{out}: {len(frames)} frames, {out.stat().st_size / 1e6:.2f} MB")
    if out.stat().st_size > MOST_BYTES:
        sys.exit(f"more than {MOST_BYTES / 1e6:.0f} MB")


def readme_cell() -> str:
    """Return the first cell of the README, word for word."""
    text = (REPO / "README.md").read_text(encoding="utf-8")
    found = re.search(r"^```\n(%%finetune.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    assert found, "README.md shows no cell"
    return found[1].rstrip()


def looked_at(cell: str) -> list[bytes]:
    """Return pictures (PNG) of the page, from the cell's start to an answer of the tuned model."""
    from lab import Browser, Lab

    question = 'run.generate("Who sells clocks? Reply in JSON (answer, topic).")'
    frames: list[bytes] = []
    with Lab(Path(tempfile.mkdtemp(prefix="nbtune-readme-"))) as lab, Browser() as browser:
        page = browser.open(lab, ["%load_ext nbtune", cell, question], width=WIDTH, height=HEIGHT)
        page.run(0)
        frames.append(seen(page))
        page.run(1)
        state = page.page.locator(".nbt-monitor .nbt-state").first
        state.wait_for(state="attached")
        while (now := state.get_attribute("data-state")) not in ("finished", "failed", "stopped"):
            if now == "preparing" and len(frames) > 2:
                del frames[2:]  # one of them says it all
            add(frames, seen(page))
            time.sleep(BETWEEN)
        add(frames, seen(page))
        page.run(2)
        page.cell(2).scroll_into_view_if_needed()
        add(frames, seen(page))
    return frames


def seen(page: Any) -> bytes:
    """Return what the page shows, as PNG."""
    return bytes(page.page.screenshot())


def add(frames: list[bytes], frame: bytes) -> None:
    """Add a frame where it differs from the one before; of too many each second one stays."""
    if frame != frames[-1]:
        frames.append(frame)
    if len(frames) > MOST_FRAMES:
        del frames[1:-1:2]


def write(frames: list[bytes], out: Path) -> None:
    """Write frames as one GIF that repeats: the first and the last stand longer."""
    from PIL import Image

    pictures = [Image.open(io.BytesIO(frame)).convert("RGB") for frame in frames]
    sized = [picture.resize((SHOWN, picture.height * SHOWN // picture.width)) for picture in pictures]
    palette = sized[len(sized) // 2].quantize(64)
    drawn = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in sized]
    stand = [1500, *([350] * (len(drawn) - 2)), 4000]
    drawn[0].save(out, save_all=True, append_images=drawn[1:], duration=stand, loop=0, optimize=True)


if __name__ == "__main__":
    main()
