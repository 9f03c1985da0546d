"""Each state of each panel (tests/tools/panel_states.py) in a bare page: nothing is cut, stamped, overlapping or blank,
and axe-core finds nothing serious. `python -m tests.tools.pictures` takes pictures of the same."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest
from lab import REPO

sys.path.insert(0, str(REPO / "tests" / "widgets"))
from tests.tools.live_page import LivePage
from tests.tools.panel_states import STATES
from tests.tools.pictures import looked

pytestmark = pytest.mark.browser
QUICK = ("home-without-runs", "monitor-of-preferences")  # of a few seconds, which train nothing


@pytest.fixture(scope="module")
def page(browser: Any) -> Iterator[LivePage]:
    with LivePage(browser.chromium) as shown:
        yield shown


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in STATES]
)
def test_nothing_is_wrong_with_a_state(page: LivePage, name: str, tmp_path: Any) -> None:
    page.look("light", 1400)
    widget = STATES[name](page)
    try:
        found = [looked(page, tmp_path, name, *look) for look in (("light", 1400), ("dark", 320))]
        assert found == [[], []]
        assert page.complaints == []
    finally:
        widget.close()
        page.complaints.clear()
