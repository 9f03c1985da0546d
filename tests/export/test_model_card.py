"""The model card tells what a run knows, of licences only what their cards say."""

from __future__ import annotations

from pathlib import Path

import pytest

from nbtune.export import ExportSource, render_card
from nbtune.export.model_card import data_lines, license_in


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("---\nlanguage: en\nlicense: apache-2.0\n---\n# x", "apache-2.0"),
        ("---\nlicense: other\nlicense_name: 'llama3.2'\n---\n", "other"),
        ("# license: mit", ""),
        ("---\ntags: [a]\n---\nlicense: mit", ""),
    ],
)
def test_a_licence_is_what_the_card_says(text: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(text)
    assert license_in(tmp_path / "README.md") == expected
    assert license_in(tmp_path / "nothing.md") == ""
    assert license_in(None) == ""


def test_sources_of_the_data() -> None:
    lines, ids = data_lines(["nbtune/pirate", "hub:owner/set", "owner/other", "data/rows.jsonl", "var:rows", "rows"])
    assert lines == [
        "nbtune/pirate (licence: apache-2.0)",
        "owner/set (licence: see its page)",
        "owner/other (licence: see its page)",
        "rows.jsonl (the author's own rows)",
        "rows (the author's own rows)",
        "rows (the author's own rows)",
    ]
    assert ids == ["owner/set", "owner/other"]


def test_everything_that_is_known_stands_in_it(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    facts = {"steps": 40, "loss": 0.5, "evals": [(i, 1 / (i + 1)) for i in range(40)], "data": ["owner/set"]}
    facts |= {"files": ["`demo-q8_0.gguf`: 1 GB, perplexity +0.1 %"], "samples": [("hi", "ahoy ```")], "curve": b"x"}
    facts |= {"spec": "steps: 40", "datasets": ["owner/set"]}
    for kind in ("adapter", "merged", "gguf"):
        card = render_card(ExportSource(tmp_path, base_id="owner/base", name="demo"), "ada/demo", kind, facts)
        assert "A fine-tune of `owner/base` (licence of the base: mit), made with nbtune in 40 steps." in card
        assert "base_model: owner/base\n" in card
        assert "| 0 | 1 | 2.718 |" in card
        assert "| 39 | 0.025 |" in card
        assert card.count("\n| ") < 20
        assert "- `demo-q8_0.gguf`: 1 GB, perplexity +0.1 %" in card
        assert "![loss](loss.png)" in card
        assert "steps: 40" in card
        assert "llama" in card
        assert "ollama" in card
