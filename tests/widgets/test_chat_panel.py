"""The chat's kernel half: each side has its own conversation, a blind vote tells nobody who is who before it."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from nbtune.errors import NbtuneError, TrainError
from nbtune.widgets import chat


class Talker:
    """A run that answers with what it was asked."""

    name = "demo"

    def __init__(self):
        self.asked = []

    def generate(self, messages, *, base=False, **options):
        self.asked.append((base, messages, options))
        if messages[-1]["content"] == "fail":
            raise TrainError("there is no adapter yet", fix="wait for the first checkpoint")
        return f"{'base' if base else 'tuned'} {len(messages)}"


@pytest.fixture
def panel():
    made = chat(Talker(), system="Be brief.")
    yield made
    made.close()


def ask(panel, prompt):
    done = threading.Event()
    panel.observe(lambda change: change["new"] or done.set(), "busy")
    panel.do_ask(prompt)
    assert done.wait(5)
    return panel.turns[-1]


def test_both_answer_and_remember_their_own_answers(panel):
    assert ask(panel, "hi")["answers"] == ["base 2", "tuned 2"]
    assert ask(panel, "and?")["answers"] == ["base 4", "tuned 4"]
    talker = panel._answerers[0].__closure__[1].cell_contents
    base, messages, options = talker.asked[-2]
    assert base
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user"]
    assert messages[2]["content"] == "base 2"
    assert options == {"max_new_tokens": 128, "temperature": 0.0}


def test_a_blind_vote_hides_who_is_who_and_becomes_a_preference(panel):
    panel.do_blind(True)
    turn = ask(panel, "hi")
    assert turn["order"] is None
    panel.do_vote(0, 0)
    turn = panel.turns[0]
    better, worse = turn["answers"]
    assert panel.preferences == [{"prompt": "hi", "chosen": better, "rejected": worse}]
    assert turn["answers"][turn["order"].index(1)].startswith("tuned")
    with pytest.raises(NbtuneError):
        panel.do_vote(0, 1)
    assert panel.do_save("../votes") == "votes.jsonl"
    assert json.loads(Path("votes.jsonl").read_text())["chosen"] == better
    assert panel.votes == 0


def test_neither_is_a_vote_without_a_row(panel):
    panel.do_blind(True)
    ask(panel, "hi")
    panel.do_vote(0, 2)
    assert panel.preferences == []


def test_an_error_is_shown_in_its_place(panel):
    turn = ask(panel, "fail")
    assert turn["answers"] == [None, None]
    assert all("no adapter yet" in error for error in turn["errors"])


def test_nothing_is_asked_twice_at_once_nor_an_empty_question(panel):
    with pytest.raises(NbtuneError):
        panel.do_ask("  ")
    panel.busy = True
    with pytest.raises(NbtuneError):
        panel.do_ask("hi")
