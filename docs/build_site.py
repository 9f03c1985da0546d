"""Builds the documentation's site: `make site` (with zensical, which reads what mkdocs-material read).

    python docs/build_site.py [OUT]      # build/site by default

The pages are those of docs/ and the change log, as they are; links that lead out of docs/ (a notebook, a file of the
package) lead to the repository. The order of the pages is the one in which docs/index.md names them, so that a page
which it does not name ends the build, as a link does that leads nowhere.
"""

from __future__ import annotations

import json
import posixpath
import re
import shutil
import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
DOCS = REPO / "docs"
SOURCES = "https://github.com/nbtune/nbtune/blob/main"
ROOMS = {"tutorial": "Tutorial", "how-to": "How-to", "methods": "Methods", "recipes": "Recipes",
         "reference": "Reference", "explanation": "Explanation"}  # fmt: skip
OUTSIDE = {"CHANGELOG.md": "CHANGELOG.md", "CONTRIBUTING.md": "CONTRIBUTING.md"}  # page of the site: file of the tree
PICTURES = (".png", ".svg", ".gif", ".webp", ".html")
MERMAID = "!!python/name:pymdownx.superfences.fence_code_format ''"  # a tag of YAML, which JSON cannot say
STYLE = """/* A word of code in a table stays whole, unless it is wider than the table. */
.md-typeset td code { word-break: normal; overflow-wrap: break-word; }
/* A column of numbers is as wide as its numbers: ten of them fit beside each other. */
.md-typeset table:not([class]) th { min-width: 0; }
/* A table without a heading has no empty line on top. */
.md-typeset thead:not(:has(th:not(:empty))) { display: none; }
"""
LINK = re.compile(r"(\]\()([^)#\s]+)")
CODE_IN_A_ROW = re.compile(r"^\|.*$", re.MULTILINE), re.compile(r"`[^`\n]+`")
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def with_links_of_the_site(text: str, page: str) -> str:
    """Return a page's text whose links out of docs/ lead to the repository.

    Args:
        text: its Markdown.
        page: its path from docs/, such as `how-to/data.md`.
    """
    fences = [(found.start(), found.end()) for found in FENCE.finditer(text)]

    def led(found: re.Match[str]) -> str:
        link = found[2]
        if "://" in link or link.startswith("mailto:") or any(a <= found.start() < b for a, b in fences):
            return found[0]
        target = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), link))
        if page in OUTSIDE:
            target = posixpath.normpath(link)
        if target.startswith("docs/") and target.endswith((".md", *PICTURES)):
            return found[1] + posixpath.relpath(target.removeprefix("docs/"), posixpath.dirname(page) or ".")
        if target in OUTSIDE.values():
            return found[1] + posixpath.relpath(target, posixpath.dirname(page) or ".")
        return f"{found[1]}{SOURCES}/{target}"

    return LINK.sub(led, text)


def with_bars_of_the_site(text: str) -> str:
    """Return a page's text with bare bars in code of tables; GitHub wants strokes before them, which the site shows."""
    row, code = CODE_IN_A_ROW
    return row.sub(lambda line: code.sub(lambda found: found[0].replace("\\|", "|"), line[0]), text)


def pages() -> dict[str, str]:
    """Return the path of each page from the site's root, and its text."""
    found = {path.relative_to(DOCS).as_posix(): path for path in sorted(DOCS.rglob("*.md"))}
    found |= {page: REPO / name for page, name in OUTSIDE.items()}
    texts = {page: with_bars_of_the_site(path.read_text(encoding="utf-8")) for page, path in found.items()}
    return {page: with_links_of_the_site(text, page) for page, text in texts.items()}


def navigation(texts: dict[str, str]) -> list[dict[str, object]]:
    """Return the menu: rooms in a fixed order, pages as docs/index.md names them first.

    Raises:
        SystemExit: docs/index.md names a page nowhere.
    """
    named = [link for _, link in LINK.findall(texts["index.md"]) if link in texts]
    named += [posixpath.join("recipes", link) for _, link in LINK.findall(texts["recipes/index.md"])]
    lost = sorted(set(texts) - set(named) - {"index.md", *OUTSIDE})
    lost = [page for page in lost if not page.startswith("bench/")]
    if lost:
        sys.exit(f"docs/index.md names no link to {', '.join(lost)}: add one, so that a reader finds the page")

    def of(room: str) -> list[dict[str, object]]:
        return [
            {title(texts[page]): page} for page in dict.fromkeys(named) if page.startswith(room + "/") and page in texts
        ]

    rooms: list[dict[str, object]] = [{name: of(room)} for room, name in ROOMS.items()]
    alone = [page for page in dict.fromkeys(named) if "/" not in page and page not in OUTSIDE]
    more = [{title(texts[page]): page} for page in [*alone, *OUTSIDE]]
    return [{"nbtune": "index.md"}, *rooms, {"More": more}]


def title(text: str) -> str:
    """Return a page's first heading."""
    return next((line.removeprefix("# ").strip() for line in text.splitlines() if line.startswith("# ")), "")


def config(texts: dict[str, str]) -> dict[str, object]:
    """Return the site's settings."""
    schemes = (("light", "default", "lucide/sun", "dark"), ("dark", "slate", "lucide/moon", "light"))
    palette = [
        {"media": f"(prefers-color-scheme: {scheme})", "scheme": name, "primary": "indigo", "accent": "indigo",
         "toggle": {"icon": icon, "name": f"to {other}"}}
        for scheme, name, icon, other in schemes
    ]  # fmt: skip
    return {
        "site_name": "nbtune",
        "site_description": "Fine-tune language models in a notebook",
        "repo_url": "https://github.com/nbtune/nbtune",
        "docs_dir": "docs",
        "site_dir": "site",
        "use_directory_urls": False,
        "extra_css": ["nbtune.css"],
        "theme": {
            "font": False,
            "features": ["navigation.tabs", "navigation.sections", "navigation.top", "content.code.copy", "toc.follow"],
            "palette": palette,
        },
        "markdown_extensions": ["admonition", "tables", "attr_list", "md_in_html", {"toc": {"permalink": True}},
                                {"pymdownx.superfences": {"custom_fences": [
                                    {"name": "mermaid", "class": "mermaid", "format": MERMAID}]}},
                                "pymdownx.highlight"],
        "nav": navigation(texts),
    }  # fmt: skip


def build(out: Path) -> None:
    """Write the site into a folder; end with zensical's words where a link leads nowhere."""
    work = REPO / "build" / "site-source"
    shutil.rmtree(work, ignore_errors=True)
    texts = pages()
    for page, text in texts.items():
        path = work / "docs" / page
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    for picture in [path for path in DOCS.rglob("*") if path.suffix in PICTURES]:
        path = work / "docs" / picture.relative_to(DOCS)
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(picture, path)
    (work / "docs" / "nbtune.css").write_text(STYLE, encoding="utf-8")
    settings = json.dumps(config(texts), indent=1).replace(json.dumps(MERMAID), MERMAID)  # JSON is YAML
    (work / "mkdocs.yml").write_text(settings, encoding="utf-8")
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean", "--config-file", "mkdocs.yml"]
    if subprocess.run(command, cwd=work, check=False).returncode:
        sys.exit("the site was not built: what zensical says stands above")
    shutil.rmtree(out, ignore_errors=True)
    shutil.move(work / "site", out)
    print(f"{out / 'index.html'}: {sum(1 for _ in out.rglob('*.html'))} pages")


if __name__ == "__main__":
    build(Path(sys.argv[1]) if sys.argv[1:] else REPO / "build" / "site")
