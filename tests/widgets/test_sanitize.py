from __future__ import annotations

from pathlib import Path

import pytest

from nbtune.widgets.sanitize import clean, without_home


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[31mred\x1b[0m", "ared"),
        ("nul\x00bell\x07", "nulbell"),
        ("two\nlines\tand a tab", "two\nlines\tand a tab"),
        ("<b>&amp;</b>", "<b>&amp;</b>"),
        (None, "None"),
        ("abc\u202edef", "abc\\u202edef"),
    ],
)
def test_controls_go_and_the_rest_stays(text, shown):
    assert clean(text) == shown


def test_a_long_text_is_cut_and_says_how_long_it_was():
    assert clean("x" * 1_000_000, 10) == "x" * 10 + "… (1,000,000 characters)"


def test_home_is_a_tilde():
    assert without_home(Path.home() / "a" / "b") == "~/a/b"
    assert without_home(Path.home()) == "~"
    assert without_home(str(Path.home()) + "ly/a") == str(Path.home()) + "ly/a"
    assert without_home("exports/a.gguf") == "exports/a.gguf"
