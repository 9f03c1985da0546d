"""nbtune: fine-tune language models in a notebook.

    %load_ext nbtune
    %%finetune --name demo
    model: nbtune/tiny
    data: rows
    steps: 200

The public names are loaded when they are first used, so that importing nbtune costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

_HOMES = {
    "Plan": "nbtune.planner",
    "Run": "nbtune.run",
    "RunSpec": "nbtune.spec",
    "attach": "nbtune.api",
    "finetune": "nbtune.api",
    "form": "nbtune.api",
    "home": "nbtune.api",
    "inspect": "nbtune.api",
    "lm_eval": "nbtune.task_scores",
    "lr_find": "nbtune.rate_finder",
    "plan": "nbtune.api",
    "repeat": "nbtune.api",
    "runs": "nbtune.api",
    "submit": "nbtune.api",
    "trust": "nbtune.store.run_consent",
    "validate": "nbtune.api",
    "watch": "nbtune.api",
}

_ROOMS = (
    "data",
    "device",
    "engine",
    "errors",
    "events",
    "export",
    "generate",
    "methods",
    "models",
    "planner",
    "spec",
    "store",
    "system_report",
    "train",
)

__all__ = [
    "Plan",
    "Run",
    "RunSpec",
    "__version__",
    "attach",
    "finetune",
    "form",
    "home",
    "inspect",
    "lm_eval",
    "lr_find",
    "plan",
    "repeat",
    "runs",
    "submit",
    "trust",
    "validate",
    "watch",
]

if TYPE_CHECKING:
    from nbtune.api import attach, finetune, form, home, inspect, plan, repeat, runs, submit, validate, watch
    from nbtune.planner import Plan
    from nbtune.rate_finder import lr_find
    from nbtune.run import Run
    from nbtune.spec import RunSpec
    from nbtune.store.run_consent import trust
    from nbtune.task_scores import lm_eval


def __getattr__(name: str) -> Any:
    if name in (*_ROOMS, "widgets"):  # so that `import nbtune; nbtune.models.resolve(...)` runs anywhere
        return import_module(f"nbtune.{name}")
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'nbtune' has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})


def load_ipython_extension(shell: Any) -> None:
    """Register the magics."""
    import_module("nbtune.notebook").load(shell)


def unload_ipython_extension(shell: Any) -> None:
    """Take the magics away (`%unload_ext nbtune`); runs go on."""
    import_module("nbtune.notebook").unload(shell)
