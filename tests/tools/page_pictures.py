"""Pictures of README.md, every page of the site and every notebook, light and dark, to be looked at one by one.

    python -m tests.tools.page_pictures FOLDER [--only how-to,notebooks] [--width 1100] [--axe]

`make site` comes first. Leaves FOLDER/PAGE-light-1.png … (three columns a picture, which one reads) and
FOLDER/PAGE-dark-1.png (four), and prints what a ruler finds in each: what is wider than the page, pictures that do not
load, messages on the console, with `--axe` also what axe-core finds. Two things stand in for what is not here: README
is shown in colours and type like GitHub's, notebooks as nbconvert shows them. Mermaid's diagrams need the network, or
a file that `NBTUNE_TEST_MERMAID` names (`npm pack mermaid` has it: dist/mermaid.min.js).
"""

from __future__ import annotations

import argparse
import functools
import io
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPO / "tests" / "e2e")]
SITE = REPO / "build" / "site"
COLUMN = 1500  # pixels of a page that stand in one column
COLUMNS = {"light": 3, "dark": 4}
WIDEST = 1560  # pixels of a picture's width

_LIKE_GITHUB = """<!doctype html><html lang="en"><meta charset="utf-8"><title>README</title><style>
:root { color-scheme: light dark }
body { max-width: 1012px; margin: 0 auto; padding: 32px; font: 16px/1.5 "Liberation Sans", Arial, sans-serif;
  background: light-dark(#fff, #0d1117); color: light-dark(#1f2328, #f0f6fc) }
a { color: light-dark(#0969da, #4493f8) } img { max-width: 100% }
h1, h2 { border-bottom: 1px solid #8884; padding-bottom: .3em }
code, pre { font: 85% "Liberation Mono", monospace; background: light-dark(#f6f8fa, #151b23); border-radius: 6px }
code { padding: .2em .4em } pre { padding: 16px; overflow: auto } pre code { padding: 0; font-size: 100% }
table { border-collapse: collapse; display: block; max-width: 100%; overflow: auto; margin-bottom: 16px }
td, th { border: 1px solid #8886; padding: 6px 13px }
</style><body>"""

_RULER = """() => {
    const seen = (node) => node.getBoundingClientRect().width > 0;
    const named = (node) => `${node.tagName.toLowerCase()} ${(node.innerText || node.src || "").slice(0, 60)}`;
    const scrolls = (node) => { for (; node; node = node.parentElement)
        if (/auto|scroll/.test(getComputedStyle(node).overflowX)) return true; return false; };
    const main = document.querySelector("article, main, body");
    const edge = document.documentElement.clientWidth + 1;
    const wide = [...main.querySelectorAll("*")].filter((node) => seen(node)
        && node.getBoundingClientRect().right > edge && !scrolls(node)
        && !node.closest(".md-nav, .md-sidebar, svg, [aria-hidden=true]"));
    const empty = [...document.images].filter((image) => seen(image) && image.complete && !image.naturalWidth);
    const cut = [...main.querySelectorAll("pre, table, .md-typeset__scrollwrap")].filter((node) => seen(node)
        && node.scrollWidth > node.clientWidth + 1)
        .map((node) => `scrolls sideways by ${node.scrollWidth - node.clientWidth}: ${named(node)}`);
    return [...wide.slice(0, 3).map((node) => `too wide: ${named(node)}`), ...cut,
        ...empty.map((image) => `no picture: ${image.getAttribute("src")}`)];
}"""


def main() -> int:
    """Take the pictures; return 1 where something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", default="", help="beginnings of pages' names")
    parser.add_argument("--width", type=int, default=1100)
    parser.add_argument("--axe", action="store_true")
    arguments = parser.parse_args()
    out = arguments.folder.resolve()
    out.mkdir(parents=True, exist_ok=True)
    wrong = 0
    with tempfile.TemporaryDirectory() as work, _served(_gathered(Path(work))) as url:
        from lab import Browser

        with Browser() as browser:
            for page in _pages(Path(work), tuple(filter(None, arguments.only.split(",")))):
                for theme in COLUMNS:
                    found = _looked(browser.chromium, url, page, theme, out, arguments)
                    print(f"{page} {theme}:", "; ".join(found) or "fine", flush=True)
                    wrong += len(found)
    return min(wrong, 1)


def _gathered(work: Path) -> Path:
    """Put all pages into one folder: README.html with its pictures, notebooks/, site/."""
    shutil.copytree(SITE, work / "site")
    shutil.copytree(REPO / "docs" / "pictures", work / "docs" / "pictures")
    from markdown_it import MarkdownIt

    text = MarkdownIt("commonmark").enable("table").render((REPO / "README.md").read_text(encoding="utf-8"))
    (work / "README.html").write_text(_LIKE_GITHUB + text, encoding="utf-8")
    from nbconvert import HTMLExporter

    for theme in COLUMNS:
        exporter = HTMLExporter(theme=theme)
        for notebook in (REPO / "example_notebooks").glob("*.ipynb"):
            body, _ = exporter.from_filename(str(notebook))
            path = work / "notebooks" / theme / f"{notebook.stem}.html"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(body, encoding="utf-8")
    return work


def _pages(work: Path, only: tuple[str, ...]) -> Iterator[str]:
    names = ["README", *(f"notebooks/{path.stem}" for path in sorted((work / "notebooks" / "light").glob("*.html")))]
    names += [f"site/{path.relative_to(work / 'site').with_suffix('')}" for path in sorted(_of_the_site(work))]
    return (name for name in names if not only or name.removeprefix("site/").startswith(only))


def _of_the_site(work: Path) -> list[Path]:
    found = (work / "site").rglob("*.html")
    return [path for path in found if path.name != "404.html" and "pictures" not in path.parts]


@functools.cache
def _mermaid() -> str:
    named = os.environ.get("NBTUNE_TEST_MERMAID")
    return Path(named).read_text(encoding="utf-8") if named else ""


def _looked(chromium: Any, url: str, name: str, theme: str, out: Path, arguments: argparse.Namespace) -> list[str]:
    """Take a page's pictures in a theme; return what is wrong with it."""
    found: list[str] = []
    context = chromium.new_context(color_scheme=theme, viewport={"width": arguments.width, "height": 1000})
    page = context.new_page()
    page.set_default_timeout(180_000)  # a machine that is shared may be slow
    page.on("pageerror", lambda error: found.append(str(error)))
    page.on("console", lambda said: found.append(said.text) if said.type in ("error", "warning") else None)
    page.route(lambda asked: not asked.startswith(url), _elsewhere)
    file = f"notebooks/{theme}/{name.removeprefix('notebooks/')}" if name.startswith("notebooks/") else name
    page.goto(f"{url}/{file}.html")
    page.evaluate("() => { for (const image of document.images) image.loading = 'eager'; }")
    page.wait_for_load_state("networkidle")
    page.add_style_tag(content=".md-header, .md-tabs, .md-sidebar, .md-footer { display: none !important }")
    tall = page.evaluate("document.documentElement.scrollHeight")
    page.set_viewport_size({"width": arguments.width, "height": min(tall, 16_000)})
    page.wait_for_timeout(300)
    found = [said for said in found if "net::ERR" not in said]  # of other servers, which are not asked
    found += page.evaluate(_RULER)
    if arguments.axe:
        page.evaluate((REPO / "js" / "node_modules" / "axe-core" / "axe.min.js").read_text(encoding="utf-8"))
        told = page.evaluate("() => axe.run('article, main, body', { resultTypes: ['violations'] })")
        nodes = [(each["id"], each["nodes"]) for each in told["violations"]]
        found += [f"axe {rule} ×{len(some)}: {some[0]['html'][:120]}" for rule, some in nodes]
    file = f"{name.removeprefix('site/').replace('/', '-')}-{theme}"
    _columns(page.screenshot(full_page=True), out / file, COLUMNS[theme])
    context.close()
    return found


def _elsewhere(route: Any) -> None:
    """Answer what a page asks of another server: Mermaid from a file, all else with nothing."""
    if "mermaid" in route.request.url and _mermaid():
        route.fulfill(body=_mermaid(), content_type="text/javascript")
    else:
        route.abort()


def _columns(png: bytes, path: Path, columns: int) -> None:
    """Write a page that is tall as pictures of some columns beside each other."""
    from PIL import Image

    whole = Image.open(io.BytesIO(png)).convert("RGB")
    tops = range(0, whole.height, COLUMN)
    pieces = [whole.crop((0, top, whole.width, min(top + COLUMN, whole.height))) for top in tops]
    for number, first in enumerate(range(0, len(pieces), columns), 1):
        some = pieces[first : first + columns]
        sheet = Image.new("RGB", ((whole.width + 10) * len(some), max(piece.height for piece in some)), "#888")
        for k, piece in enumerate(some):
            sheet.paste(piece, (k * (whole.width + 10), 0))
        share = min(1.0, WIDEST / ((whole.width + 10) * columns))
        if len(some) < columns:
            share = min(0.8, WIDEST / sheet.width)
        small = sheet.resize((int(sheet.width * share), int(sheet.height * share)), Image.Resampling.LANCZOS)
        small.quantize(64, dither=Image.Dither.NONE).save(path.with_name(f"{path.name}-{number}.png"), optimize=True)


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing of what was asked for."""


class _served:
    """A folder at an address of this machine."""

    def __init__(self, folder: Path) -> None:
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(folder)))

    def __enter__(self) -> str:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self.server.server_port}"

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()


if __name__ == "__main__":
    raise SystemExit(main())
