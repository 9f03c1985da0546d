"""Tokens that are trained by name, and that the rows do not teach: they stand nowhere, or where nothing reads them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nbtune.methods import METHODS

if TYPE_CHECKING:
    from nbtune.spec import RunSpec

Marked = tuple[np.ndarray, np.ndarray]
_SHOWN = 3


class TrainedTokens:
    """What a spec trains of single tokens, and which of these rows have taught so far.

    Args:
        spec: one whose new tokens have their numbers (`nbtune.models.new_tokens.with_new_tokens`).
        tokenizer: the run's.
        one_weight: the head is the embedding.
    """

    def __init__(self, spec: RunSpec, tokenizer: Any, *, one_weight: bool) -> None:
        adapter = spec.adapter
        new = [] if tokenizer is None else [*adapter.new_tokens, *adapter.new_special_tokens]
        fresh = tokenizer.convert_tokens_to_ids(new) if new else []
        self.numbers = np.array(sorted({*adapter.trainable_token_indices, *fresh}), np.int64)
        self._name = None if tokenizer is None else tokenizer.convert_ids_to_tokens
        method = METHODS[spec.method]
        self._to_the_end = bool(method.head) or method.online  # the last token of a row is read, too
        self._says = one_weight or adapter.grows  # the row of the head is trained with it
        self._there, self._taught = set[int](), set[int]()

    def see(self, rows: Iterable[Marked]) -> None:
        """See rows: ids int32 [n] and what of them is learnt, bool [n]."""
        for ids, learnt in rows if len(self.numbers) else ():
            if len(self._taught) == len(self.numbers):
                return
            places = np.flatnonzero(np.isin(ids, self.numbers))
            if not len(places):
                continue
            ends = np.flatnonzero(learnt)
            last = len(ids) if self._to_the_end else int(ends[-1]) if len(ends) else 0
            read = (places < last) | (learnt[places] & self._says)  # a token is read for those behind it
            self._there.update(ids[places].tolist())
            self._taught.update(ids[places[read]].tolist())

    def warnings(self) -> list[str]:
        """Return what is to be said, where these were all rows."""
        absent = [number for number in self.numbers.tolist() if number not in self._there]
        unread = [number for number in self.numbers.tolist() if number in self._there - self._taught]
        them = "it" if len(absent) == 1 else "them"
        what = f"nothing is learnt of {them}"
        if self._says and not self._to_the_end:
            what = f"all that is learnt of {them} is not to say {them}"
        said = [f"{self._named(absent)} in no row: {what}"] if absent else []
        whose = "its embedding is" if len(unread) == 1 else "their embeddings are"
        why = f"only where no token behind is learnt: {whose} not"
        return [*said, f"{self._named(unread)} {why}"] if unread else said

    def _named(self, numbers: Sequence[int]) -> str:
        shown = numbers[:_SHOWN]
        words = [str(word) for word in self._name(shown)] if self._name is not None else [str(one) for one in shown]
        more = f" and {len(numbers) - len(shown)} more" if len(numbers) > len(shown) else ""
        one, all_of_them = len(numbers) == 1, len(self.numbers)
        who = "the trained token" if one and all_of_them == 1 else f"{len(numbers)} of {all_of_them} trained tokens"
        return f"{who} ({', '.join(f'`{word}`' for word in words)}{more}) {'stands' if one else 'stand'}"
