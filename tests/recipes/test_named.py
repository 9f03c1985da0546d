"""CONTRIBUTING names files that are there, and a test that carries each recipe out."""

from __future__ import annotations

import re
from pathlib import Path


def test_every_recipe_names_its_test_and_files_that_are_there(repo: Path) -> None:
    text = (repo / "CONTRIBUTING.md").read_text(encoding="utf-8")
    recipes = text.partition("## Recipes")[2].partition("\n## ")[0].split("\n**Add ")[1:]
    assert len(recipes) >= 9
    for recipe in recipes:
        assert "`tests/" in recipe, recipe[:40]
    cited = {word for word in re.findall(r"`((?:nbtune|kernels|js|tests)/[\w./]+)`", text) if "NAME" not in word}
    assert [word for word in sorted(cited) if not (repo / word).exists()] == []
    carried = {f"tests/recipes/{path.name}" for path in (repo / "tests/recipes").glob("test_*.py")}
    assert carried - {"tests/recipes/test_named.py"} <= cited
