"""Control tokens: which they are, and encoding text so that only the template's own become tokens.

A tokenizer turns the *text* ``<|im_end|>`` into the token wherever it stands, in a user's message too. Here text of
the data stays text: where data looks like a control token, the row is encoded by a copy of the tokenizer in which
control tokens are written in private characters, and only the template's own are written so.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from typing import Any

from nbtune.data.template.token_finder import finder_of
from nbtune.data.template.tracked_str import MARK, Span
from nbtune.errors import DataError

_PLANE, _FILL, _STRIDE = 0xF0000, "\U00100000", 0x4000


class Controls:
    """The control tokens of a tokenizer: its special tokens, and added tokens that the template writes around turns.

    Args:
        tokenizer: a fast transformers tokenizer.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder
        self.added = {token.content: id_ for id_, token in added.items() if token.content}
        self._special = {token.content for token in added.values() if token.special}.union(tokenizer.all_special_tokens)
        self.added_pattern = finder_of(tuple(self.added))
        self._choose(())

    def beside(self, extra: Sequence[str]) -> Controls:
        """Return the same where the added tokens of these texts count, too: without asking the tokenizer again."""
        more = copy.copy(self)
        more._choose(extra)
        return more

    def _choose(self, extra: Sequence[str]) -> None:
        wanted = self._special.union(extra)
        self.ids = {text: id_ for text, id_ in self.added.items() if text in wanted}
        self.pattern = finder_of(tuple(self.ids))
        self._copies: dict[int, Any] = {}

    def all_in(self, text: str) -> set[int]:
        """Return the ids of the added tokens that occur in a text."""
        return set() if self.added_pattern is None else {self.added[t] for t in self.added_pattern.findall(text)}

    def last_in(self, text: str) -> int | None:
        """Return the id of the last added token of a text; None: it has none."""
        matches = [] if self.added_pattern is None else self.added_pattern.findall(text)
        return self.added[matches[-1]] if matches else None

    def forged(self, text: str, spans: Sequence[Span]) -> bool:
        """Return whether a plain encoding of `text` would turn characters of the data into control tokens."""
        if self.pattern is None:
            return False
        data = [(s, e) for s, e, tag in spans if tag != MARK]
        matches = self.pattern.finditer(text)
        return any(s < m.end() and m.start() < e for m in matches for s, e in data)

    def encode(self, text: str, spans: Sequence[Span]) -> tuple[list[int], list[tuple[int, int]]]:
        """Return ids and character offsets of a text in which control tokens inside the spans of data stay text.

        Raises:
            DataError: the text uses every private character that could stand for a control token.
        """
        for base in range(_PLANE, _PLANE + 3 * _STRIDE + 1, _STRIDE):
            if not any(base <= ord(c) < base + len(self.ids) for c in text):
                break
        else:
            raise DataError("the text holds private-use characters of every plane", fix="remove them")
        backend, back, names = self._copy(base)
        pieces: list[Any] = []
        at = 0
        assert self.pattern is not None
        for start, end in _gaps(spans, len(text)):
            for match in self.pattern.finditer(text, start, end):
                pieces += (text[at : match.start()], names[match.group()])
                at = match.end()
        pieces.append(text[at:])
        encoded = backend.encode("".join(pieces), add_special_tokens=False)
        return [back.get(i, i) for i in encoded.ids], encoded.offsets

    def _copy(self, base: int) -> tuple[Any, dict[int, int], dict[str, str]]:
        if base not in self._copies:
            self._copies[base] = _armoured(self.tokenizer, self.ids, base)
        return self._copies[base]


def _gaps(spans: Sequence[Span], length: int) -> list[tuple[int, int]]:
    """Return the stretches of 0..length outside the spans of data."""
    gaps, at = [], 0
    for start, end, tag in sorted(spans):
        if tag == MARK:
            continue
        if start > at:
            gaps.append((at, start))
        at = max(at, end)
    return [*gaps, (at, length)] if at < length else gaps


def _armoured(tokenizer: Any, tokens: dict[str, int], base: int) -> tuple[Any, dict[int, int], dict[str, str]]:
    """Return a copy of the backend whose control tokens are written in private characters, as many as before (so that
    offsets stay); with {its id: true id} where they differ, and {token: private text}."""
    import tokenizers

    names = {token: chr(base + k) + _FILL * (len(token) - 1) for k, token in enumerate(tokens)}
    body = json.loads(tokenizer.backend_tokenizer.to_str())
    body["post_processor"] = body["truncation"] = body["padding"] = None
    for entry in body["added_tokens"]:
        entry["content"] = names.get(entry["content"], entry["content"])
    model = body["model"]
    vocabulary = model.get("vocab")
    if isinstance(vocabulary, dict):
        model["vocab"] = {names.get(token, token): id_ for token, id_ in vocabulary.items()}
    elif isinstance(vocabulary, list):  # Unigram: [token, score]
        model["vocab"] = [[names.get(token, token), score] for token, score in vocabulary]
    if isinstance(model.get("unk_token"), str):
        model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
    if isinstance(model.get("merges"), list):
        dead = set(tokens)
        model["merges"] = [m for m in model["merges"] if _merged(m) not in dead and not dead.intersection(_parts(m))]
    copy = tokenizers.Tokenizer.from_str(json.dumps(body))
    back: dict[Any, int] = {copy.token_to_id(names[token]): id_ for token, id_ in tokens.items()}
    return copy, {new: old for new, old in back.items() if new != old}, names


def _parts(merge: Any) -> tuple[str, str]:
    left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
    return left, right


def _merged(merge: Any) -> str:
    return "".join(_parts(merge))
