"""One way to talk to a process of one's own: messages in and out, its last words kept, its end always seen.

    with ChildProcess(["-m", "nbtune.data.prepare.shards", folder]) as child:
        child.say({"shard": 3})
        body, raw = child.hear(patience=60)

and in the child, which ends as soon as its parent closes the pipe or is gone, whatever it is at:

    parent = ParentProcess()
    for message in parent.messages():
        parent.say({"shard": message["shard"]})

A message is a line of JSON that holds an object; where that has ``"bytes": n``, n raw bytes follow. No ports, no files.

A child ends with its parent by the end of its standard input, on every system. Linux's PR_SET_PDEATHSIG is not used: it
goes by the *thread* that started the child, and runs, exports and previews are started by threads that end sooner.

| who | input | output | when its parent is gone |
|---|---|---|---|
| `engine.launcher`, detached | none | worker.log | goes on: the run survives the notebook |
| `engine.launcher`, else | kept open | worker.log | stops, saves and ends (`engine.lone_worker`) |
| `engine.distributed_launcher` | kept open | its parent's | ends at once, with exit code 1 |
| `data.prepare.workers` | messages | messages | ends at once; the files it was at are swept |
| `train.precompile` | one message | none | ends at once |
| `export.llama_runner` | messages | messages and bytes | ends at once |
| `export.hub_upload` | one message | messages | ends at once; nothing is committed |
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple, Self, overload

from nbtune.untrusted import harmless

_WORDS = 16384  # bytes that are kept of what a child says to standard error
_LONGEST = 64 << 20  # bytes of a message's line
_WAITING = 64  # messages that may wait to be heard; then the child waits
_MERCY = 5.0  # seconds between asking a process to end and ending it
_REAPED = 10.0  # seconds in which the system takes a killed process away
_LINGER = 1.0  # seconds in which the last words arrive


class Message(NamedTuple):
    """What a process said: an object, and the bytes that came with it."""

    body: dict[str, Any]
    raw: bytes = b""


class ChildDied(Exception):
    """A child that was expected to speak has ended; the text is one sentence.

    `code` is its exit code (None: it could not be reaped), `last_words` the last line that it said to standard error.
    """

    def __init__(self, sentence: str, *, code: int | None = None, last_words: str = "") -> None:
        self.code, self.last_words = code, last_words
        super().__init__(f"{sentence}: {last_words}" if last_words else sentence)


class ChildSilent(ChildDied):
    """A child said nothing for too long, and was ended."""


def exit_sentence(code: int | None, hint: str = "") -> str:
    """Return how a process ended, for people: ``"was ended by signal 9 (often: the machine ran out of memory)"``.

    Args:
        code: its exit code; negative for a signal, None where it is not known.
        hint: what to add where the code alone explains nothing.
    """
    if code is None:
        return f"does not end{hint}"
    how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
    return how + (" (often: the machine ran out of memory)" if code == -9 else hint)


class ChildProcess:
    """Python in a process of its own, started at once.

    Args:
        arguments: what follows the interpreter, such as ``["-m", "nbtune.engine", folder]``.
        environment: what differs from this process's environment, which the child has otherwise.
        output: ``"messages"``: it is heard, and the end of what it says to standard error is kept; ``"inherited"``:
            both go where this process's go; ``"none"``; or a file that takes both.
        detached: it has no input, a session of its own, and survives this one.
        own_session: no signal of the terminal to this process reaches it: Ctrl-C is for this one to answer.
        on_stderr: is given each piece of standard error; True says that the piece is a sign of life (see `hear`).
    Raises:
        OSError: no process can be started.
    """

    def __init__(
        self,
        arguments: Sequence[str | Path],
        *,
        environment: Mapping[str, str] | None = None,
        output: Literal["messages", "inherited", "none"] | IO[bytes] = "messages",
        detached: bool = False,
        own_session: bool = False,
        on_stderr: Callable[[bytes], bool] | None = None,
    ) -> None:
        named: dict[str, int | None] = {"messages": subprocess.PIPE, "inherited": None, "none": subprocess.DEVNULL}
        sink = named[output] if isinstance(output, str) else output
        self._process = subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            stdin=subprocess.DEVNULL if detached else subprocess.PIPE,
            stdout=sink,
            stderr=sink,
            env={**os.environ, **(environment or {})},
            start_new_session=detached or own_session,
            bufsize=0,
        )
        self._speaking = threading.Lock()
        self._inbox = _Inbox()
        self._words = bytearray()
        self._listeners: list[threading.Thread] = []
        stdout, stderr = self._process.stdout, self._process.stderr
        if stdout is not None and stderr is not None:
            self._listen(_read_messages, stdout, self._inbox)
            self._listen(_keep_words, stderr, self._words, self._inbox, on_stderr)

    def _listen(self, function: Callable[..., None], *arguments: Any) -> None:
        """Start a thread for a pipe, which alone reads and closes it: a grandchild may hold the other end for ever."""
        thread = threading.Thread(target=function, args=arguments, name=f"nbtune-child-{self.pid}", daemon=True)
        thread.start()
        self._listeners.append(thread)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def last_words(self) -> str:
        """The last line that it has said to standard error, so far."""
        lines = bytes(self._words).decode("utf-8", "replace").strip().splitlines()
        return harmless(lines[-1].strip(), line=True)[:500] if lines else ""

    def say(self, body: Mapping[str, Any], raw: bytes = b"") -> None:
        """Send a message.

        Raises:
            ChildDied: nobody is there to take it.
        """
        stream = self._process.stdin
        try:
            with self._speaking:
                if stream is None or stream.closed:
                    raise ChildDied("nothing more can be said to this process", code=self._process.poll())
                _write(stream, body, raw)
        except OSError:
            raise self._death() from None

    def hear(self, patience: float | None = None) -> Message:
        """Return its next message; what it prints besides is passed over.

        Args:
            patience: seconds without a sign of life after which it is ended; None: it may take its time.

        Raises:
            ChildSilent: it was ended, since nothing came.
            ChildDied: it has ended.
        """
        while True:
            item = self._inbox.take(patience)
            if isinstance(item, Message):
                return item
            if item == "end":
                raise self._death()
            if item == "silence":
                self.stop(0.0)
                raise ChildSilent(f"its process said nothing for {patience:g} seconds", code=self.wait(0.0))

    def _death(self) -> ChildDied:
        """Return what to say of a child whose pipes are closed: it ends by itself now, or is made to."""
        code = self.wait(_LINGER)
        self.stop()
        code = self.wait(0.0) if code is None else code
        return ChildDied(f"its process {exit_sentence(code)}", code=code, last_words=self.last_words)

    @overload
    def wait(self) -> int: ...
    @overload
    def wait(self, timeout: float) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int | None:
        """Return its exit code once it has ended; None: it has not within `timeout` seconds."""
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            return None

    def close(self, patience: float = _MERCY) -> int | None:
        """Say that nothing more will be said, wait for its end, stop it where that takes longer; its exit code."""
        self._close_input(patience)
        self.wait(patience)
        return self.stop()

    def terminate(self) -> None:
        """Ask it to end; `stop` is still to be called."""
        if self._process.poll() is None:
            self._process.terminate()

    def stop(self, mercy: float = _MERCY) -> int | None:
        """End it, whatever it does: asked first, killed after `mercy` seconds (0: at once); its exit code.

        Safe to call again, and for one that has ended. Afterwards nothing of it is left.
        """
        if mercy > 0:
            self.terminate()
            self.wait(mercy)
        if self._process.poll() is None:
            self._process.kill()
        code = self.wait(_REAPED)
        self._inbox.close()
        self._close_input(_LINGER)
        for thread in self._listeners:
            if thread is not threading.current_thread():
                thread.join(_LINGER)
        return code

    def _close_input(self, patience: float) -> None:
        """Close its standard input, unless somebody waits in it for a process that does not read."""
        stream = self._process.stdin
        if stream is not None and self._speaking.acquire(timeout=patience):
            with contextlib.suppress(OSError):
                stream.close()
            self._speaking.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class _Inbox:
    """What was heard and not yet taken; who puts more than `limit` messages waits until some are taken."""

    def __init__(self, limit: float = _WAITING) -> None:
        self._limit = limit
        self._items: deque[Message | Literal["life", "end"]] = deque()
        self._changed = threading.Condition()
        self._closed = False

    def put(self, item: Message | Literal["life", "end"]) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or item == "end" or len(self._items) < self._limit)
            if item == "end" or len(self._items) < self._limit:  # what nobody will take any more is dropped
                self._items.append(item)
            self._changed.notify_all()

    def sign_of_life(self) -> None:
        with self._changed:
            if not self._items:  # a message that waits is one, too
                self._items.append("life")
                self._changed.notify_all()

    def take(self, patience: float | None) -> Message | Literal["life", "end", "silence"]:
        with self._changed:
            if not self._changed.wait_for(lambda: bool(self._items), patience):
                return "silence"
            if self._items[0] == "end":
                return "end"  # and stays
            self._changed.notify_all()
            return self._items.popleft()

    def close(self) -> None:
        """Let the child say what it will: who does not read it makes nobody wait."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


def _read_messages(stream: IO[bytes], inbox: _Inbox) -> None:
    with contextlib.suppress(OSError, ValueError), io.BufferedReader(stream) as whole:  # type: ignore[type-var]
        while (line := whole.readline(_LONGEST)).endswith(b"\n"):  # half a line is no message
            body = _object(line)
            if body is None:
                continue  # a library prints
            count = body.get("bytes", 0)
            raw = whole.read(count) if count else b""
            if len(raw) < count:
                break
            inbox.put(Message(body, raw))
    inbox.put("end")


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        body = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return body if isinstance(body, dict) else None


def _keep_words(stream: IO[bytes], words: bytearray, inbox: _Inbox, on_stderr: Callable[[bytes], bool] | None) -> None:
    with contextlib.suppress(OSError, ValueError), stream:
        while block := os.read(stream.fileno(), 65536):
            words += block
            del words[:-_WORDS]
            if on_stderr is not None and on_stderr(block):
                inbox.sign_of_life()


def _write(stream: IO[bytes], body: Mapping[str, Any], raw: bytes) -> None:
    """Write a message, whole: a pipe may take a part at a time."""
    head = {**body, "bytes": len(raw)} if raw else body
    data = memoryview(json.dumps(head).encode() + b"\n" + raw)
    while data:
        data = data[stream.write(data) or 0 :]


# ---------------------------------------------------------------- in the child


class ParentProcess:
    """The process that has started this one, from its first moment: standard output belongs to the messages, and what
    libraries print goes to standard error. When the parent closes the pipe or is gone, this process ends.

    Args:
        code: this process's exit code then.
    """

    def __init__(self, code: int = 0) -> None:
        self._out = os.fdopen(os.dup(1), "wb", buffering=0)
        os.dup2(2, 1)
        self._speaking = threading.Lock()
        self._inbox = _Inbox(limit=float("inf"))  # its end is to be seen, however much it says before
        threading.Thread(target=_heed_parent, args=(code, self._hear), name="nbtune-parent", daemon=True).start()

    def _hear(self, line: bytes) -> None:
        body = _object(line)
        if body is not None:
            self._inbox.put(Message(body))

    def messages(self) -> Iterator[dict[str, Any]]:
        """Yield what the parent says, one object after another; it never ends before this process does."""
        while True:
            item = self._inbox.take(None)
            if isinstance(item, Message):
                yield item.body

    def say(self, body: Mapping[str, Any], raw: bytes = b"") -> None:
        """Send a message."""
        with self._speaking:
            _write(self._out, body, raw)


def end_with_parent(code: int = 1, *, first: Callable[[], None] | None = None) -> None:
    """End this process, with an exit code, as soon as the one that has started it closes the pipe or is gone.

    Args:
        code: the exit code.
        first: is called then, in a thread, and may take its time: to stop and save.
    """
    threading.Thread(target=_heed_parent, args=(code, None, first), name="nbtune-parent", daemon=True).start()


def _heed_parent(code: int, hear: Callable[[bytes], None] | None, first: Callable[[], None] | None = None) -> None:
    """Read standard input by its number: a reader's lock would stand in the way of this process's own end."""
    line = b""
    with contextlib.suppress(OSError):
        while block := os.read(0, 65536):
            if hear is None:
                continue
            *whole, line = (line + block).split(b"\n")
            for one in whole:
                hear(one)
    try:
        if first is not None:
            first()
    finally:
        os._exit(code)
