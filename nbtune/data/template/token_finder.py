"""Where tokens stand in a text, written out: from left to right, at each place the longest.

Of few tokens that is a regular expression, of as many alternatives. Of many (a model that speaks has tens of thousands,
and a stranger's as many as it likes) it would be compiled for seconds, and tried one after the other at each character:
these are looked for all at once, by the automaton with which `tokenizers` itself finds them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

_FEW = 1024  # tokens of a regular expression: below, it is as quick even where each begins otherwise
_HALF = re.compile("[\ud800-\udfff]")  # of a character: tokenizers reads none, and no token has any
_NO_TOKEN = "\U0010fffe"  # stands for nothing, in every version of Unicode


@dataclass(frozen=True, slots=True)
class TokenMatch:
    """A token's place; what is asked of it is asked as of a match of `re`."""

    text: str
    first: int
    behind: int

    def start(self) -> int:
        """Return where it begins."""
        return self.first

    def end(self) -> int:
        """Return where it has ended."""
        return self.behind

    def group(self) -> str:
        """Return the token."""
        return self.text[self.first : self.behind]


class TokenFinder:
    """Many tokens; what is asked of it is asked as of a pattern of `re`."""

    def __init__(self, tokens: Sequence[str]) -> None:
        from tokenizers import AddedToken, Tokenizer, models

        self._tokens = Tokenizer(models.BPE())  # which knows no words: all else of a text becomes nothing
        self._tokens.add_special_tokens([AddedToken(token, normalized=False) for token in tokens])

    def finditer(self, text: str, start: int = 0, end: int | None = None) -> Iterator[TokenMatch]:
        """Yield each place between two characters of a text."""
        part = text[start:end]
        if not part.isascii():
            part = _HALF.sub(_NO_TOKEN, part)
        for first, behind in self._tokens.encode(part, add_special_tokens=False).offsets:
            yield TokenMatch(text, start + first, start + behind)

    def search(self, text: str, start: int = 0, end: int | None = None) -> TokenMatch | None:
        """Return the first place."""
        return next(self.finditer(text, start, end), None)

    def findall(self, text: str) -> list[str]:
        """Return the tokens of a text."""
        return [match.group() for match in self.finditer(text)]

    def split(self, text: str) -> list[str]:
        """Return what stands between tokens, with the tokens: text, token, …, text."""
        places = [at for match in self.finditer(text) for at in (match.start(), match.end())]
        return [text[start:end] for start, end in pairwise([0, *places, len(text)])]


@lru_cache(maxsize=8)
def finder_of(tokens: tuple[str, ...], *, capture: bool = False) -> re.Pattern[str] | TokenFinder | None:
    """Return what finds these tokens; None where there are none.

    Args:
        tokens: their texts.
        capture: `split` is asked, and returns the tokens, too.
    """
    if not tokens:
        return None
    if len(tokens) > _FEW:
        return TokenFinder(tokens)
    either = "|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True))
    return re.compile(f"({either})" if capture else either)
