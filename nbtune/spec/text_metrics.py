"""How answers are compared with those of the rows: the registry of `eval.metrics`, and what of a spec goes with it.

    perplexity, token_accuracy    what the model says of the rows' own tokens; no answer is made
    the others                    of answers to held-out rows, beside the rows' own

A name that is none of these is a function of the user's. All figures but perplexity and loss lie between 0 and 1.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from nbtune.methods import METHODS

if TYPE_CHECKING:
    from nbtune.spec.model import RunSpec

Figures = Mapping[str, float]
_ANSWERED = ("sft", "pairs")  # kinds of rows whose (better) answer is one to be compared with


@dataclass(frozen=True)
class TextMetric:
    """A metric by name.

    Args:
        words: what it is, for people.
        of: answers and references, at least one of each, become figures; None: it is a figure of the rows' tokens.
        library: the module that computes it.
    """

    words: str
    of: Callable[[Sequence[str], Sequence[str]], Figures] | None = None
    library: str = ""


def _exact(answers: Sequence[str], references: Sequence[str]) -> Figures:
    same = [a.strip() == b.strip() for a, b in zip(answers, references, strict=True)]
    return {"exact_match": sum(same) / len(same)}


def _json(answers: Sequence[str], references: Sequence[str]) -> Figures:
    return {"json_valid": sum(map(_is_json, answers)) / len(answers)}


def _is_json(text: str) -> bool:
    """Return whether a text is JSON as RFC 8259 has it: NaN and Infinity are none."""

    def refuse(word: str) -> NoReturn:
        raise ValueError(word)

    try:
        json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError):
        return False
    return True


class _Words:
    """rouge_score's own words, of any alphabet: its own tokenizer knows a to z only, and sees nothing of Cyrillic."""

    def tokenize(self, text: str) -> list[str]:
        return re.findall(r"[^\W_]+", text.lower())


def _rouge(answers: Sequence[str], references: Sequence[str]) -> Figures:
    from rouge_score.rouge_scorer import RougeScorer

    kinds = ("rouge1", "rouge2", "rougeL")
    scorer = RougeScorer(list(kinds), tokenizer=_Words())
    scored = [scorer.score(reference, answer) for answer, reference in zip(answers, references, strict=True)]
    return {kind: sum(one[kind].fmeasure for one in scored) / len(scored) for kind in kinds}


def _bleu(answers: Sequence[str], references: Sequence[str]) -> Figures:
    import sacrebleu

    return {"bleu": sacrebleu.corpus_bleu(list(answers), [list(references)]).score / 100}


def _chrf(answers: Sequence[str], references: Sequence[str]) -> Figures:
    import sacrebleu

    return {"chrf": sacrebleu.corpus_chrf(list(answers), [list(references)]).score / 100}


TEXT_METRICS: dict[str, TextMetric] = {
    "perplexity": TextMetric("of the rows' own tokens, with the loss and the method's own figures"),
    "token_accuracy": TextMetric("share of the rows' trained tokens that are the likeliest"),
    "exact_match": TextMetric("share of answers that are the row's, blanks around them apart", _exact),
    "json_valid": TextMetric("share of answers that are JSON", _json),
    "rouge": TextMetric("words and word pairs in common (ROUGE-1, -2, -L)", _rouge, "rouge_score"),
    "bleu": TextMetric("words in common, of all answers together", _bleu, "sacrebleu"),
    "chrf": TextMetric("letters in common, of all answers together", _chrf, "sacrebleu"),
}


def functions_of(names: Sequence[str]) -> list[str]:
    """Return the names that are functions of the user's.

    >>> functions_of(["rouge", "is_polite"])
    ['is_polite']
    """
    return [name for name in names if name not in TEXT_METRICS]


def missing_library(names: Sequence[str]) -> tuple[str, str] | None:
    """Return the first metric whose library is not installed, and that library's module."""
    for name in names:
        metric = TEXT_METRICS.get(name)
        if metric and metric.library and importlib.util.find_spec(metric.library) is None:
            return name, metric.library
    return None


def must_fit(spec: RunSpec) -> None:
    """Refuse metrics and prompts to keep where nothing can answer them.

    Raises:
        ValueError: the sentence, as pydantic's validators raise it.
    """
    method, asked = METHODS[spec.method], spec.eval
    if not (asked.metrics or asked.must_keep):
        return
    key = "metrics" if asked.metrics else "must_keep"
    if len({*asked.metrics}) < len(asked.metrics):
        raise ValueError("`eval.metrics` names one twice: drop it there")
    if method.head:
        raise ValueError(f"method `{method.name}` writes no answers, and has metrics of its own: drop `eval.{key}`")
    if method.online:
        raise ValueError(f"method `{method.name}` does not know `eval.{key}` yet: leave it out")
    answered = [name for name in asked.metrics if name not in TEXT_METRICS or TEXT_METRICS[name].of]
    if answered and method.rows not in _ANSWERED:
        raise ValueError(f"rows of method `{method.name}` have no answer to compare with: drop `{answered[0]}`")
    if not method.by_tokens and (odd := {"perplexity", "token_accuracy"} & {*asked.metrics}):
        raise ValueError(f"method `{method.name}` has a loss of whole answers: drop `{min(odd)}` in `eval.metrics`")


def shown(value: float) -> str:
    """Return a figure for people: three digits.

    >>> shown(2 / 3), shown(12.345), shown(0.0)
    ('0.667', '12.3', '0')
    """
    return f"{value:.3g}"
