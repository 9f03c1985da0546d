"""The command line's door: `nbtune train`, `plan`, `runs`, … over the same public functions as the notebook.

Exit 0: done. 1: the work failed, or was stopped before its end. 2: the request was wrong. Results go to stdout
(with `--json` one JSON line each), everything else to stderr. Nothing imports this package.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence

__all__ = ["main"]

_GGUF = re.compile(r"^(?:f32|f16|bf16|i?q\d\w*|tq\d\w*|mxfp4)(?:,[\w,]+)?$", re.IGNORECASE)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code; `argv` is what stands behind `nbtune`.

    >>> main(["train", "gone.yaml"])  # says on stderr that there is no such file
    2
    """
    args = list(sys.argv[1:] if argv is None else argv)
    traceback = "--traceback" in args
    args = _spread([arg for arg in args if arg != "--traceback"])
    from nbtune.cli.app import app
    from nbtune.cli.output import explain

    try:
        app(args, prog_name="nbtune")
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 1
    except BrokenPipeError:  # `nbtune runs | head`: the reader has enough
        sys.stderr.close()
        return 0
    except Exception as error:  # noqa: BLE001 — the door: whatever it is, it is said on stderr, and --traceback has it
        return explain(error, traceback=traceback)
    return 0


def _spread(args: list[str]) -> list[str]:
    """Return `--gguf q8_0 f16` as `--gguf q8_0 --gguf f16`, which the parser knows.

    >>> _spread(["export", "--gguf", "q8_0", "f16", "demo"])
    ['export', '--gguf', 'q8_0', '--gguf', 'f16', 'demo']
    """
    spread: list[str] = []
    inside = False
    for arg in args:
        if arg == "--gguf":
            inside = True
        elif inside and _GGUF.match(arg):
            for kind in arg.split(","):
                spread += ["--gguf", kind]
        else:
            if inside and spread[-2:-1] != ["--gguf"]:  # no known type behind it: the parser says what is missing
                spread.append("--gguf")
            inside = False
            spread.append(arg)
    return [*spread, "--gguf"] if inside and spread[-2:-1] != ["--gguf"] else spread
