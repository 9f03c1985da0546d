"""A comment above `%%finetune` does no harm: the magic's line is taken up to the first line of its cell.

IPython knows a cell magic only on the first line. The lines in between are moved below it, where they are comments of
the YAML body, so that the line numbers of the body stay what the user sees.
"""

from __future__ import annotations

from typing import Any

from nbtune.errors import SpecError

_MAGICS = ("%%finetune", "%%nbtune")


def take_up(lines: list[str]) -> list[str]:
    r"""Return the cell's lines with the magic first, if only comments and blank lines stand above it.

    >>> take_up(["# my run\n", "%%finetune\n", "data: rows\n"])
    ['%%finetune\n', '# my run\n', 'data: rows\n']
    """
    for index, line in enumerate(lines):
        if line.startswith(_MAGICS):
            return [line, *lines[:index], *lines[index + 1 :]] if index else lines
        if line.strip() and not line.lstrip().startswith("#"):
            return lines
    return lines


def out_of_place(line: str) -> None:
    """Explain a `%%finetune` below code: IPython calls it as a line magic of that name."""
    raise SpecError(
        "`%%finetune` must be the first line of its cell",
        place=f"%%finetune {line}".strip(),
        fix="give it a cell of its own; Python code goes into the cell above",
    )


def register(shell: Any) -> None:
    """Add `take_up` to what is done with each cell before it runs."""
    # Before IPython's own clean-up: that includes its detection of cell magics.
    shell.input_transformer_manager.cleanup_transforms.insert(0, take_up)


def unregister(shell: Any) -> None:
    """Remove it."""
    transforms = shell.input_transformer_manager.cleanup_transforms
    transforms[:] = [transform for transform in transforms if transform is not take_up]
