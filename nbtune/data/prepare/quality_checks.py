"""What is odd in prepared data: near duplicates, leaks, outliers, rows that were rendered before.

Found on the tokens, so that it costs little: up to `LIMIT` examples are looked at, evenly spread.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from nbtune.data.prepare.dataset import Dataset

LIMIT = 20_000
_SHINGLE, _HASHES, _BANDS = 5, 16, 8
_RENDERED = re.compile(
    r"<\|(?:im_start|im_end|eot_id|start_header_id|user|assistant|system|endoftext)\|>|\[/?INST\]|<<SYS>>|"
    r"<(?:start|end)_of_turn>|^### (?:Instruction|Response|Human|Assistant):",
    re.MULTILINE,
)


class Oddities:
    """Counts what is odd about rows while they go by."""

    def __init__(self) -> None:
        self.rows = self.rendered = self.repeated_role = self.answer_first = 0
        self.answered_twice = self.doubted = self.unasked = 0
        self.example = ""
        self.thoughts = self.words = self.parts = self.tools = 0
        self.keys: dict[str, int] = {}
        self.roles: dict[str, int] = {}

    def see_text(self, texts: Iterable[str]) -> None:
        """See the texts of a row, without the template's own."""
        self.rows += 1
        for text in texts:
            match = _RENDERED.search(text) if "<" in text or "[" in text or "#" in text else None
            if match:
                self.rendered += 1
                self.example = self.example or match.group()
                return

    def see_roles(self, roles: Sequence[str]) -> None:
        """See the roles of a conversation, in order."""
        for role in roles:
            self.roles[role] = self.roles.get(role, 0) + 1
        spoken = [role for role in roles if role in ("user", "assistant")]
        self.repeated_role += any(a == b == "user" for a, b in pairwise(spoken))
        self.answered_twice += any(a == b == "assistant" for a, b in pairwise(roles))  # a tool may stand between
        self.answer_first += spoken[:1] == ["assistant"]

    def see_questions(self, said: Iterable[bool]) -> None:
        """See whether each question of a row has words."""
        self.unasked += not all(said)

    def see_judgement(self, doubted: bool) -> None:
        """See whether a row's own scores say the opposite of what was judged of it."""
        self.doubted += doubted

    def see_left_out(self, parts: Iterable[str]) -> None:
        """See what a chat template leaves out of rows: `thoughts`, `words`, `parts`, `tools`, `key …`, each once a
        row."""
        for part in parts:
            what, _, key = part.partition(" ")
            if key:
                self.keys[key] = self.keys.get(key, 0) + 1
            else:
                setattr(self, what, getattr(self, what) + 1)

    def add(self, other: Mapping[str, Any]) -> None:
        """Add what another one counted (its `vars`)."""
        for name, value in other.items():
            mine = getattr(self, name)
            if isinstance(value, Mapping):
                setattr(self, name, {key: mine.get(key, 0) + value.get(key, 0) for key in {**mine, **value}})
            else:
                setattr(self, name, mine or value if name == "example" else mine + value)

    def warnings(self, train_on: str | Sequence[str] = "answers") -> list[str]:
        """Return sentences for people; `train_on` as in a spec."""
        unheard = [] if isinstance(train_on, str) else [role for role in train_on if role not in self.roles]
        sentences = []
        if unheard and self.roles:
            sentences.append(
                f"`train_on` names {', '.join(f'`{role}`' for role in unheard)}, and no message has that role: they "
                f"are {', '.join(f'`{role}`' for role in list(self.roles)[:6])}"
            )
        if self.rendered:
            sentences.append(
                f"{self.rendered} rows hold the text of a chat template ({self.example}): if they were rendered "
                "before, the template is now in them twice; give the plain messages, or `format: segments`"
            )
        if self.repeated_role:
            sentences.append(f"{self.repeated_role} conversations have two questions without an answer between them")
        if self.answered_twice:
            sentences.append(
                f"{self.answered_twice} conversations have two answers without a question between them: each is learnt "
                "as a turn of its own, the second as what follows the first"
            )
        if self.doubted:
            sentences.append(
                f"of {self.doubted} of {self.rows} pairs the rejected answer has the higher score: they are learnt as "
                "they stand; mend or leave out those rows, or exchange the columns if that is how they are meant"
            )
        if self.unasked:
            rows, its, answer = (
                ("1 row has", "its", "answer is")
                if self.unasked == 1
                else (f"{self.unasked} rows have", "their", "answers are")
            )
            sentences.append(f"{rows} an empty question: {its} {answer} learnt all the same; leave such rows out")
        if self.answer_first:
            sentences.append(f"{self.answer_first} conversations begin with an answer")
        return [*sentences, *self._of_left_out()]

    def _of_left_out(self) -> list[str]:
        sentences = []
        if self.thoughts:
            sentences.append(
                f"{_rows(self.thoughts)} with thoughts that the chat template leaves out (some do so in earlier turns "
                "only): they are not learnt; `chat_template` may be one that keeps them"
            )
        if self.words:
            sentences.append(
                f"{_rows(self.words)} with text beside tool calls or thoughts that the chat template leaves out"
            )
        if self.parts:
            sentences.append(
                f"{_rows(self.parts)} with a message of which the chat template leaves out a part: it is not learnt"
            )
        if self.keys:
            listed = ", ".join(f"`{key}`" for key in self.keys)
            sentences.append(
                f"{_rows(max(self.keys.values()))} with {listed} in a message: nothing reads that, it changes nothing"
            )
        if self.tools:
            sentences.append(
                f"{_rows(self.tools)} with tools that the chat template does not show: their answers are learnt without"
            )
        return sentences


def _rows(count: int) -> str:
    return f"there is {count} row" if count == 1 else f"there are {count} rows"


def _are(some: set[tuple[int, int]]) -> str:
    return "is" if len(some) == 1 else "are"


def diagnose(train: Dataset, held: Dataset | None, repeats: int = 0) -> list[str]:
    """Return sentences about near duplicates, leaks between training and held-out rows, and outlying lengths.

    Args:
        repeats: rows that are said to repeat another one; where no more are nearly the same, that is no news.
    """
    sentences = []
    pairs = near_duplicates([train] if held is None else [train, held])
    looked = min(len(train), LIMIT)
    inside = {right for left, right in pairs if left[0] == right[0] == 0}
    if len(inside) > max(looked * 0.05, repeats):
        sentences.append(f"{len(inside)} of {looked} examples {_are(inside)} nearly the same as another one")
    leaked = {pair[k] for pair in pairs for k in (0, 1) if pair[0][0] != pair[1][0] and pair[k][0] == 1}
    if leaked and held is not None:
        sentences.append(
            f"{len(leaked)} of {len(held)} held-out rows {_are(leaked)} nearly the same as a training row: "
            "the held-out loss looks better than it is"
        )
    lengths = train.lengths
    middle = float(np.median(lengths))
    long = int((lengths > 20 * middle).sum())
    if long:
        which = "1 example is" if long == 1 else f"{long} examples are"
        sentences.append(f"{which} more than 20 times as long as the middle one ({middle:.0f} tokens)")
    return sentences


def one_sided(train: Dataset, kind: str) -> list[str]:
    """Return a sentence where all that is judged is judged alike, so that there is nothing to tell apart."""
    if kind not in ("feedback", "stepwise"):
        return []
    values = train.value_of if kind == "feedback" else train.token_values
    judged = np.zeros(0) if values is None else values[~np.isnan(values)]
    if not len(judged) or judged.min() != judged.max():
        return []
    what, words = ("answers", ("bad", "good")) if kind == "feedback" else ("steps", ("wrong", "right"))
    alike, other = words[int(judged[0])], words[1 - int(judged[0])]
    return [f"all {what} are judged {alike}: without {other} ones beside them there is nothing to tell apart"]


def near_duplicates(datasets: Sequence[Dataset]) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Return pairs ((dataset, example), (dataset, example)) whose runs of 5 tokens are mostly the same (Jaccard ≥ 0.8,
    by MinHash, so with some slack); of each group of such examples every one is paired with the first."""
    places: list[tuple[int, int]] = []
    signatures = []
    for number, dataset in enumerate(datasets):
        chosen = np.linspace(0, len(dataset) - 1, min(len(dataset), LIMIT)).astype(np.int64)
        chosen = np.unique(chosen)
        sampled = dataset if len(chosen) == len(dataset) else dataset.take(chosen)
        places += [(number, int(i)) for i in chosen]
        signatures.append(_signatures(sampled))
    table = np.concatenate(signatures)
    width = _HASHES // _BANDS
    pairs: dict[int, int] = {}
    for band in range(_BANDS):
        first: dict[bytes, int] = {}
        for index, key in enumerate(np.ascontiguousarray(table[:, band * width : (band + 1) * width])):
            other = first.setdefault(key.tobytes(), index)
            if other != index and index not in pairs and (table[index] == table[other]).mean() >= 0.8:
                pairs[index] = other
    return [(places[other], places[index]) for index, other in pairs.items()]


def _signatures(dataset: Dataset) -> np.ndarray:
    """Return MinHashes of the examples' shingles, uint64 [examples, hashes]."""
    ids = dataset.ids.astype(np.uint64)
    shingles = np.zeros(len(ids), np.uint64)
    for k in range(min(_SHINGLE, len(ids))):  # of the last examples some reach into the next one: a little noise
        multiplier = (0x9E3779B97F4A7C15 + 2 * k * 0x632BE59BD9B4E019) % 2**64
        shingles[: len(ids) - k] += ids[k:] * np.uint64(multiplier)
    starts = dataset.starts[:-1]
    signatures = np.empty((len(dataset), _HASHES), np.uint64)
    rng = np.random.default_rng(0)
    for k in range(_HASHES):
        mixed = shingles * np.uint64(int(rng.integers(1, 2**63)) * 2 + 1)
        mixed ^= mixed >> np.uint64(29)
        mixed *= np.uint64(0xBF58476D1CE4E5B9)
        signatures[:, k] = np.minimum.reduceat(mixed, starts)
    return signatures
