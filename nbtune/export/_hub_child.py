"""The child process that uploads: a JSON request on standard input, JSON lines on standard output.

Apart from the notebook's process, so that huggingface_hub's bars, warnings and settings stay here, an answer that never
ends can be cut off, and nothing of a failed request (its headers hold the token) can be reached from a traceback.
The token comes through standard input: it is in no argument, no environment of ours, no file and no line of output.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from typing import Any

TRANSIENT = (408, 425, 429, 500, 502, 503, 504)
LATER = "push again later; what has been uploaded is not sent again."


def say(**what: Any) -> None:
    """One line to the parent."""
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def causes(error: BaseException) -> list[BaseException]:
    """`error` and what it came from, nearest first."""
    chain: list[BaseException] = []
    now: BaseException | None = error
    while now is not None and now not in chain:
        chain.append(now)
        now = now.__cause__ or now.__context__
    return chain


def status_of(error: BaseException) -> int:
    """The HTTP status that an error came from, or 0."""
    for one in causes(error):
        response = getattr(one, "response", None)
        if response is not None and getattr(response, "status_code", None):
            return int(response.status_code)
    return 0


def retry_after(error: BaseException) -> float:
    """The seconds that the server asks to wait, at most 60; or 0."""
    for one in causes(error):
        response = getattr(one, "response", None)
        if response is not None:
            value = response.headers.get("Retry-After", "")
            return min(float(value), 60.0) if value.isdigit() else 0.0
    return 0.0


def is_network(error: BaseException) -> bool:
    """Whether a connection broke, or none could be made (huggingface_hub's client is httpx or httpx2)."""
    kinds = [type(one) for one in causes(error)]
    clients = ("httpx", "httpx2", "httpcore", "httpcore2")
    return any(
        issubclass(kind, ConnectionError | TimeoutError) or kind.__module__.split(".")[0] in clients for kind in kinds
    )


def is_transient(error: BaseException) -> bool:
    """Whether trying again may help."""
    return status_of(error) in TRANSIENT or (status_of(error) == 0 and is_network(error))


def explain(error: BaseException, repo: str, step: str) -> dict[str, str]:
    """Cause and fix of an error, without anything of the request or of the server's headers."""
    from huggingface_hub.errors import GatedRepoError, HFValidationError, OfflineModeIsEnabled

    status = status_of(error)
    found = [type(one) for one in causes(error)]
    if any(issubclass(kind, OfflineModeIsEnabled) for kind in found):
        return {
            "cause": "the Hub is switched off (HF_HUB_OFFLINE)",
            "fix": "unset HF_HUB_OFFLINE and push again.",
        }
    if any(issubclass(kind, HFValidationError) for kind in found):
        return {
            "cause": f"{repo!r} is not a repository's name",
            "fix": "write it as owner/name, with letters, digits, - _ .",
        }
    if any(issubclass(kind, GatedRepoError) for kind in found):
        return {"cause": f"{repo} is gated, and this account has no access", "fix": "ask for access on its page."}
    known = {
        401: ("the Hub does not accept the token (401)", "log in again (hf auth login): it is wrong, or has expired."),
        403: (f"this token may not write to {repo} (403)", "use a token with write permission for that account."),
        404: (f"{repo} is not there, or this token may not see it (404)", "see the name, and log in as its owner."),
        409: (f"somebody else changed {repo} meanwhile (409)", "push again."),
        412: (f"somebody else changed {repo} meanwhile (412)", "push again."),
        413: ("a file is larger than the Hub takes (413)", "export it in smaller files, and push again."),
        429: ("the Hub takes no more requests from this account for now (429)", LATER),
    }
    if status in known:
        cause, fix = known[status]
        return {"cause": cause, "fix": fix}
    if status >= 500:
        return {"cause": f"the Hub is out of order ({status}) at {step}", "fix": LATER}
    if status:
        return {
            "cause": f"the Hub refused {step} ({status}{server_words(error)})",
            "fix": "see the name and the files.",
        }
    if is_network(error):
        return {"cause": f"the connection to the Hub broke at {step}", "fix": LATER}
    if isinstance(error, OSError) and error.filename:
        return {"cause": f"a file cannot be read ({error.strerror})", "fix": "export again, and push."}
    return {"cause": f"{step} failed ({type(error).__name__})", "fix": LATER}


def server_words(error: BaseException) -> str:
    """What the server said, shortened."""
    for one in causes(error):
        words = getattr(one, "server_message", None)
        if words:
            return ": " + " ".join(str(words).split())[:200]
    return ""


class Push:
    """One push: the request, and how far it is."""

    def __init__(self, request: dict[str, Any]) -> None:
        from huggingface_hub import HfApi

        self.request = request
        self.repo = request["repo_id"]
        self.step = "the start"
        self.api = HfApi(token=request["token"], library_name="nbtune")
        self.made_here = False

    def again(self, step: str, action: Any, attempts: int = 0) -> Any:
        """`action()`, tried again after what may pass: huggingface_hub itself does not for a commit or a new repo."""
        self.step = step
        wait = float(self.request["wait"])
        for left in range((attempts or int(self.request["attempts"])) - 1, -1, -1):
            try:
                return action()
            except Exception as error:
                if not left or not is_transient(error):
                    raise
                pause = max(wait, retry_after(error))
            say(waiting=pause, step=step)
            time.sleep(pause)
            wait *= 2
        return None

    def run(self) -> str:
        """Create the repository where it is not there, upload, commit once; the address of what is new."""
        from huggingface_hub import CommitOperationAdd

        request, api = self.request, self.api
        self.repo = self.again("making the repository", self.repository)
        pull_request, revision = request["create_pr"], request["revision"]
        if revision and not pull_request and revision != "main":
            self.again("making the branch", lambda: api.create_branch(self.repo, branch=revision, exist_ok=True))
        files = [(name, path, size) for name, path, size in request["files"]]
        total, done = sum(size for _, _, size in files), 0
        additions = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=path) for name, path, _ in files]
        for addition, (name, _, size) in zip(additions, files, strict=True):
            self.upload(addition, name)
            done += size
            say(progress=[done, total, name])
        info = self.again("the commit", lambda: self.commit(additions))
        say(progress=[total, total, "commit"])
        if info.pr_url:
            return str(info.pr_url)
        page = f"{api.endpoint}/{self.repo}"
        return f"{page}/tree/{revision}" if revision and revision != "main" else page

    def repository(self) -> str:
        """Make the repository, or see that the one that is there is as private as was asked; its full name."""
        from huggingface_hub.errors import HfHubHTTPError

        private = self.request["private"]
        try:
            url = self.api.create_repo(self.request["repo_id"], private=private)
            self.made_here = True
            return str(url.repo_id)
        except HfHubHTTPError as error:
            if status_of(error) != 409:
                raise
        name = self.request["repo_id"]
        if "/" not in name:
            name = f"{self.api.whoami()['name']}/{name}"
        if private and self.api.repo_info(name).private is False:
            raise Refused(f"{name} is public", "push with private=False if everybody may see this, or to another name.")
        return name

    def upload(self, addition: Any, name: str) -> None:
        """Send one large file; small ones travel with the commit."""
        revision, pull_request = self.request["revision"], self.request["create_pr"]
        self.again(
            f"uploading {name}",
            lambda: self.api.preupload_lfs_files(
                self.repo,
                [addition],
                revision=None if pull_request else revision,
                create_pr=pull_request,
                free_memory=False,
            ),
            attempts=1,  # the client tries each request six times by itself
        )

    def commit(self, additions: list[Any]) -> Any:
        """All files in one commit: all of them or none."""
        return self.api.create_commit(
            self.repo,
            additions,
            commit_message=self.request["message"],
            revision=None if self.request["create_pr"] else self.request["revision"],
            create_pr=self.request["create_pr"],
        )

    def undo(self, error: BaseException) -> None:
        """Take away a repository that was made here and stays empty, unless the same push may go on later."""
        if not self.made_here or is_transient(error):
            return
        try:
            self.api.delete_repo(self.repo, missing_ok=True)
        except Exception:  # noqa: BLE001 (the push's own error is what the user has to hear)
            say(note=f"the empty repository {self.repo} could not be removed")


class Refused(Exception):
    """A push that was not begun, with cause and fix."""


def main() -> None:
    """Read the request, push, say the address or what went wrong."""
    warnings.simplefilter("ignore")
    push = Push(json.loads(sys.stdin.read()))
    try:
        url = push.run()
    except Refused as refused:
        say(error={"cause": refused.args[0], "fix": refused.args[1]})
    except Exception as error:  # noqa: BLE001 (a process of its own: every error becomes a sentence)
        push.undo(error)
        say(error=explain(error, push.repo, push.step))
    else:
        say(url=url)


if __name__ == "__main__":
    main()
