"""Requests to a run that is at work: heard word by word, left at any time, and nothing stays in the box."""

import threading
import time

import pytest

from nbtune.engine.live_requests import answer_requests, ask
from nbtune.errors import TrainError


class Server:
    """Answers what is asked of a folder, in a thread, as a run does at its step boundaries."""

    def __init__(self, folder, answer):
        self.done = threading.Event()
        self.thread = threading.Thread(target=self.serve, args=(folder, answer), daemon=True)

    def serve(self, folder, answer):
        while not self.done.is_set():
            answer_requests(folder, answer)
            self.done.wait(0.01)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.done.set()
        self.thread.join()


def test_words_are_heard_before_the_answer_is_whole(tmp_path):
    heard, first = [], threading.Event()

    def answer(request, asked):
        for word in request["prompt"].split():
            asked.say({"text": word})
            assert word != "one" or first.wait(240)  # the second word comes when the first was heard
        return {"answer": request["prompt"]}

    def told(word):
        heard.append(word["text"])
        first.set()

    with Server(tmp_path, answer):
        assert ask(tmp_path, {"prompt": "one two"}, timeout=240, alive=lambda: True, told=told) == {"answer": "one two"}
    assert heard == ["one", "two"]
    assert list((tmp_path / "requests").iterdir()) == []


def test_who_stops_waiting_is_free_at_once_and_the_run_is_told(tmp_path):
    stop, left = threading.Event(), threading.Event()

    def answer(request, asked):
        asked.say({"text": "a"})
        while not asked.gone():
            time.sleep(0.01)
        left.set()
        return {"answer": "nobody hears it"}

    with Server(tmp_path, answer):
        asked = ask(
            tmp_path,
            {"prompt": "?"},
            timeout=240,
            alive=lambda: True,
            told=lambda _: stop.set(),
            should_stop=stop.is_set,
        )
        assert asked is None
        assert left.wait(240)
    assert list((tmp_path / "requests").iterdir()) == []


def test_a_question_that_nobody_took_is_taken_back(tmp_path):
    assert ask(tmp_path, {"prompt": "?"}, timeout=240, alive=lambda: True, should_stop=lambda: True) is None
    assert list((tmp_path / "requests").iterdir()) == []


def test_a_request_is_answered_and_the_box_is_empty_afterwards(tmp_path):
    with Server(tmp_path, lambda request, _: {"answer": request["prompt"].upper()}):
        assert ask(tmp_path, {"prompt": "ahoy"}, timeout=240, alive=lambda: True) == {"answer": "AHOY"}
    assert list((tmp_path / "requests").iterdir()) == []


def test_a_request_to_a_run_that_is_gone_fails_at_once(tmp_path):
    with pytest.raises(TrainError, match="did not answer"):
        ask(tmp_path, {"prompt": "ahoy"}, timeout=240, alive=lambda: False)
