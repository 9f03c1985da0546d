"""The chat's kernel half: each side has its own conversation, a blind vote tells nobody who is who before it."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest

from nbtune.errors import NbtuneError, TrainError
from nbtune.generate.sampling import Token
from nbtune.widgets import chat, chat_panel
from tests.support.every import every


class Talker:
    """A run that answers with what it was asked, three tokens at a time; "slow" waits for a stop after its first."""

    name, id, folder = "demo", "t4lker", Path("nowhere/demo-t4lker")
    saved_steps = ()

    def __init__(self):
        self.asked = []
        self.waiting = threading.Event()

    def generate(self, messages, *, base=False, told, should_stop, **options):
        self.asked.append((base, messages, options))
        said = messages[-1]["content"]
        if said == "fail":
            raise TrainError("there is no adapter yet", fix="wait for the first checkpoint")
        words = ["same"] if said == "same" else ["base" if base else "tuned", f" {len(messages)}"]
        for word in words:
            told(Token(7, word, 0.25, (("other", 0.125),)))
            while said == "slow" and not should_stop():
                self.waiting.set()
                time.sleep(0.01)
        told(Token(2, "<|im_end|>", 1.5, (), special=True))
        return "".join(words)


@pytest.fixture
def talker():
    return Talker()


@pytest.fixture
def panel(talker):
    made = chat(talker, system="Be brief.")
    made.sent = []
    made.send = lambda content, buffers=None: made.sent.append(content)
    yield made
    made.close()


def ask(panel, prompt):
    done = threading.Event()
    panel.observe(lambda change: change["new"] or done.set(), "busy")
    panel.do_ask(prompt)
    assert done.wait(240)
    return panel.turns[-1]


def test_both_answer_and_remember_their_own_answers(panel, talker):
    assert ask(panel, "hi")["answers"] == ["base 2", "tuned 2"]
    assert ask(panel, "and?")["answers"] == ["base 4", "tuned 4"]
    base, messages, options = talker.asked[-2]
    assert base
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user"]
    assert messages[2]["content"] == "base 2"
    assert options == {"max_new_tokens": 512, "temperature": 0.0, "seed": 1}
    assert talker.asked[-1][2] == options  # the same seed for both


def test_an_answer_that_came_to_its_limit_says_so(panel):
    assert ask(panel, "hi")["cut"] == [False, False]  # it ended by itself, with its third token
    done = threading.Event()
    panel.observe(lambda change: change["new"] or done.set(), "busy")
    panel.do_ask("hi", max_new_tokens=3)
    assert done.wait(240)
    assert panel.turns[-1]["cut"] == [False, False]
    panel._whole[-1].limit = 2
    for tokens in panel._whole[-1].tokens:
        del tokens[2:]  # as it would have been
    assert panel._whole[-1].shown()["cut"] == [True, True]


def test_a_blind_vote_hides_who_is_who_and_becomes_a_preference(panel):
    panel.do_blind(True)
    turn = ask(panel, "hi")
    assert turn["order"] is None
    panel.do_vote(0, 0)
    turn = panel.turns[0]
    better, worse = turn["answers"]
    asked = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]
    said = [[{"role": "assistant", "content": text}] for text in (better, worse)]
    assert panel.preferences == [{"prompt": asked, "chosen": said[0], "rejected": said[1]}]
    assert turn["answers"][turn["order"].index(1)].startswith("tuned")
    with pytest.raises(NbtuneError):
        panel.do_vote(0, 1)
    assert panel.do_save("../votes") == "votes.jsonl"
    assert json.loads(Path("votes.jsonl").read_text())["chosen"][0]["content"] == better
    assert panel.votes == 0


def test_tokens_come_as_they_are_made_and_are_kept_out_of_the_saved_state(panel, monkeypatch):
    monkeypatch.setattr(chat_panel, "EVERY", 30.0)  # so that none but the first and the end is due, however slow it is
    turn = ask(panel, "hi")
    tokens = [["base", 0.25, [["other", 0.125]], False], [" 2", 0.25, [["other", 0.125]], False]]
    tokens += [["<|im_end|>", 1.5, [], True]]
    sent = [message for message in panel.sent if message["t"] == "tokens" and message["place"] == 0]
    assert sent[0]["tokens"] == tokens[:1]  # the first at once
    assert [message["i0"] for message in sent] == [0, 1]
    assert [token for message in sent for token in message["tokens"]] == tokens
    assert panel.do_tokens(turn["number"], 0) == tokens
    assert turn["tokens"] == [3, 3]
    assert "other" not in json.dumps(panel.turns)


def test_a_stop_frees_the_panel_at_once_and_keeps_what_was_said(panel, talker):
    panel.do_ask("slow")
    assert talker.waiting.wait(240)
    panel.do_stop()
    assert not panel.busy
    turn = panel.turns[-1]
    assert (turn["answers"], turn["stopped"]) == (["base", None], True)
    assert ask(panel, "hi")["answers"] == ["base 4", "tuned 2"]  # what was not said is no part of the conversation
    assert panel.turns[0]["answers"] == ["base", None]
    panel.do_blind(True)
    with pytest.raises(NbtuneError):
        panel.do_vote(turn["number"], 0)


def test_both_sides_of_a_blind_turn_go_on_from_the_answer_that_was_voted_for(panel, talker):
    panel.do_blind(True)
    first = ask(panel, "hi")
    panel.do_vote(first["number"], 1)
    chosen = panel.turns[-1]["answers"][1]
    second = ask(panel, "and?")
    assert [messages[2]["content"] for _, messages, _ in talker.asked[-2:]] == [chosen, chosen]
    panel.do_vote(second["number"], 0)
    assert [message["content"] for message in panel.preferences[-1]["prompt"]] == ["Be brief.", "hi", chosen, "and?"]


def test_two_equal_answers_teach_nothing(panel):
    panel.do_blind(True)
    turn = ask(panel, "same")
    assert panel.do_vote(turn["number"], 0) is False
    assert panel.turns[-1]["vote"] == 0
    assert panel.preferences == []


def test_an_answer_that_fails_is_no_part_of_the_conversation(panel, talker):
    ask(panel, "fail")
    assert ask(panel, "hi")["answers"] == ["base 2", "tuned 2"]


def test_neither_is_a_vote_without_a_row(panel):
    panel.do_blind(True)
    ask(panel, "hi")
    panel.do_vote(0, 2)
    assert panel.preferences == []


def test_an_error_is_shown_in_its_place(panel):
    turn = ask(panel, "fail")
    assert turn["answers"] == [None, None]
    assert every("no adapter yet" in error for error in turn["errors"])


def test_nothing_is_asked_twice_at_once_nor_an_empty_question(panel):
    with pytest.raises(NbtuneError):
        panel.do_ask("  ")
    panel.busy = True
    with pytest.raises(NbtuneError):
        panel.do_ask("hi")
