"""What columns that fit no format may be: said only where their names leave no doubt, else asked.

A proposal that is taken is trained by. So one is made only where exactly one column of text has the name of a
question and exactly one that of an answer, in one of a few languages.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from nbtune.data.formats.reader import ANSWERS, PROMPTS, columns_of
from nbtune.errors import SpecError
from nbtune.spec import parse_value


def _words(*lines: str) -> frozenset[str]:
    return frozenset(word for line in lines for word in line.split())


# English, German, French, Spanish, Italian, Portuguese, Dutch, Polish, Turkish, Russian, Chinese, Japanese, Korean
_ASKED = frozenset(PROMPTS) | _words(
    "prompts questions queries q ask asked request instructions frage fragen anweisung aufgabe consigne demande",
    "pregunta instrucción instruccion domanda istruzione pergunta instrução vraag opdracht pytanie polecenie soru",
    "вопрос инструкция запрос 问题 提问 指令 質問 問題 指示 질문 지시",
)
_SAID = frozenset(ANSWERS) | _words(
    "answers responses completions outputs solutions a reply replies antwort antworten lösung loesung réponse reponse",
    "respuesta solución solucion risposta soluzione resposta solução antwoord oplossing odpowiedź odpowiedz cevap",
    "yanıt ответ решение 回答 答案 解答 応答 답변 대답",
)
_AROUND = _words(
    "context passage background kontext hintergrund contexte contexto contesto kontekst bağlam контекст",
    "上下文 背景 文脈 문맥 맥락",
)
_COMPOUND = _words("frage fragen antwort antworten")  # German writes such names in one word
_PARTS = re.compile(r"[\s_.-]+")
_ASIDE = re.compile(r"\s*[(\[][^()\[\]]*[)\]]\s*$")  # "Answer (agent)"
_ASK, _TEXTS = "`columns: {prompt: …, completion: …}`", "`columns: {text: …}`"


def what_to_say(source: str, columns: Sequence[str], sample: Sequence[Mapping[str, Any]], kind: str = "sft") -> str:
    """Return how to say what the columns of a source are.

    Args:
        source: its name, as in the spec.
        columns: their names.
        sample: some rows.
        kind: of which kind the rows should be (`nbtune.methods.ROW_KINDS`).
    """
    if _is_a_row(columns):
        names = columns_of(kind) or "prompt, completion"
        return f"the first line reads like a row: put one with names above it, such as `{names}`"
    if kind != "sft" and (wanted := columns_of(kind)):
        roles = ", ".join(f"{role.strip()}: …" for role in wanted.split(","))
        return f"say which of them are which: `columns: {{{roles}}}`"
    texts = [column for column in columns if _is_text(column, sample)]
    if proposed := proposal(columns, sample, kind):
        roles = ", ".join(f"{role}: {_written(name)}" for role, name in proposed.items())
        return f"say what they are: `data: {{source: {_written(source)}, columns: {{{roles}}}}}`"
    if nested := [c for c in columns if c not in texts and c.strip().lower() in _SAID | _ASKED]:
        shown = ", ".join(f"`{c}`" for c in nested[:3])
        return f"make text of what is in {shown} (a `function` can), and say which columns are what: {_ASK}"
    if len(columns) > 1:
        return f"say which of them holds the questions and which the answers: {_ASK}; or the texts: {_TEXTS}"
    return f"say what it is: {_TEXTS}, or give questions with their answers, as rows with two columns"


def _is_a_row(columns: Sequence[str]) -> bool:
    """Return whether what stands for names of columns reads like a row: the line with the names is missing."""
    return any(name.rstrip().endswith(("?", "!", ".")) or len(name.split()) > 6 for name in columns)


def proposal(columns: Sequence[str], sample: Sequence[Mapping[str, Any]], kind: str = "sft") -> dict[str, str]:
    """Return role → column where the columns' names leave no doubt, else nothing; arguments as of `what_to_say`."""
    texts = [column for column in columns if kind == "sft" and _is_text(column, sample)]
    prompts, answers, around = ([c for c in texts if _names(c, words)] for words in (_ASKED, _SAID, _AROUND))
    if len(prompts) != 1 or len(answers) != 1 or len(around) > 1:
        return {}
    return dict(zip(("prompt", "completion", "context"), [*prompts, *answers, *around], strict=False))


def _names(column: str, words: frozenset[str]) -> bool:
    """Say whether a column is called by a word, or by one behind another (`user_question`, `Kundenfrage`), whatever
    stands in brackets behind it."""
    name = _ASIDE.sub("", column).strip().lower()
    last = _PARTS.split(name)[-1]
    return name in words or (len(last) > 2 and last in words) or any(name.endswith(w) for w in _COMPOUND & words)


def _is_text(column: str, sample: Sequence[Mapping[str, Any]]) -> bool:
    values = [row.get(column) for row in sample if row.get(column) is not None]
    return bool(values) and all(isinstance(value, str) for value in values)


def _written(name: str) -> str:
    """Return a name as it is written within a list of YAML."""
    with suppress(SpecError):
        if parse_value(f"[{name}]") == [name]:
            return name
    return json.dumps(name, ensure_ascii=False)
