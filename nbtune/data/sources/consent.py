"""What this user has said or done here: signatures with a key of the user's account, and consents that are remembered.

A run's folder is data, whoever wrote it. What in it would run code, or reach out of it, counts only if this user wrote
it here (then it is signed), or said for this very folder that it may (then the cache remembers it). Neither lies in the
folder, so that nobody can bring one along.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from nbtune import hub_cache
from nbtune.atomic_io import create_file, write_text
from nbtune.disk import cache_folder, disk_error
from nbtune.errors import DataError
from nbtune.untrusted import BadFile, load

_BYTES = 32


def signature_of(subject: Mapping[str, Any]) -> str:
    """Return this user's signature under what JSON can hold; whatever is changed in it, the signature fits no more."""
    return _mac(b"nbtune record 2\n" + _text(subject))


def is_signed(subject: Mapping[str, Any], signature: object) -> bool:
    """Return whether this user has signed it, here."""
    return isinstance(signature, str) and signature.isascii() and hmac.compare_digest(signature_of(subject), signature)


def signed_body(body: bytes, signature: object) -> bool:
    """Return whether it is a body that an earlier nbtune of this user has signed alone."""
    return isinstance(signature, str) and signature.isascii() and hmac.compare_digest(_mac(body), signature)


def remember(folder: Path, subject: Mapping[str, Any], words: str) -> None:
    """Keep that this user allows the subject in this folder; `words` say it for whoever looks into the cache.

    Raises:
        DataError: the cache cannot be written.
    """
    path = _place(folder, subject)
    body = {"folder": str(_real(folder)), "what": words, "time": time.time()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(body, indent=1) + "\n")
    except OSError as error:
        raise _no_place(error) from error


def is_remembered(folder: Path, subject: Mapping[str, Any]) -> bool:
    """Return whether this user has allowed it in this folder."""
    return _place(folder, subject).is_file()


def code_of(model: Path) -> str:
    """Return what code a model's folder brings: a digest of its Python files, of what names them, and of the files of
    others' that these name."""
    whole = hashlib.sha256()
    configs = [model / "config.json", model / "tokenizer_config.json"]
    own = [path for path in (*model.rglob("*.py"), *configs) if path.is_file()]
    for path in [*sorted(own), *_borrowed(configs)]:
        name = path.relative_to(model) if path.is_relative_to(model) else path
        whole.update(f"{name.as_posix()}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return whole.hexdigest()


def _borrowed(configs: list[Path]) -> list[Path]:
    """Return the Python files, as they are here, of the repositories and folders that `auto_map` names before `--`."""
    named: set[str] = set()
    for config in configs:
        with suppress(OSError, BadFile):
            known = (load(config, number_below=1 << 70) or {}).get("auto_map")
            stated = list(known.values()) if isinstance(known, dict) else []
            parts = [part for one in stated for part in (one if isinstance(one, list) else [one])]
            named |= {part.partition("--")[0] for part in parts if isinstance(part, str) and "--" in part}
    places = [
        place
        for name in sorted(named)
        for place in (Path(name), hub_cache.snapshot(hub_cache.user_cache(), "model", name))
    ]
    return sorted(path for place in places if place is not None for path in place.glob("*.py") if path.is_file())


def _place(folder: Path, subject: Mapping[str, Any]) -> Path:
    """Return a name that only this user's key makes, of this folder and this subject."""
    name = _mac(b"nbtune consent 1\n" + _text({"folder": str(_real(folder)), "subject": dict(subject)}))
    return cache_folder() / "consent" / f"{name}.json"


def _real(folder: Path) -> Path:
    return folder.expanduser().resolve()


def _text(subject: Mapping[str, Any]) -> bytes:
    return json.dumps(subject, sort_keys=True, ensure_ascii=True).encode()


def _mac(text: bytes) -> str:
    return hmac.new(_key(), text, hashlib.sha256).hexdigest()


def _key() -> bytes:
    """Return this user's key, made when it is first needed."""
    path = cache_folder() / "functions.key"
    for _ in range(3):
        try:
            key = path.read_bytes()
            if len(key) == _BYTES:
                return key
            path.unlink()  # half of one, of a disk that was full
        except FileNotFoundError:
            pass
        except OSError as error:
            raise _no_place(error) from error
        _make(path)
    raise _no_place(OSError("the key cannot be kept"))


def _make(path: Path) -> None:
    """Make a key that is whole from its first moment; of two that are made at once one stays."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        create_file(path, secrets.token_bytes(_BYTES), mode=0o600)
    except OSError as error:
        raise _no_place(error) from error


def _no_place(error: OSError) -> DataError:
    return disk_error(error, DataError, "there is no place for your key and consents", place=cache_folder().name)
