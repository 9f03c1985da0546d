"""A machine that lacks some packages, for every Python that the tests start: ``NBTUNE_TEST_BLOCK=triton,fcntl``.

A name that is None in `sys.modules` is found by nobody: `import` raises, `find_spec` says None.
"""

import os
import sys
import warnings

# filelock says so of a POSIX system without fcntl, which is what only this file makes
warnings.filterwarnings("ignore", message="only soft file lock is available", category=UserWarning)
for _name in filter(None, os.environ.get("NBTUNE_TEST_BLOCK", "").split(",")):
    sys.modules[_name] = None  # type: ignore[assignment]
