"""While a cell waits: buttons of the page reach their widgets, in kernels that handle one message at a time.

ipykernel before 7 (and Colab's) reads its messages on the thread that runs the cell. A waiting cell therefore looks
for messages itself: those of widgets are handled at once, all others are left for after the cell, in their order.
Newer kernels answer widgets in a subshell of their own, and nothing is done here.
"""

from __future__ import annotations

import contextlib
import inspect
from typing import Any

_OF_WIDGETS = ("comm_open", "comm_msg", "comm_close", "comm_info_request")


class Pump:
    """`pump()` handles what has come since the last call; it never waits.

    Args:
        shell: IPython's shell.
    """

    def __init__(self, shell: Any) -> None:
        kernel: Any = getattr(shell, "kernel", None)
        one_at_a_time = kernel is not None and not getattr(kernel, "_supports_kernel_subshells", False)
        stream: Any = getattr(kernel, "shell_stream", None)
        queue: Any = getattr(kernel, "msg_queue", None)
        self.works = one_at_a_time and stream is not None and queue is not None
        self._kernel, self._stream, self._queue = kernel, stream, queue

    def __call__(self) -> None:
        if not self.works:
            return
        import zmq
        from tornado.queues import QueueEmpty

        self._stream.flush(zmq.POLLIN)  # what has come goes into the kernel's own queue
        kept = []
        while True:
            try:
                entry = self._queue.get_nowait()
            except QueueEmpty:
                break
            if not self._handled(*entry):
                kept.append(entry)
        for entry in kept:
            self._queue.put_nowait(entry)

    def _handled(self, _number: int, dispatch: Any, arguments: tuple[Any, ...]) -> bool:
        if dispatch != self._kernel.dispatch_shell:
            return False
        session = self._kernel.session
        idents, parts = session.feed_identities(*arguments, copy=False)
        # Only the header is read before it is known whose message this is: a message can be verified but once.
        kind = session.unpack(parts[1].bytes).get("msg_type")
        if kind not in _OF_WIDGETS:
            return False
        message = session.deserialize(parts, content=True, copy=False)
        result = self._kernel.shell_handlers[kind](self._stream, idents, message)
        if inspect.iscoroutine(result):  # comm_info_request: it awaits nothing
            with contextlib.suppress(StopIteration):
                result.send(None)
        self._kernel._publish_status("idle", "shell", parent=message)  # the page waits for this after a request
        return True
