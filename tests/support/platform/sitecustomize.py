"""A machine that lacks some packages, or any network, for every Python that the tests start.

NBTUNE_TEST_BLOCK=triton,fcntl   A name that is None in `sys.modules` is found by nobody: `import` raises, `find_spec`
                                 says None.
NBTUNE_TEST_OFFLINE=FILE         Who asks for an address, or a connection, beyond this machine is written into FILE and
                                 gets an error at once.
"""

import os
import socket
import sys
import warnings

# filelock says so of a POSIX system without fcntl, which is what only this file makes
warnings.filterwarnings("ignore", message="only soft file lock is available", category=UserWarning)
for _name in filter(None, os.environ.get("NBTUNE_TEST_BLOCK", "").split(",")):
    sys.modules[_name] = None  # type: ignore[assignment]

_ASKED = os.environ.get("NBTUNE_TEST_OFFLINE", "")
_HERE = ("127.0.0.1", "::1", "localhost", "0.0.0.0", "None", "", socket.gethostname())


def _deny(event: str, args: tuple) -> None:
    if event == "socket.connect" and not isinstance(args[1], (str, bytes)):  # those are files of this machine
        host = args[1][0]
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        host = args[0]
    else:
        return
    host = host.decode() if isinstance(host, bytes) else str(host)
    if host not in _HERE:
        with open(_ASKED, "a", encoding="utf-8") as file:
            file.write(f"{host}\n")
        raise OSError(101, "Network is unreachable")


if _ASKED:
    sys.addaudithook(_deny)
