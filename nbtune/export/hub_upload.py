"""Push a folder to the Hugging Face Hub: all of it or nothing, private unless said otherwise.

Done by huggingface_hub's own client (Xet or LFS) in a child process (`python -m nbtune.export.hub_upload`), so that its
bars, warnings and settings stay there, an answer that never ends can be cut off, and nothing of a failed request (its
headers hold the token) can be reached from a traceback. The token comes from huggingface_hub's own login or
``HF_TOKEN``, travels through a pipe, and is in no text, traceback, file, argument or environment that is not there.

Large files are sent one by one (`preupload_lfs_files`), then all is one commit (`create_commit`). Not `upload_folder`:
with Xet it commits large folders in parts, also after the Hub refused more than 20 files at once, and so may leave half
of a model; and where no terminal is, it says nothing of how far it is.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbtune.child_process import ChildDied, ChildProcess, ChildSilent, ParentProcess
from nbtune.disk import cache_folder, can_be_written
from nbtune.errors import HubError, NbtuneError
from nbtune.export.hub_errors import explain, is_transient, retry_after, status_of
from nbtune.hub_cache import user_cache
from nbtune.untrusted import refuse_links

if TYPE_CHECKING:
    from nbtune.export.source import Progress

_AGAIN = "push again; what has been uploaded is not sent again."


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
    _need_login()
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
    return _done(_upload(request, patience, progress or _untold, on_wait or _untold), repo_id)


def check_push(repo_id: str, *, private: bool = True, create_pr: bool = False, patience: float = 60.0) -> None:
    """Look before anything is exported whether it can be pushed: login, name, rights, and what is there already.

    Args:
        repo_id, private, create_pr: as of `push_folder`.
        patience: seconds without an answer after which the Hub is not waited for.

    Raises:
        HubError: as `push_folder`.
    """
    _need_login()
    request = {"repo_id": repo_id, "private": private, "revision": None, "create_pr": create_pr}
    _done(_upload({**request, "attempts": 3, "wait": 1.0, "files": []}, patience, _untold, _untold), repo_id)


def account(patience: float = 60.0) -> str:
    """Return the name of the account that is logged in.

    Raises:
        HubError: nobody is, or the Hub did not answer.
    """
    _need_login()
    request = {"repo_id": "who", "private": True, "revision": None, "create_pr": False, "only": "who"}
    return _done(_upload({**request, "attempts": 1, "wait": 1.0, "files": []}, patience, _untold, _untold), "the Hub")


def _need_login() -> None:
    if not _with_token({})["token"]:
        raise HubError("you are not logged in to the Hub", fix="run `hf auth login`, or set HF_TOKEN, and push again.")


def _done(last: dict[str, Any], repo_id: str) -> str:
    if "url" in last:
        return str(last["url"])
    raise HubError(last["error"]["cause"], place=repo_id, fix=last["error"]["fix"])


def _with_token(request: dict[str, Any]) -> dict[str, Any]:
    """Return the request with the token, which no variable holds that a traceback might show."""
    from huggingface_hub import get_token

    return {**request, "token": get_token()}


def _untold(*_: Any) -> None:
    """Tell nobody."""


def _files(folder: Path) -> list[tuple[str, str, int]]:
    """Return (name in the repository, path, bytes) of each file."""
    if not folder.is_dir():
        raise HubError("the folder is not there", place=str(folder), fix="export first, then push what was made.")
    files = []
    refuse_links(folder.resolve(), error=HubError)
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and not any(part.startswith(".") for part in name.parts):
            files.append((name.as_posix(), str(path), path.stat().st_size))
    if not files:
        raise HubError("the folder is empty", place=str(folder), fix="export first, then push what was made.")
    return files


def _upload(
    request: dict[str, Any],
    patience: float,
    progress: Callable[[int, int, str], None],
    on_wait: Callable[[float, str], None],
) -> dict[str, Any]:
    """Return the child's last word: ``{"url": ...}`` or ``{"error": {"cause": ..., "fix": ...}}``.

    Whatever happens here, an interrupt too, the child has ended afterwards.
    """
    at, made = "start", ""
    environment = {"HF_HUB_DISABLE_PROGRESS_BARS": "0", "HF_HUB_DISABLE_TELEMETRY": "1"}
    if not (os.environ.get("HF_XET_CACHE") or can_be_written(user_cache().parent)):
        environment["HF_XET_CACHE"] = str(cache_folder() / "xet")  # its uploads write there, and end where they cannot
    with ChildProcess(["-m", __name__], environment=environment) as child:
        try:
            child.say(_with_token(request))
            while True:
                body, _ = child.hear(patience)
                if "url" in body or "error" in body:
                    return body
                if "waiting" in body:
                    on_wait(body["waiting"], body["step"])
                made = body.get("made", made)
                if "progress" in body:
                    done, total, at = body["progress"]
                    progress(done, total, at)
        except ChildSilent:
            cause = f"the Hub stopped answering for {patience:.0f} seconds at {at}"
        except ChildDied as death:
            cause = f"the upload's process ended at {at} (exit status {death.code})"
        except NbtuneError:  # whoever is told of the progress wants it no more
            child.stop()
            if made:
                _upload({**request, "repo_id": made, "files": [], "only": "forget"}, patience, _untold, _untold)
            raise
    return {"error": {"cause": cause, "fix": _AGAIN}}


# ---------------------------------------------------------------- in the child


class _Push:
    """One push: the request, and how far it is. `say` tells the parent."""

    def __init__(self, request: dict[str, Any], say: Callable[[dict[str, Any]], None]) -> None:
        from huggingface_hub import HfApi

        self.request, self.say = request, say
        self.repo = request["repo_id"]
        self.step = "the start"
        self.api = HfApi(token=request["token"], library_name="nbtune")
        self.made_here = False
        self.revision = None if request["create_pr"] else request["revision"]
        self.sent, self.total = 0, sum(size for _, _, size in request["files"])

    def run(self) -> str:
        """Create the repository where it is not there, upload, commit once; return the address of what is new."""
        from huggingface_hub import CommitOperationAdd

        self.repo = self.again("making the repository", self.repository)
        branch = self.revision
        if branch and branch != "main":
            self.again("making the branch", lambda: self.api.create_branch(self.repo, branch=branch, exist_ok=True))
        files = self.request["files"]
        additions = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=path) for name, path, _ in files]
        for addition, (name, _, size) in zip(additions, files, strict=True):
            self.upload(addition, name, size)
        info = self.again("the commit", lambda: self.commit(additions))
        self.say({"progress": [self.total, self.total, "commit"]})
        if info.pr_url:
            return str(info.pr_url)
        page = f"{self.api.endpoint}/{self.repo}"
        return f"{page}/tree/{branch}" if branch and branch != "main" else page

    def again(self, step: str, action: Callable[[], Any]) -> Any:
        """Return `action()`, tried again after what may pass: huggingface_hub does not for a commit or a new repo."""
        self.step = step
        wait = float(self.request["wait"])
        for left in range(int(self.request["attempts"]) - 1, -1, -1):
            try:
                return action()
            except Exception as error:
                if not left or not is_transient(error):
                    raise
                pause = max(wait, retry_after(error))
            self.say({"waiting": pause, "step": step})
            time.sleep(pause)
            wait *= 2
        return None

    def repository(self) -> str:
        """Make the repository, or see that the one that is there is as private as was asked; return its full name."""
        from huggingface_hub.errors import HfHubHTTPError

        private = self.request["private"]
        try:
            url = self.api.create_repo(self.request["repo_id"], private=private)
            self.made_here = True
            self.say({"made": str(url.repo_id)})
            return str(url.repo_id)
        except HfHubHTTPError as error:
            if status_of(error) != 409:
                raise
        name = self.request["repo_id"]
        if "/" not in name:
            name = f"{self.api.whoami()['name']}/{name}"
        self.refuse_public(name)
        return name

    def refuse_public(self, name: str) -> None:
        """See that a repository that is there is as private as was asked."""
        if self.request["private"] and self.api.repo_info(name).private is False:
            raise _Refused(
                f"{name} is public", "push with private=False if everybody may see this, or to another name."
            )

    def check(self) -> str:
        """See that the login is accepted, may write to the owner's account, and that the name can be a repository's."""
        from huggingface_hub.utils import validate_repo_id

        validate_repo_id(self.repo)
        who = self.again("the login", self.api.whoami)
        owner, _, _ = self.repo.rpartition("/")
        mine = {who["name"], *(each["name"] for each in who.get("orgs") or [])}
        role = ((who.get("auth") or {}).get("accessToken") or {}).get("role")
        if role == "read" or (owner and owner not in mine and not self.request["create_pr"]):
            whose = f"{who['name']}'s{', to read only' if role == 'read' else ''}"
            raise _Refused(
                f"this token may not write to {self.repo} (it is {whose})",
                "use a token with write permission for that account.",
            )
        try:
            self.refuse_public(self.repo if owner else f"{who['name']}/{self.repo}")
        except Exception as error:  # there is none yet, or it is out of sight: the push makes it, or says so
            if isinstance(error, _Refused) or status_of(error) not in (401, 403, 404):
                raise
        return self.repo

    def upload(self, addition: Any, name: str, size: int) -> None:
        """Send one large file; small ones travel with the commit. The client tries each request six times by itself."""
        self.step = f"uploading {name}"
        with contextlib.redirect_stderr(_Bars(lambda share: self.tell(name, int(share * size)))):
            self.api.preupload_lfs_files(
                self.repo,
                [addition],
                revision=self.revision,
                create_pr=self.request["create_pr"],
                free_memory=False,
            )
        self.sent += size
        self.tell(name)

    def tell(self, name: str, more: int = 0) -> None:
        """Say how far the push is: a sign of life, too."""
        self.say({"progress": [self.sent + more, self.total, name]})

    def commit(self, additions: list[Any]) -> Any:
        """Commit all files at once: all of them or none."""
        return self.api.create_commit(
            self.repo,
            additions,
            commit_message=self.request["message"],
            revision=self.revision,
            create_pr=self.request["create_pr"],
        )

    def undo(self, error: BaseException) -> None:
        """Take away a repository that was made here and stays empty, unless the same push may go on later."""
        if self.made_here and not is_transient(error):
            with contextlib.suppress(Exception):  # the push's own error is what the user has to hear
                self.forget()

    def who(self) -> str:
        """Return whose the token is."""
        return str(self.api.whoami()["name"])

    def forget(self) -> str:
        """Take away the repository that a push made, if nothing was committed into it, by somebody else either."""
        if not {*self.api.list_repo_files(self.repo)} - {".gitattributes"}:
            self.api.delete_repo(self.repo, missing_ok=True)
        return self.repo


class _Bars(io.TextIOBase):
    """Standard error while huggingface_hub draws its bars there: each that moves is told, none is shown."""

    def __init__(self, moved: Callable[[float], None]) -> None:
        self._moved = moved
        self._last, self._share = "", 0.0

    def write(self, text: str) -> int:
        """Take what a bar draws: ``"model.safetensors:  45%|███ "``."""
        for percent in re.findall(r"(\d{1,3})%\|", text):
            if percent != self._last:
                self._last, self._share = percent, max(self._share, min(int(percent), 99) / 100)
                self._moved(self._share)
        return len(text)


class _Refused(Exception):
    """A push that was not begun, with cause and fix."""


def _main() -> None:
    """Take the request, push, say the address or what went wrong."""
    warnings.simplefilter("ignore")
    parent = ParentProcess()
    push = _Push(next(parent.messages()), parent.say)
    try:
        work = push.run if push.request["files"] else getattr(push, push.request.get("only", "check"))
        last: dict[str, Any] = {"url": work()}
    except _Refused as refused:
        last = {"error": {"cause": refused.args[0], "fix": refused.args[1]}}
    except Exception as error:  # noqa: BLE001 (a process of its own: every error becomes a sentence)
        push.undo(error)
        last = {"error": explain(error, push.repo, push.step)}
    parent.say(last)


if __name__ == "__main__":
    _main()
