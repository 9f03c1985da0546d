"""A machine that lacks some packages, for every Python that the tests start: ``NBTUNE_TEST_BLOCK=triton,fcntl``.

A name that is None in `sys.modules` is found by nobody: `import` raises, `find_spec` says None.
"""

import os
import sys

for _name in filter(None, os.environ.get("NBTUNE_TEST_BLOCK", "").split(",")):
    sys.modules[_name] = None  # type: ignore[assignment]
