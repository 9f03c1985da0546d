from tests.engine.conftest import start, until  # noqa: F401 — the same small run
