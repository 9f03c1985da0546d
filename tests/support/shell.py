"""A real IPython shell with the extension loaded, in a folder of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config


@contextmanager
def shell_in(folder: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> Iterator[InteractiveShell]:
    """An InteractiveShell as IPython makes it, without its history file."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("NBTUNE_RUNS", str(folder / "runs"))
    monkeypatch.setenv("IPYTHONDIR", str(folder / "ipython"))
    config = Config()
    config.HistoryManager.enabled = False
    InteractiveShell.clear_instance()
    made = InteractiveShell.instance(config=config, **options)
    made.run_line_magic("load_ext", "nbtune")
    yield made
    made.run_line_magic("unload_ext", "nbtune")
    InteractiveShell.clear_instance()
