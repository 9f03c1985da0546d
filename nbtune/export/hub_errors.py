"""What the Hub's refusals and broken connections mean, in a sentence that holds nothing of the request."""

from __future__ import annotations

import os

from nbtune.disk import DENIED

_TRANSIENT = (408, 425, 429, 500, 502, 503, 504)
_LATER = "push again later; what has been uploaded is not sent again."


def _causes(error: BaseException) -> list[BaseException]:
    """Return `error` and what it came from, nearest first."""
    chain: list[BaseException] = []
    now: BaseException | None = error
    while now is not None and now not in chain:
        chain.append(now)
        now = now.__cause__ or now.__context__
    return chain


def status_of(error: BaseException) -> int:
    """Return the HTTP status that an error came from, or 0."""
    for cause in _causes(error):
        response = getattr(cause, "response", None)
        if response is not None and getattr(response, "status_code", None):
            return int(response.status_code)
    return 0


def retry_after(error: BaseException) -> float:
    """Return the seconds that the server asks to wait, at most 60; or 0."""
    for cause in _causes(error):
        response = getattr(cause, "response", None)
        if response is not None:
            value = response.headers.get("Retry-After", "")
            return min(float(value), 60.0) if value.isdecimal() else 0.0
    return 0.0


def _is_network(error: BaseException) -> bool:
    """Return whether a connection broke, or none could be made (huggingface_hub's client is httpx or httpx2)."""
    kinds = [type(cause) for cause in _causes(error)]
    clients = ("httpx", "httpx2", "httpcore", "httpcore2")
    return any(
        issubclass(kind, ConnectionError | TimeoutError) or kind.__module__.split(".")[0] in clients for kind in kinds
    )


def is_transient(error: BaseException) -> bool:
    """Return whether trying again may help."""
    return status_of(error) in _TRANSIENT or (status_of(error) == 0 and _is_network(error))


def explain(error: BaseException, repo: str, step: str) -> dict[str, str]:
    """Return cause and fix of an error, without anything of the request or of the server's headers."""
    from huggingface_hub.errors import GatedRepoError, HFValidationError, OfflineModeIsEnabled

    status = status_of(error)
    kinds = [type(one) for one in _causes(error)]
    if any(issubclass(kind, OfflineModeIsEnabled) for kind in kinds):
        return {
            "cause": "the Hub is switched off (HF_HUB_OFFLINE)",
            "fix": "unset HF_HUB_OFFLINE and push again.",
        }
    if any(issubclass(kind, HFValidationError) for kind in kinds):
        return {
            "cause": f"{repo!r} is not a repository's name",
            "fix": "write it as owner/name, with letters, digits, - _ .",
        }
    if any(issubclass(kind, GatedRepoError) for kind in kinds):
        return {"cause": f"{repo} is gated, and this account has no access", "fix": "ask for access on its page."}
    known = {
        401: ("the Hub does not accept the token (401)", "log in again (hf auth login): it is wrong, or has expired."),
        403: (f"this token may not write to {repo} (403)", "use a token with write permission for that account."),
        404: (f"{repo} is not there, or this token may not see it (404)", "see the name, and log in as its owner."),
        409: (f"somebody else changed {repo} meanwhile (409)", "push again."),
        412: (f"somebody else changed {repo} meanwhile (412)", "push again."),
        413: ("a file is larger than the Hub takes (413)", "export it in smaller files, and push again."),
        429: ("the Hub takes no more requests from this account for now (429)", _LATER),
    }
    if status in known:
        cause, fix = known[status]
        return {"cause": cause, "fix": fix}
    if status >= 500:
        return {"cause": f"the Hub is out of order ({status}) at {step}", "fix": _LATER}
    if status:
        return {
            "cause": f"the Hub refused {step} ({status}{_server_words(error)})",
            "fix": "see the name and the files.",
        }
    if _is_network(error):
        return {"cause": f"the connection to the Hub broke at {step}", "fix": _LATER}
    if isinstance(error, OSError) and error.filename:
        return {"cause": f"a file cannot be read ({error.strerror})", "fix": "export again, and push."}
    if isinstance(error, OSError) and any(os.strerror(number) in str(error) for number in DENIED):  # hf_xet's own words
        return {"cause": "huggingface_hub cannot write into its cache", "fix": "set HF_HOME to a folder of yours."}
    return {"cause": f"{step} failed ({type(error).__name__})", "fix": _LATER}


def _server_words(error: BaseException) -> str:
    """Return what the server said, shortened."""
    for cause in _causes(error):
        words = getattr(cause, "server_message", None)
        if words:
            return ": " + " ".join(str(words).split())[:200]
    return ""
