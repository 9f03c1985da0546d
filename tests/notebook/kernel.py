"""A real kernel in its own process, spoken to as a front-end does: a page sends the id of the cell, papermill none."""

from __future__ import annotations

import os
import queue
import re
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jupyter_client.manager import KernelManager

ROOT = Path(__file__).parents[2]
PAGE = {"cellId": "a-cell-of-a-page"}


@dataclass
class Reply:
    """What a cell did."""

    status: str
    messages: list[dict[str, Any]] = field(default_factory=list)

    def outputs(self, kind: str = "") -> list[dict[str, Any]]:
        """Contents of its display messages that have a MIME type `kind`."""
        shown = [m["content"] for m in self.messages if m["msg_type"] in ("display_data", "update_display_data")]
        return [content for content in shown if not kind or kind in content["data"]]

    @property
    def text(self) -> str:
        """Everything it showed as text, without colours."""
        parts = []
        for message in self.messages:
            content = message["content"]
            if message["msg_type"] in ("display_data", "update_display_data", "execute_result"):
                parts.append(str(content["data"].get("text/plain", "")))
            elif message["msg_type"] == "stream":
                parts.append(content["text"])
            elif message["msg_type"] == "error":
                parts.append("\n".join(content["traceback"]))
        return re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(parts))


class Kernel:
    """`with Kernel(folder) as kernel: kernel.run("1 + 1")`."""

    def __init__(
        self,
        folder: Path,
        *,
        first: Path | None = None,
        python: Path | None = None,
        before: tuple[str, ...] = (),
        more: Mapping[str, str] | None = None,
    ) -> None:
        """`first`: a folder of packages that come before all others, such as an older ipykernel; `python`: whose
        environment it is instead of this one's; `before`: what starts it, such as `ip netns exec`: it is then spoken
        to by files, since its ports are elsewhere; `more`: of its environment."""
        self.folder, self.first, self.python, self.before, self.more = folder, first, python, before, more or {}

    def __enter__(self) -> Kernel:
        first = [] if self.first is None else [str(self.first)]
        path = os.pathsep.join([*first, str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")])
        environment = {
            **os.environ,
            "PYTHONPATH": path,
            "OMP_NUM_THREADS": "1",
            "IPYTHONDIR": str(self.folder / "ipython"),
            "NBTUNE_RUNS": str(self.folder / "runs"),
            **self.more,
        }
        self.manager = KernelManager(kernel_name="python3")
        if self.python is not None:
            self.manager.kernel_spec.argv[0] = str(self.python)
        if self.before:
            self.manager.transport, self.manager.ip = "ipc", tempfile.mktemp(prefix="nbtune-kernel-")
            self.manager.kernel_spec.argv[:0] = self.before
        self.manager.start_kernel(cwd=str(self.folder), env=environment)
        self.client = self.manager.blocking_client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=240)
        return self

    def __exit__(self, *_: object) -> None:
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)

    def send(self, code: str, *, page: bool = True) -> str:
        """Asks for a cell to be run; returns the id of the request."""
        content = {"code": code, "silent": False, "store_history": True, "user_expressions": {}, "allow_stdin": False}
        message = self.client.session.msg("execute_request", content, metadata=PAGE if page else {})
        self.client.shell_channel.send(message)
        return str(message["header"]["msg_id"])

    def finish(self, request: str, timeout: float = 240) -> Reply:
        """What that cell did, once it is idle."""
        reply = Reply("")
        end = time.monotonic() + timeout
        while True:
            message = self.client.get_iopub_msg(timeout=max(0.1, end - time.monotonic()))
            if message["parent_header"].get("msg_id") != request:
                continue
            if message["msg_type"] == "status" and message["content"]["execution_state"] == "idle":
                break
            reply.messages.append(message)
        while True:
            answer = self.client.get_shell_msg(timeout=max(0.1, end - time.monotonic()))
            if answer["parent_header"].get("msg_id") == request:
                reply.status = answer["content"]["status"]
                return reply

    def run(self, code: str, *, page: bool = True, timeout: float = 240) -> Reply:
        """Runs a cell."""
        return self.finish(self.send(code, page=page), timeout)

    def value(self, expression: str) -> str:
        """The repr of an expression."""
        reply = self.run(expression)
        assert reply.status == "ok", reply.text
        results = [m["content"]["data"] for m in reply.messages if m["msg_type"] == "execute_result"]
        return "\n".join(data["text/plain"] for data in results)  # displays of other cells are updated meanwhile

    def until(self, wanted: Any, timeout: float = 240) -> dict[str, Any]:
        """The next message on iopub for which `wanted(message)` is true."""
        end = time.monotonic() + timeout
        while True:
            try:
                message = self.client.get_iopub_msg(timeout=max(0.1, end - time.monotonic()))
            except queue.Empty:
                raise AssertionError("the message did not come") from None
            if wanted(message):
                return dict(message)

    def click(self, comm_id: str, action: str, **values: Any) -> None:
        """What a button of a panel sends."""
        data = {"method": "custom", "content": {"t": "do", "id": 1, "do": action, **values}}
        self.client.shell_channel.send(self.client.session.msg("comm_msg", {"comm_id": comm_id, "data": data}))

    def interrupt(self) -> None:
        """What the stop button of a notebook does."""
        self.manager.interrupt_kernel()
