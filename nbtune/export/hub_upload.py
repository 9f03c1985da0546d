"""Push a folder to the Hugging Face Hub: all of it or nothing, private unless said otherwise.

Done by the real huggingface_hub client (Xet or LFS) in a child process, see ``_hub_child.py``. The token comes from
huggingface_hub's own login or ``HF_TOKEN``, travels through a pipe, and is in no text, traceback, file or argument.
"""

from __future__ import annotations

import json
import os
import queue
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from nbtune.errors import HubError
from nbtune.export.files import folder_bytes, gigabytes
from nbtune.export.source import Progress
from nbtune.untrusted import harmless

__all__ = ["push_folder", "upload_bytes"]

_PERCENT = re.compile(rb"(\d{1,3})%\|")


def upload_bytes(folder: Path) -> int:
    """How many bytes `push_folder` would send at most; what the Hub already has is not sent again."""
    return folder_bytes(folder)


def push_folder(
    folder: Path,
    repo_id: str,
    *,
    private: bool = True,
    revision: str | None = None,
    create_pr: bool = False,
    message: str = "Upload with nbtune",
    attempts: int = 5,
    wait: float = 1.0,
    patience: float = 300.0,
    progress: Progress | None = None,
    on_wait: Callable[[float, str], None] | None = None,
) -> str:
    """Upload every file of `folder` in one commit, and return the address of the repository, branch or pull request.

    Args:
        folder: what to upload; files that begin with a dot are left out.
        repo_id: ``"owner/name"``, or ``"name"`` for the account that is logged in.
        private: a new repository is private; with True an existing public one is refused.
        revision: a branch (made where there is none); the main one by default.
        create_pr: open a pull request instead of committing to the branch.
        message: of the commit.
        attempts: tries of each step when the Hub is busy or the connection breaks.
        wait: seconds before the second try; doubled each time.
        patience: seconds without any sign of progress after which the push is given up.
        progress: called with (bytes done, bytes in all, the file).
        on_wait: called with (seconds, step) before another try.

    Raises:
        HubError: not logged in, a refusal, a broken connection, the Hub out of order. No commit was made then.
    """
    files = _files(Path(folder))
    if _no_token():
        raise HubError("you are not logged in to the Hub", fix="run `hf auth login`, or set HF_TOKEN, and push again.")
    request = {
        "repo_id": repo_id,
        "private": private,
        "revision": revision,
        "create_pr": create_pr,
        "message": message,
        "attempts": attempts,
        "wait": wait,
        "files": files,
    }
    child = _Child(sum(size for _, _, size in files), progress, on_wait)
    try:
        result = child.run(request, patience)
    finally:
        child.end()
    if "url" in result:
        return str(result["url"])
    raise HubError(result["error"]["cause"], place=repo_id, fix=result["error"]["fix"])


def _files(folder: Path) -> list[tuple[str, str, int]]:
    """(name in the repository, path, bytes) of each file."""
    if not folder.is_dir():
        raise HubError("the folder is not there", place=str(folder), fix="export first, then push what was made.")
    found, root = [], folder.resolve()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if not path.resolve().is_relative_to(root):
            raise HubError(
                "this link leads out of the folder, and is not followed",
                place=harmless(name, line=True),
                fix="put the file itself there, and push again.",
            )
        if path.is_file() and not any(part.startswith(".") for part in name.parts):
            found.append((name.as_posix(), str(path), path.stat().st_size))
    if not found:
        raise HubError("the folder is empty", place=str(folder), fix="export first, then push what was made.")
    return found


def _no_token() -> bool:
    from huggingface_hub import get_token

    return not get_token()


def _with_token(request: dict[str, Any]) -> bytes:
    from huggingface_hub import get_token

    return json.dumps({**request, "token": get_token()}).encode()


class _Child:
    """The process that uploads, listened to: each line and each move of a progress bar is a sign of life."""

    def __init__(self, total: int, progress: Progress | None, on_wait: Callable[[float, str], None] | None) -> None:
        self.total, self.done, self.what = total, 0, "start"
        self.progress, self.on_wait = progress, on_wait
        self.signs: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self.process: subprocess.Popen[bytes] | None = None

    def run(self, request: dict[str, Any], patience: float) -> dict[str, Any]:
        """The last word of the child: ``{"url": ...}`` or ``{"error": {"cause": ..., "fix": ...}}``."""
        environment = {**os.environ, "HF_HUB_DISABLE_PROGRESS_BARS": "0", "HF_HUB_DISABLE_TELEMETRY": "1"}
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("_hub_child.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
        )
        stdin, stdout, stderr = self.process.stdin, self.process.stdout, self.process.stderr
        if stdin is None or stdout is None or stderr is None:
            raise AssertionError("the child has pipes")
        threading.Thread(target=self._listen, args=(stdout,), daemon=True).start()
        threading.Thread(target=self._watch_bars, args=(stderr,), daemon=True).start()
        try:
            stdin.write(_with_token(request))
            stdin.close()
        except OSError:
            pass  # the child is gone: `_listen` says so
        while True:
            try:
                sign = self.signs.get(timeout=patience)
            except queue.Empty:
                return _error(f"the Hub stopped answering for {patience:.0f} seconds at {self.what}")
            if sign is None:
                return _error(f"the upload's process ended at {self.what} (exit status {self.process.wait()})")
            if "url" in sign or "error" in sign:
                return sign
            self._tell(sign)

    def _tell(self, sign: dict[str, Any]) -> None:
        if "waiting" in sign and self.on_wait:
            self.on_wait(sign["waiting"], sign["step"])
        if "progress" in sign:
            self.done, _, self.what = sign["progress"]
        if "progress" in sign and self.progress:
            self.progress(self.done, self.total, self.what)

    def _listen(self, stream: IO[bytes]) -> None:
        with stream:
            for line in stream:
                self.signs.put(json.loads(line))
        self.signs.put(None)

    def _watch_bars(self, stream: IO[bytes]) -> None:
        """huggingface_hub's bars are not shown; that one moves is what matters."""
        last = b""
        with stream:
            while block := os.read(stream.fileno(), 4096):
                moved = _PERCENT.findall(block)
                if moved and moved[-1] != last:
                    last = moved[-1]
                    self.signs.put({})

    def end(self) -> None:
        """End the child, whatever it does."""
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


def _error(cause: str) -> dict[str, Any]:
    return {"error": {"cause": cause, "fix": "push again; what has been uploaded is not sent again."}}


def size_note(folder: Path) -> str:
    """What a push will cost, for people: ``"12 files, 4.61 GB"``."""
    files = _files(folder)
    return f"{len(files)} files, {gigabytes(sum(size for _, _, size in files))}"
