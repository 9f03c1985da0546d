"""The panels need their built JavaScript: `make setup` builds it; here we say so instead of failing one by one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # memory_run

STATIC = Path(__file__).parents[2] / "nbtune" / "widgets" / "static"


@pytest.fixture(scope="session", autouse=True)
def built():
    if not all((STATIC / name).is_file() for name in ("monitor.js", "panels.css")):
        pytest.fail("the panels are not built: cd js && npm ci && npm run build", pytrace=False)
