"""The Hub as this machine reaches it: where its files lie here already, and why it cannot be reached.

``NBTUNE_SHARED_CACHE=/srv/huggingface`` names a cache of the Hub that many people read and this process never writes
(several: separated as in PATH). It is looked at after the user's own cache and before the network.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

_FOLDERS = {"model": "models", "dataset": "datasets"}
_WAIT = 5.0  # seconds that the Hub has for an answer
_REMEMBERED = 30.0  # seconds in which it is not asked again, and one that kept us waiting is not waited for again
_asked: dict[str, tuple[float, Exception | None]] = {}


def user_cache() -> Path:
    """Return the folder in which huggingface_hub keeps what it has downloaded for this user."""
    loaded = sys.modules.get("huggingface_hub.constants")
    if loaded is not None:
        return Path(loaded.HF_HUB_CACHE).absolute()
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return Path(os.path.expanduser(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub")).absolute()


def shared_caches() -> list[Path]:
    """Return the caches that ``NBTUNE_SHARED_CACHE`` names, each a folder of repositories, or one that has it in
    ``hub/``."""
    named = [Path(entry).expanduser() for entry in os.environ.get("NBTUNE_SHARED_CACHE", "").split(os.pathsep) if entry]
    return [path / "hub" if (path / "hub").is_dir() else path for path in named]


def repos(cache: Path, kind: str) -> list[str]:
    """Return the ids of what a cache holds, sorted, whole or not.

    Args:
        cache: its folder.
        kind: ``model`` or ``dataset``.
    """
    start = f"{_FOLDERS[kind]}--"
    try:
        names = [entry.name for entry in cache.iterdir() if entry.name.startswith(start)]
    except OSError:
        return []
    return sorted(name[len(start) :].replace("--", "/") for name in names)


def cached(kind: str) -> list[str]:
    """Return the ids of what the user's cache and the shared ones hold, sorted; `kind` as of `repos`."""
    return sorted({name for cache in (user_cache(), *shared_caches()) for name in repos(cache, kind)})


def snapshot(cache: Path, kind: str, repo: str, revision: str | None = None) -> Path | None:
    """Return the folder with a repository's files in a cache, or None; some of the files may be missing.

    Args:
        cache: its folder.
        kind: ``model`` or ``dataset``.
        repo: ``owner/name``.
        revision: a branch, tag or commit; ``main`` if unset.
    """
    folder, revision = cache / f"{_FOLDERS[kind]}--{repo.replace('/', '--')}", revision or "main"
    try:
        commit = (folder / "refs" / revision).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        commit = revision
    folder_of_commit = folder / "snapshots" / commit
    return folder_of_commit if folder_of_commit.is_dir() else None


def shared_snapshot(kind: str, repo: str, revision: str | None = None) -> Iterator[Path]:
    """Yield `snapshot` in each of the shared caches that has one."""
    for cache in shared_caches():
        path = snapshot(cache, kind, repo, revision)
        if path is not None:
            yield path


def silence(kind: str, repo: str) -> Exception | None:
    """Return why the Hub does not answer; None: it does, whatever it says of the repository, or it must not be asked.

    It is asked once, for a few seconds (``HF_HUB_ETAG_TIMEOUT``). Its own libraries ask six times for what was never
    downloaded, half a minute where the network is down, and without end a server that takes the question and is silent.

    Args:
        kind: ``model`` or ``dataset``.
        repo: ``owner/name``.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    before, said = _asked.get(constants.ENDPOINT, (-_REMEMBERED, None))
    begun = time.monotonic()
    if begun - before < _REMEMBERED:
        return said
    wait = float(os.environ.get("HF_HUB_ETAG_TIMEOUT") or _WAIT)
    error = _answer(lambda: HfApi().repo_info(repo, repo_type=kind, timeout=wait), wait)
    if isinstance(error, OfflineModeIsEnabled):
        return None
    if error is not None and not isinstance(error, HfHubHTTPError | HFValidationError):
        if "Timeout" in type(error).__name__:  # a refusal comes at once, and is not remembered
            _asked[constants.ENDPOINT] = time.monotonic(), error
        return error
    _asked[constants.ENDPOINT] = time.monotonic(), None
    return None


def _answer(ask: Callable[[], object], wait: float) -> Exception | None:
    """Return what a question ends with; a `TimeoutError` after so many seconds in all, since a client waits as long for
    each address of a name, and for each byte of an answer."""
    ended: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()

    def asking() -> None:
        try:
            ask()
            ended.put(None)
        except Exception as error:  # noqa: BLE001 — whatever the transport raises
            ended.put(error)

    threading.Thread(target=asking, name="nbtune asks the Hub", daemon=True).start()
    try:
        return ended.get(timeout=wait)
    except queue.Empty:
        return TimeoutError(f"no answer within {wait:g} seconds")


def distrusted(error: BaseException) -> tuple[str, str] | None:
    """Return (what is wrong, what to do), if an error comes from a certificate that nobody here vouches for; else None.

    huggingface_hub makes its connections anew afterwards, so that what is set then counts without a restart.
    """
    link: BaseException | None = error
    while link is not None and "CERTIFICATE_VERIFY_FAILED" not in str(link):
        link = link.__cause__ or link.__context__
    if link is None:
        return None
    from huggingface_hub import close_session

    close_session()
    host = os.environ.get("HF_ENDPOINT", "the Hub").split("@")[-1].removeprefix("https://")
    named = os.environ.get("SSL_CERT_FILE")
    elsewhere = next((name for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE") if os.environ.get(name)), None)
    if named:
        fix = f"put the certificate of your organisation's proxy into {named}, which SSL_CERT_FILE names"
    elif elsewhere:
        fix = f"set SSL_CERT_FILE to {os.environ[elsewhere]} too: huggingface_hub does not look at {elsewhere}"
    else:
        fix = "set SSL_CERT_FILE to the file with your organisation's certificates: `%env SSL_CERT_FILE=/etc/ca.pem`"
    return f"{host} shows a certificate that this machine does not trust", fix
