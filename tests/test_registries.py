"""What is listed in one place is known to all who read it: data formats, GGUF types, panels (methods, commands and GGUF
families: tests/methods, tests/commands, tests/export/gguf/test_families.py)."""

from __future__ import annotations

import importlib
import re
import sys

import pytest

from nbtune.data.formats.aliases import PEERS
from nbtune.data.formats.detect import FORMATS, detect
from nbtune.errors import NbtuneError
from nbtune.spec import SourceSpec
from nbtune.spec.gguf_types import TYPES, type_named
from nbtune.widgets.panel import Panel
from tests.support.every import every
from tests.support.house import NBTUNE, REPO


def unknown(names: list[str], text: str) -> list[str]:
    """Which names a text does not say, as words between back quotes."""
    said = {word for quoted in re.findall(r"`([^`]+)`", text) for word in re.findall(r"[\w-]+", quoted)}
    return [name for name in names if name not in said]


def test_a_name_that_nobody_says_is_seen() -> None:
    assert unknown(["text", "gone", "pairs"], "a `text`, `a: pairs`, and gone") == ["gone"]


@pytest.fixture
def examples(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[list[dict[str, object]], dict[str, object]]]:
    monkeypatch.syspath_prepend(str(REPO / "tests" / "tools"))
    monkeypatch.delitem(sys.modules, "baseline_rows", raising=False)
    found: dict[str, tuple[list[dict[str, object]], dict[str, object]]]
    found = importlib.import_module("baseline_rows").EXAMPLES
    return found


def test_every_data_format_is_documented_and_has_rows_that_no_refactoring_may_change(examples) -> None:  # type: ignore[no-untyped-def]
    assert unknown(list(FORMATS), (REPO / "docs" / "data.md").read_text(encoding="utf-8")) == []
    assert {name for name in FORMATS if not any(example.startswith(name) for example in examples)} == set()


def test_every_other_tool_s_name_of_a_format_leads_to_one() -> None:
    assert {to.partition(":")[0] for to, _ in PEERS.values()} <= set(FORMATS)
    with pytest.raises(NbtuneError) as caught:
        detect(["a"], [{"a": 1}], SourceSpec(source="rows", format="gone"), "rows")
    assert every(name in str(caught.value) for name in FORMATS)


def test_every_gguf_type_is_found_by_its_name_and_a_wrong_one_names_them_all() -> None:
    assert [type_named(name) for name in TYPES] == list(TYPES.values())
    with pytest.raises(NbtuneError) as caught:
        type_named("q9_9")
    assert every(name in str(caught.value) for name in TYPES)


def test_every_panel_has_its_module_and_every_module_its_panel() -> None:
    for path in sorted((NBTUNE / "widgets").glob("*_panel.py")):
        importlib.import_module(f"nbtune.widgets.{path.stem}")
    panels = {kind.panel for kind in _kinds(Panel) if kind.__module__.startswith("nbtune.")}
    modules = {folder.name for folder in (REPO / "js" / "src").iterdir() if folder.is_dir()} - {"shared"}
    assert panels == modules - {"replay"}  # the page that `widgets.replay` writes
    assert {file.stem for file in (NBTUNE / "widgets" / "static").glob("*.js")} == modules


def _kinds(kind: type[Panel]) -> list[type[Panel]]:
    return [found for below in kind.__subclasses__() for found in (below, *_kinds(below))]
