"""Who looks on: whether updates from a thread reach a page, or the cell has to stay until its run has ended.

JupyterLab, Notebook 7 and VS Code send the id of the cell with each request; nbconvert, papermill, consoles and
scripts do not. Nothing is asked of the front-end, so deciding costs no time.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from nbtune.widgets import fallback

KAGGLE_KEEPS = Path("/kaggle/working")
_told: list[str] = []  # of what the user was told already in this process


def in_kernel(shell: Any) -> bool:
    """Return whether the shell belongs to a Jupyter kernel (else: IPython in a terminal, or a test)."""
    return getattr(shell, "kernel", None) is not None


def has_page(shell: Any) -> bool:
    """Return whether somebody's notebook page shows this cell and can show widgets in it."""
    return in_kernel(shell) and (_in_colab() or fallback.has_page(shell))


def reason_to_wait(shell: Any, *, asked: bool = False, setting: str = "auto") -> str:
    """Return why the cell stays until its run has ended, or "" if it returns at once.

    Args:
        asked: `--wait` was written.
        setting: `%config NbtuneMagics.wait`: auto, always or never.
    """
    if asked or setting == "always":
        return "asked to wait"
    if setting == "never":
        return ""
    if kind := fallback.kaggle():  # whether its editor shows updates of a cell that is done was never tried
        return "in Kaggle's editor a cell stays" if kind == "Interactive" else "Kaggle runs the notebook in one go"
    if not has_page(shell):
        return "no notebook page shows this cell"
    if _in_colab():
        return "Colab shows updates only while a cell runs"
    if not getattr(shell.kernel, "_supports_kernel_subshells", False):
        return "this ipykernel cannot answer buttons while another cell runs (7.0 and later can)"
    return ""


def prepare_colab() -> str:
    """Let Colab, where this is it, load widgets that are not its own; return the sentence that says
    so once, else ""."""
    if not _in_colab():
        return ""
    from google.colab import output

    output.enable_custom_widget_manager()
    if "Colab" in _told:
        return ""
    _told.append("Colab")
    return (
        "nbtune enabled Colab's custom widget manager: its live panels need it. A cell stays until its run has ended, "
        "because Colab shows updates only while a cell runs; interrupt it to let the run go on."
    )


def prepare_kaggle(runs: Path) -> str:
    """Return what to say once in Kaggle if runs would go where it keeps nothing, else ""."""
    if not fallback.kaggle() or "Kaggle" in _told or runs.is_relative_to(KAGGLE_KEEPS):
        return ""
    _told.append("Kaggle")
    return (
        f"Kaggle keeps only what lies in {KAGGLE_KEEPS}, and runs would go to {runs}: "
        f"`%config NbtuneMagics.runs_dir = '{KAGGLE_KEEPS}/runs'` keeps them."
    )


def _in_colab() -> bool:
    return "google.colab" in sys.modules
