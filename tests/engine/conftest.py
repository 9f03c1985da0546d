"""A small run on the embedded model: seconds on one core."""

import pytest

ROWS = [
    {"prompt": f"What is {a} plus {b}?", "completion": f"It is {a + b}, sailor."} for a in range(6) for b in range(6)
]
SPEC = {
    "model": "nbtune/tiny",
    "data": "rows",
    "steps": 8,
    "batch_size": 4,
    "learning_rate": 1e-3,
    "eval": {"split": 0},
}


@pytest.fixture
def start(tmp_path):
    """Start a run on ROWS with some fields changed; whatever still works at the end is stopped."""
    import nbtune

    started = []

    def begin(name="demo", on_busy="attach", detach=False, rows=None, **fields):
        where = {"runs_dir": tmp_path / "runs", "on_busy": on_busy, "detach": detach}
        run = nbtune.finetune({**SPEC, **fields}, name=name, rows={"rows": rows or ROWS}, **where)
        started.append(run)
        return run

    yield begin
    for run in started:
        if run.alive:
            run.stop(wait=True)


@pytest.fixture
def until():
    """Wait for an event of a run that satisfies a condition, or for its end."""
    import threading

    def wait(run, condition, timeout=240):
        found = threading.Event()

        def look(events, _):
            if any(condition(event) for event in events):
                found.set()

        unsubscribe = run.subscribe(look)
        try:
            assert found.wait(timeout), f"it never came; {run!r}: {run.events()[-3:]}"
        finally:
            unsubscribe()

    return wait
