"""What a tokenizer may cost: its files are looked at before a library reads them, and it is tried on texts afterwards.

A tokenizer is a stranger's, and a few bytes of it can ask for gigabytes or hours: a number of four billion, letters
that become two each thirty times over, a regular expression that tries every way to cut a sentence. What is refused
here no model has; a GGUF file's tokenizer has the same bounds.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatch
from functools import lru_cache
from pathlib import Path
from typing import Any

from nbtune.errors import SpecError
from nbtune.untrusted import SENTINEL, BadFile, GaveUp, load, panics_as_errors, shortened

# Above those that speak in tokens of their own: some 65,900 tokens that are looked for in every text, of 200 bytes.
MOST_TOKENS, MOST_SPECIAL, LONGEST_SPECIAL = 1 << 19, 70_000, 1 << 10
MOST_WAYS, MOST_LETTERS = 1 << 20, 1 << 24  # to join two tokens into a third (Gemma's half a million); of all tokens
_CONFIGS = ("tokenizer_config.json", "special_tokens_map.json")
# Bytes of each file: the largest of Gemma has 33 MB, the largest of SentencePiece 5.
_LARGEST = {
    "tokenizer.json": 36 << 20,
    "tekken.json": 36 << 20,
    "*.model": 8 << 20,
    **dict.fromkeys((*_CONFIGS, "added_tokens.json", "vocab.json", "merges.txt", "vocab.txt", "*.tiktoken"), 16 << 20),
}
_LINES = {"merges.txt": MOST_WAYS, "vocab.txt": MOST_TOKENS, "*.tiktoken": MOST_TOKENS}
_PARTS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
_MOST_STEPS, _LONGEST_STEP = 128, 1 << 13  # of each part; letters of a pattern
_LONGEST_MAP = 4 << 20  # letters of SentencePiece's own table of what becomes what
_MOST_GROWTH = 1 << 12  # letters that become of one
_NOTHING = re.compile(r"\(\?|\\[bBGAzZ]|[*?|^$]|\{0|^$")  # of a pattern that may find an empty text
_LONGEST_PADDING = 1 << 16  # tokens
_FIX = "Download the model again, or set `tokenizer` to another's."

_SIZES = (1, 16, 64, 256, 1024, 2048)  # letters of a text that is tried
_PATIENCE = 0.1  # seconds of a processor for one; what models have takes a thousandth
_PROSE = "The quick brown fox jumps over 13 lazy dogs, doesn't it? def f(x): return x**2 # 3.14\n\n\té東京 👍 "
_TRIALS = (
    _PROSE * 24,
    "".join(map(chr, range(32, 127))) * 22,
    *(text * (_SIZES[-1] // len(text)) for text in ("a", "ab", "é", " ", "\n", "1", "=", "a b ")),
)


def refuse_odd_tokenizer(folder: Path, model: str) -> None:
    """Refuse a folder whose tokenizer's files ask for more than any model's do.

    Args:
        folder: with the files, of which none need be there.
        model: what people call it.

    Raises:
        SpecError: it has too many tokens, too long ones, too many steps, or steps that make too much of a text.
    """
    special: set[str] = set()
    for path in sorted(folder.iterdir()):
        if path.is_file() and (largest := _of_name(_LARGEST, path.name)) is not None:
            about = path.stat()
            special |= _special_of(path, about.st_size, about.st_mtime_ns, largest, model)
    for cause in _over(len(special), MOST_SPECIAL, "{} of its tokens are special"):
        raise _refused(cause, model, folder)


def _of_name(table: Mapping[str, int], name: str) -> int | None:
    return next((value for pattern, value in table.items() if fnmatch(name, pattern)), None)


def _refused(cause: str, model: str, place: Path) -> SpecError:
    return SpecError(f"{shortened(model)} has a tokenizer like no model's: {cause}", place=str(place), fix=_FIX)


def _over(count: float, most: float, said: str) -> Iterator[str]:
    """Yield what is said of a number above its bound."""
    if count > most:
        yield f"{said.format(f'{count:,.0f}')}, of at most {most:,.0f}"


@lru_cache(maxsize=32)
def _special_of(path: Path, size: int, _changed: int, largest: int, model: str) -> frozenset[str]:
    """Return the special tokens of a file that is within its bounds; one that did not change is read once."""
    for cause in _over(size, largest, f"{path.name} has {{}} bytes"):
        raise _refused(cause, model, path)
    if (most := _of_name(_LINES, path.name)) is not None:
        for cause in _over(path.read_bytes().count(b"\n"), most, f"{path.name} has {{}} lines"):
            raise _refused(cause, model, path)
    if path.suffix != ".json":
        return frozenset()
    try:
        body = load(path, largest=largest, number_below=SENTINEL)
    except (FileNotFoundError, BadFile) as error:
        said = f"{shortened(model)} has a tokenizer that cannot be read, in {path.name} ({error})"
        raise SpecError(said, place=str(path), fix=_FIX) from None
    special = frozenset(text for text in _special(path.name, body) if isinstance(text, str))
    if (cause := next(_wrong(path.name, body, special), "")) != "":
        raise _refused(cause, model, path)
    return special


def _special(name: str, body: dict[str, Any]) -> Iterator[Any]:
    """Yield the tokens of a file that are looked for in every text."""
    if name in ("tokenizer.json", "tekken.json"):
        key, text = ("added_tokens", "content") if name == "tokenizer.json" else ("special_tokens", "token_str")
        listed = body.get(key)
        entries = listed if isinstance(listed, list) else []
        yield from (entry.get(text) for entry in entries if isinstance(entry, dict))
    elif name == "added_tokens.json":
        yield from body
    elif name in _CONFIGS:
        for key, value in body.items():
            if key == "added_tokens_decoder" or key.endswith(("_token", "_tokens")):
                for one in _listed(value):
                    yield one.get("content") if isinstance(one, dict) else one


def _listed(value: Any) -> list[Any]:
    """Return tokens that are listed, or called by their numbers or names, or one."""
    if isinstance(value, dict) and "content" not in value:
        return list(value.values())
    return value if isinstance(value, list) else [value]


def _wrong(name: str, body: dict[str, Any], special: frozenset[str]) -> Iterator[str]:
    """Yield what is beyond its bound in a file."""
    longest = max(special, key=len, default="")
    shown = shortened(longest, 20).replace("{", "(").replace("}", ")")
    yield from _over(
        len(longest.encode("utf-8", "replace")), LONGEST_SPECIAL, f"its special token {shown} has {{}} bytes"
    )
    if name == "tokenizer.json":
        model = body.get("model")
        if isinstance(model, dict):
            yield from _vocabulary(model.get("vocab"))
            merges = model.get("merges")
            yield from _over(len(merges) if isinstance(merges, list) else 0, MOST_WAYS, "it joins tokens in {} ways")
        for part in _PARTS:
            yield from _steps(part, body.get(part))
        for entry in _objects(body.get("padding")):
            for key in ("Fixed", "pad_to_multiple_of"):
                yield from _over(_whole(entry.get(key)), _LONGEST_PADDING, "it fills texts up to {} tokens")
    elif name in _CONFIGS:
        by_id = body.get("added_tokens_decoder")
        keys = [key for key in (by_id if isinstance(by_id, dict) else ()) if key.isascii() and key.isdigit()]
        yield from _over(
            max((float(key[:300]) for key in keys), default=0), MOST_TOKENS - 1, "a token has the number {}"
        )
    else:
        yield from _vocabulary(body.get("vocab") if name == "tekken.json" else body)


def _vocabulary(vocabulary: Any) -> Iterator[str]:
    """Yield what is beyond its bound of tokens: {text: number}, or a list of texts, of [text, score], of objects."""
    if not isinstance(vocabulary, dict | list):
        return
    yield from _over(len(vocabulary), MOST_TOKENS, "it has {} tokens")
    yield from _over(sum(len(_text(entry)) for entry in vocabulary), MOST_LETTERS, "its tokens have {} letters")
    if isinstance(vocabulary, dict):
        yield from _numbers(map(_whole, vocabulary.values()))


def _numbers(values: Iterable[float]) -> Iterator[str]:
    yield from _over(max(values, default=0), MOST_TOKENS - 1, "one of its tokens has the number {}")


def _text(entry: Any) -> str:
    first: Iterable[Any] = entry.values() if isinstance(entry, dict) else entry if isinstance(entry, list) else [entry]
    return next((one for one in first if isinstance(one, str)), "")


def _whole(value: Any) -> int:
    return value if isinstance(value, int) else 0


def _steps(part: str, step: Any) -> Iterator[str]:
    """Yield what is beyond its bound of what is done with texts."""
    objects = list(_objects(step))
    yield from _over(len(objects), _MOST_STEPS, f"its {part} has {{}} parts")
    for entry in objects:
        for key, value in entry.items():
            if isinstance(value, str):
                most = _LONGEST_MAP if key == "precompiled_charsmap" else _LONGEST_STEP
                yield from _over(len(value), most, f"its {part} has a text of {{}} letters")
            elif isinstance(value, list):
                yield from _over(len(value), _MOST_STEPS, f"its {part} has a list of {{}}")
    yield from _over(math.prod(map(_growth, objects)), _MOST_GROWTH, f"its {part} makes {{}} letters of one")


def _growth(entry: Mapping[str, Any]) -> float:
    """Return how many letters a step may make of one."""
    content, pattern = entry.get("content"), entry.get("pattern")
    if not isinstance(content, str) or not isinstance(pattern, dict):
        return 1.0
    letters = pattern.get("String")
    if isinstance(letters, str) and letters:
        return max(1.0, len(content) / len(letters))
    expression = pattern.get("Regex")
    always = isinstance(expression, str) and not _NOTHING.search(expression)  # else it also stands between all letters
    return max(1.0, len(content) + (0.0 if always else 1.0))


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    """Yield the objects within a value, one inside the other."""
    if isinstance(value, dict):
        yield value
    for one in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _objects(one)


def refuse_slow_tokenizer(tokenizer: Any, model: str) -> None:
    """Refuse a tokenizer that takes too long for texts, which grow until it does.

    Args:
        tokenizer: as transformers has loaded it.
        model: what people call it.

    Raises:
        SpecError: it does, or gives up on one: a regular expression tries too many ways to cut it.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    for text, size in ((text, size) for text in _TRIALS for size in _SIZES) if backend is not None else ():
        try:
            with panics_as_errors():
                spent = _seconds(backend, text[:size])
                spent = spent if spent < _PATIENCE else min(spent, _seconds(backend, text[:size]))
        except GaveUp as error:
            said, spent = f"gives up on {shortened(repr(text[:size]), 30)} ({shortened(error, 80)})", math.inf
        except Exception:  # noqa: BLE001 - no token of its own for a letter, say: a row that holds one is told so
            continue
        else:
            said = f"takes {spent:.1f} s for a text of {size:,} letters, {shortened(repr(text[:size]), 30)}"
        if spent > _PATIENCE:
            raise SpecError(f"{shortened(model)} has a tokenizer that {said}", fix=_FIX)


def _seconds(backend: Any, text: str) -> float:
    """Return what a text costs, there and back; seconds of this thread's processor."""
    start = time.thread_time()
    backend.decode(backend.encode(text, add_special_tokens=False).ids)
    return time.thread_time() - start
