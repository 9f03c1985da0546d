"""The pages of docs/methods, one a method: what is made of the code in them, and the parts that each must have.

python -m tests.support.method_pages      (what `make docs` does: the table at the end of each page)
"""

from __future__ import annotations

import hashlib
import re
from importlib import import_module
from pathlib import Path

from nbtune.methods import METHODS, Method

REPO = Path(__file__).resolve().parents[2]
PAGES = REPO / "docs" / "methods"
PARTS = ("When", "Rows", "A cell", "Its chart", "Reference")
MADE = "<!-- made by `make docs` from nbtune/methods/{name}.py: -->"
END = "<!-- made by `make docs`, to here -->"
BLOCK = re.compile(r"^```([a-z]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
FORMULA = re.compile(r"^\s*((?:loss|A) = .*)$", re.MULTILINE)
SHARES = {1.0: "that", 1 / 4: "a quarter of that", 1 / 10: "a tenth of that"}


def page_of(name: str) -> Path:
    """Return where a method's page is."""
    return PAGES / f"{name}.md"


def parts_of(text: str) -> dict[str, str]:
    """Return a page's second headings and what stands below each, in order; blocks of code hide none."""
    fences = [(found.start(), found.end()) for found in BLOCK.finditer(text)]
    heads = [
        found
        for found in re.finditer(r"^## (.+)$", text, re.MULTILINE)
        if not any(a <= found.start() < b for a, b in fences)
    ]
    ends = [*(head.start() for head in heads[1:]), len(text)]
    return {head[1]: text[head.end() : end].strip() for head, end in zip(heads, ends, strict=True)}


def blocks_of(text: str) -> list[str]:
    """Return a page's blocks of code, in order."""
    return [block for _, block in BLOCK.findall(text)]


def cell_mark(text: str) -> str:
    """Return a mark of all code on a page: a chart that was made of other code has another one."""
    return hashlib.sha256("\n".join(blocks_of(text)).encode()).hexdigest()[:16]


def reference_of(method: Method) -> str:
    """Return what the code says of a method: its formula, and a table."""
    said = import_module(f"nbtune.methods.{method.name}").__doc__ or ""
    formula = FORMULA.search(said)
    options = {key: value for key, value in method.options.items() if key not in ("beta", "loss_type")}
    rows = {
        "columns": f"`{method.columns}`" if method.columns else "any that [docs/data.md](../data.md) reads",
        "`beta`": f"{method.options['beta']:g}" if "beta" in method.options else "",
        "`loss:`": ", ".join(f"`{key}: {_word(value)}`" for key, value in options.items()),
        "`loss: {type: …}`": ", ".join(f"`{name}`" for name in method.loss_types),
        "learning rate, unset": _rate(method.learning_rate_share),
        "compares with": "the model that the run starts from" if method.reference else "",
        "also asks": "a teacher, `teacher:`" if method.teacher else "",
        "judged by": "`rewards:`" if method.online else "",
        "trained beside the adapter": f"a linear layer, read at each {_read_at(method)}" if method.head else "",
        "rows of a step": "at least " + str(method.least_batch) if method.least_batch > 1 else "",
        "in TRL": f"`{method.trainer}`" if method.trainer else "",
        "formula, paper": f"[nbtune/methods/{method.name}.py](../../nbtune/methods/{method.name}.py)",
    }
    table = "\n".join(f"| {key} | {value} |" for key, value in rows.items() if value)
    first = f"    {formula[1].rstrip(',;')}\n\n" if formula else ""
    more = "Every key of a run: [docs/reference/spec.md](../reference/spec.md)."
    return f"{first}| | |\n|---|---|\n{table}\n\n{more}"


def _word(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


def _rate(share: float) -> str:
    return f"{SHARES.get(share, f'{share:g} times that')} of imitation"


def _read_at(method: Method) -> str:
    return "text's last token" if method.head == "text" else "judged token"


def drawn(text: str, name: str) -> str:
    """Return a page's text with what the code says now.

    Raises:
        ValueError: the page has no place for it.
    """
    begin = MADE.format(name=name)
    if text.count(begin) != 1 or text.count(END) != 1:
        raise ValueError(f"docs/methods/{name}.md has no line `{begin}` with `{END}` behind it")
    before, rest = text.split(begin)
    _, after = rest.split(END)
    return f"{before}{begin}\n\n{reference_of(METHODS[name])}\n\n{END}{after}"


def main() -> None:
    """Write the made part of each page."""
    for name in METHODS:
        page = page_of(name)
        page.write_text(drawn(page.read_text(encoding="utf-8"), name), encoding="utf-8")


if __name__ == "__main__":
    main()
