"""Panels in one page in every order (tests/tools/orders.py): no button loses its words, whichever panel came first."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest
from lab import REPO

sys.path.insert(0, str(REPO / "tests" / "widgets"))
from tests.tools.live_page import LivePage
from tests.tools.orders import KINDS, longer, pairs, pale_in, panels
from tests.tools.pictures import pale

pytestmark = pytest.mark.browser
QUICK = {  # which train nothing
    "home": "home-with-all-kinds-of-runs",
    "inspector": "inspector-tokens",
    "monitor": "monitor-paused",
    "compare": "compare-twelve",
}


@pytest.fixture
def page(browser: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[LivePage]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NBTUNE_RUNS", str(tmp_path / "runs"))
    with LivePage(browser.chromium) as shown:
        yield shown


def test_a_few_panels_forwards_and_backwards(page: LivePage) -> None:
    widgets = panels(page, QUICK)
    orders = [tuple(QUICK), tuple(reversed(QUICK))]  # of any two each comes first once
    assert {order: pale_in(page, widgets, order) for order in orders} == {order: [] for order in orders}
    assert page.page.locator("style.dress").count() == 1
    # what this is for: a style that comes later, and takes the text of a primary button
    page.page.add_style_tag(content=".nbt-btn.nbt-main { color: #0072b2; }")
    assert any("Continue" in each for each in pale(page.page))
    for widget in widgets.values():
        widget.close()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_all_panels_in_all_pairs_and_in_longer_orders(page: LivePage) -> None:
    widgets = panels(page, KINDS)
    found = {order: pale_in(page, widgets, order) for order in [*pairs(KINDS), *longer(KINDS, 40, 1)]}
    assert len(found) > 8 * 7
    assert {order: pale for order, pale in found.items() if pale} == {}
    for widget in widgets.values():
        widget.close()
