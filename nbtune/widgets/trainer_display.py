"""A run below the cell whose trainer makes it: the monitor where a page looks on, and a report when it has ended.

The cell is busy until the trainer is done. The monitor's buttons are heard meanwhile: by newer kernels in a subshell,
by older ones between two steps.
"""

from __future__ import annotations

import contextlib
import sys
import time
from typing import TYPE_CHECKING, Any

from nbtune.untrusted import from_here
from nbtune.widgets import fallback
from nbtune.widgets.comm_pump import Pump
from nbtune.widgets.fallback import Shown

if TYPE_CHECKING:
    from nbtune.store.run_handle import RunHandle

_PUMP_EVERY = 0.1  # seconds until a click is heard


class BesideTrainer:
    """Show a run; called at each step with False, and with True when it has ended.

    Args:
        run: the run.
    """

    def __init__(self, run: RunHandle) -> None:
        self.run, self._pumped, self._below = run, 0.0, None
        shell = _kernel_shell()
        self._pump = Pump(shell)
        if shell is None:
            return
        from IPython.display import display

        if fallback.has_page(shell) or "google.colab" in sys.modules:
            with contextlib.suppress(ImportError):  # no anywidget in this kernel: the report comes all the same
                display(run.monitor())
        line = f"{run.name}: watched by nbtune; {from_here(run.folder)}/ has its files"
        self._below = display(Shown(line), display_id=True)

    _below: Any

    def __call__(self, ended: bool) -> None:
        if ended:
            self._end()
        elif self._pump.works and time.monotonic() - self._pumped >= _PUMP_EVERY:
            self._pumped = time.monotonic()
            self._pump()

    def _end(self) -> None:
        if self._below is not None:
            from nbtune.widgets.run_report import Report

            self._below.update(Report(self.run))


def _kernel_shell() -> Any:
    """Return IPython's shell, where it is a kernel's."""
    if "IPython" not in sys.modules:
        return None
    from IPython import get_ipython

    shell = get_ipython()  # type: ignore[no-untyped-call]
    return shell if getattr(shell, "kernel", None) is not None else None
