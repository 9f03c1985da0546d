"""A Hub on this machine, for pushes of the test's own process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.fake_hub import FakeHub, client_environment


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A Hub that pushes of this process go to: the client is a process of its own, and reads its environment."""
    with FakeHub() as served:
        for key in [key for key in os.environ if key.startswith(("HF_", "TRANSFORMERS_OFF"))]:
            monkeypatch.delenv(key)
        for key, value in client_environment(served, tmp_path / "home").items():
            monkeypatch.setenv(key, value)
        yield served
