"""The reference pages are what the code says now."""

from __future__ import annotations

from pathlib import Path

import nbtune.cli.reference
import nbtune.notebook.reference

DOCS = Path(__file__).parents[2] / "docs/reference"


def test_cli_page_is_current() -> None:
    current = (DOCS / "cli.md").read_text(encoding="utf-8") == nbtune.cli.reference.to_markdown()
    assert current, "run: python -m nbtune.cli.reference > docs/reference/cli.md"


def test_magics_page_is_current() -> None:
    current = (DOCS / "magics.md").read_text(encoding="utf-8") == nbtune.notebook.reference.to_markdown()
    assert current, "run: python -m nbtune.notebook.reference > docs/reference/magics.md"
