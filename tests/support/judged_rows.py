"""Rows of each kind that is judged, or has no other parts, of any texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def rows_of(texts: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """Return rows by their kind, one of each text."""
    return {
        "texts": [{"text": text} for text in texts],
        "feedback": [{"prompt": f"Say {i}.", "completion": text, "label": i % 3 > 0} for i, text in enumerate(texts)],
        "stepwise": [
            {"prompt": f"Say {i}.", "completions": [text, "So it is."], "labels": [True, i % 2 > 0]}
            for i, text in enumerate(texts)
        ],
        "labelled": [{"text": text, "label": ["odd", "even"][i % 2]} for i, text in enumerate(texts)],
        "tagged": [
            {"tokens": text.split(), "tags": ["odd" if len(word) % 2 else "even" for word in text.split()]}
            for text in texts
        ],
    }
