"""One JupyterLab and one Chromium for all browser tests; each test has a notebook and a page of its own."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import expect

sys.path.insert(0, str(Path(__file__).parent))

from lab import Browser, Lab, Page, find_chromium


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with Lab(tmp_path_factory.mktemp("lab")) as running:
        yield running


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    try:
        find_chromium()
    except RuntimeError as error:
        pytest.fail(str(error), pytrace=False)
    expect.set_options(timeout=float(os.environ.get("NBTUNE_TEST_PATIENCE", 120_000)))
    with Browser() as running:
        yield running


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator:
    report = yield
    item.stash.setdefault(_FAILED, False)
    item.stash[_FAILED] |= report.failed
    return report


_FAILED = pytest.StashKey[bool]()


@pytest.fixture
def notebook(lab: Lab, browser: Browser, request: pytest.FixtureRequest) -> Iterator:
    """`notebook(cells, dark=…, width=…)` opens a page; at the end none may have complained, and kernels are ended."""
    pages: list[Page] = []

    def open_(cells: list[str] | str, **options: object) -> Page:
        pages.append(browser.open(lab, cells, **options))
        return pages[-1]

    yield open_
    if request.node.stash[_FAILED]:
        for k, page in enumerate(pages):
            page.picture(f"failed-{request.node.name}-{k}")
    complaints = [complaint for page in pages for complaint in page.complaints]
    for page in pages:
        page.close()
    lab.stop_kernels()
    assert complaints == []
