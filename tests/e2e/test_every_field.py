"""Every key of the spec in the form: found by search, filled in, written as YAML and as a cell, and filled in again
from there; by the page's own fields (tests/widgets/test_form_round_trip.py does the kernel's half for more values)."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from lab import REPO
from playwright.sync_api import expect

from nbtune.errors import PlanError
from nbtune.spec import RunSpec, from_mapping, from_yaml
from nbtune.widgets import form
from nbtune.widgets.form_fields import fields

sys.path.insert(0, str(REPO / "tests" / "widgets"))
from test_form_round_trip import accepted

from tests.tools.live_page import LivePage

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(1200)]
KEYS = [field["key"] for field in fields()]
IN_STEPS = ("data", "model")  # fields of steps of their own; the search marks them
BY_YAML = ("trust_remote_code",)  # a decision for a line of YAML, not for a tick


def test_every_key_has_a_field() -> None:
    parts = {key.split(".")[0] for key in KEYS}
    assert parts == set(RunSpec.model_fields) - set(BY_YAML)


def test_every_key_is_found_filled_and_comes_back(browser: Any) -> None:
    with LivePage(browser.chromium) as page:
        widget = form(no_plan, no_plan, {"rows": [{"prompt": f"Hi {k}", "completion": "Ahoy!"} for k in range(9)]})
        root = page.show(widget)
        root.locator("summary", has_text="All settings").click()
        root.locator("summary", has_text="same as YAML").click()
        for key in KEYS:
            found(root, key)
            values, spec = accepted(key)[0]
            written = typed(page, root, values)
            assert from_yaml(written, name="a cell", first_line=2) == spec, written
            assert from_mapping(from_yaml(written).model_dump(exclude_unset=True)) == spec, written
            assert filled_from(page, root, widget, written) == spec, written
        assert page.complaints == []
        widget.close()


def no_plan(*_: Any, **__: Any) -> Any:
    raise PlanError("nothing is planned here")


def found(root: Any, key: str) -> None:
    """By its key, whichever group is shown."""
    root.get_by_label("Search settings").fill(key)
    field = root.locator(f"[data-key='{key}']")
    expect(field).to_be_visible()
    assert key not in IN_STEPS or "nbt-found" in field.get_attribute("class")


def typed(page: LivePage, root: Any, values: dict[str, str]) -> str:
    """Fill in the fields by hand; return the YAML that they come to."""
    clear(page, root)
    for key, value in values.items():
        root.get_by_label("Search settings").fill(key)
        entry = root.locator(f"[data-key='{key}'] :is(input, select)")
        if entry.evaluate("(node) => node.tagName") == "SELECT":
            entry.select_option(value.lower() if value in ("True", "False") else value)
        else:
            entry.fill(value)
    page.page.wait_for_timeout(400)  # until what was typed is sent
    page.rest()
    return root.locator("textarea").input_value()


def clear(page: LivePage, root: Any) -> None:
    root.locator("textarea").fill("data: rows")
    page.page.wait_for_timeout(400)
    page.rest()


def filled_from(page: LivePage, root: Any, widget: Any, written: str) -> RunSpec:
    """Fill the fields from a YAML, change one and change it back; return the spec that the fields come to."""
    clear(page, root)
    root.locator("textarea").fill(written)
    page.page.wait_for_timeout(400)
    page.rest()
    widget.spec = None
    root.get_by_label("Search settings").fill("seed")
    seed = root.locator("[data-key=seed] input")
    before = seed.input_value()
    for value in ("77", before):
        seed.fill(value)
    page.page.wait_for_timeout(400)
    page.rest()
    assert widget.spec is not None, widget.checked
    return widget.spec
