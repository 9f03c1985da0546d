from tests.store.conftest import start, until  # noqa: F401 — the same small run
