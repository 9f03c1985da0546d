"""A child that dies, hangs, floods, says half a line, loses its parent: who started it hears a sentence, in time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nbtune.child_process import ChildDied, ChildProcess, ChildSilent, exit_sentence

PARENT = "from nbtune.child_process import ParentProcess\nparent = ParentProcess()\n"
ECHO = PARENT + "for message in parent.messages():\n    parent.say(message)\n"
ON_REQUEST = "import signal, sys, time\nsignal.signal(signal.SIGTERM, {})\nparent.say({{}})\ntime.sleep(1000)\n"

Start = Callable[..., ChildProcess]


@pytest.fixture
def start() -> Iterator[Start]:
    children: list[ChildProcess] = []

    def begin(source: str, **options: Any) -> ChildProcess:
        children.append(ChildProcess(["-c", textwrap.dedent(source)], **options))
        return children[-1]

    yield begin
    for child in children:
        child.stop(0.0)


def gone(pid: int) -> bool:
    """Whether there is no such process any more, not even one that nobody has reaped."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def until(condition: Callable[[], bool], seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_messages_go_there_and_back_in_order_and_of_any_size(start: Start) -> None:
    child = start(ECHO)
    sent = [{"n": n, "pad": "ä\n" * (n * 20_000)} for n in range(8)]
    for message in sent:
        child.say(message)
    assert [child.hear(60).body for _ in sent] == sent
    assert child.close() == 0


def test_bytes_follow_a_message_and_prints_get_between_none(start: Start) -> None:
    raw = bytes(range(256)) * 4096
    child = start(
        PARENT
        + """
print("a library says something")
print("42", flush=True)  # else it is written at the end, where PYTHONUNBUFFERED is not set
parent.say({"first": 1}, bytes(range(256)) * 4096)
import os
os.system("echo another program, too")
parent.say({"second": 2})
next(parent.messages())
"""
    )
    assert child.hear(60) == ({"first": 1, "bytes": len(raw)}, raw)
    assert child.hear(60) == ({"second": 2}, b"")
    child.say({})
    assert child.wait(240) == 0
    child.stop()  # all that it said was read: its end alone does not say so
    assert child.last_words == "another program, too"


def test_a_child_that_dies_is_a_sentence_with_its_last_words(start: Start) -> None:
    child = start("import sys\nprint('{\"half\": ', end='', flush=True)\nsys.exit('the disk is full\\x1b[31m')")
    with pytest.raises(ChildDied) as died:
        child.hear(60)
    assert str(died.value) == r"its process ended with exit code 1: the disk is full\x1b[31m"
    assert died.value.code == 1
    with pytest.raises(ChildDied):  # and again
        child.hear(60)
    with pytest.raises(ChildDied):
        child.say({"more": 1})
    assert gone(child.pid)


def test_bytes_that_end_too_early_are_the_end(start: Start) -> None:
    child = start("print('{\"bytes\": 1000}', flush=True); print('only these')")
    with pytest.raises(ChildDied, match=r"its process ended with exit code 0$"):
        child.hear(60)


def test_a_child_that_is_killed_while_it_is_heard(start: Start) -> None:
    child = start(ECHO)
    child.say({"n": 1})
    assert child.hear(60).body == {"n": 1}
    os.kill(child.pid, signal.SIGKILL)
    with pytest.raises(ChildDied, match=r"was ended by signal 9 \(often: the machine ran out of memory\)"):
        child.hear(60)
    assert gone(child.pid)


def test_a_child_that_hangs_is_ended_after_our_patience(start: Start) -> None:
    child = start("import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(1000)")
    with pytest.raises(ChildSilent, match=r"said nothing for 0.3 seconds"):
        child.hear(0.3)
    assert gone(child.pid)


def test_signs_of_life_stretch_our_patience(start: Start) -> None:
    child = start(
        PARENT
        + """
import sys, time
parent.say({"up": True})
next(parent.messages())
for n in range(12):
    print(f"{n}%", file=sys.stderr, flush=True)
    time.sleep(0.25)
parent.say({"done": True})
""",
        on_stderr=lambda block: b"%" in block,
    )
    assert child.hear(240).body == {"up": True}  # what Python takes to start is not counted
    child.say({})
    assert child.hear(2.0).body == {"done": True}


def test_a_child_that_ignores_the_request_to_end_is_killed(start: Start) -> None:
    child = start(PARENT + ON_REQUEST.format("signal.SIG_IGN"))
    child.hear(60)
    assert child.stop(0.2) == -signal.SIGKILL
    assert gone(child.pid)
    assert child.stop() == -signal.SIGKILL  # it can be said twice


def test_a_child_that_may_end_in_order_does(start: Start) -> None:
    child = start(PARENT + ON_REQUEST.format("lambda *_: sys.exit(7)"))
    child.hear(60)
    assert child.stop(60) == 7


@pytest.mark.parametrize("stream", ["stderr", "stdout"])
def test_a_flood_fills_neither_memory_nor_the_pipe(start: Start, stream: str) -> None:
    child = start(
        PARENT
        + f"""
import sys
for n in range(200):
    print("x" * 100_000, file=sys.{stream}, flush=True)
print("the last of it", file=sys.{stream}, flush=True)
parent.say({{"done": True}})
next(parent.messages())
"""
    )
    assert child.hear(60).body == {"done": True}
    assert len(child._words) <= 16384
    child.say({})
    assert child.wait(240) == 0
    assert child.last_words == "the last of it"


def test_messages_that_nobody_hears_make_the_child_wait_and_nobody_else(start: Start) -> None:
    child = start(PARENT + "n = 0\nwhile True:\n    parent.say({'n': n, 'pad': 'x' * 10_000})\n    n += 1")
    assert child.hear(60).body["n"] == 0
    until(lambda: len(child._inbox._items) == 64)
    assert [child.hear(60).body["n"] for _ in range(200)] == list(range(1, 201))
    assert child.stop() == -signal.SIGTERM


def test_who_does_not_read_holds_nobody_for_ever(start: Start) -> None:
    """What is being said to a child that reads nothing is given up when the child is stopped."""
    import threading

    child = start("import time\ntime.sleep(1000)")
    failed: list[BaseException] = []

    def speak() -> None:
        try:
            child.say({"pad": "x" * 10_000_000})
        except ChildDied as error:
            failed.append(error)

    speaker = threading.Thread(target=speak)
    speaker.start()
    until(child._speaking.locked)
    child.close(0.2)
    speaker.join(240)
    assert not speaker.is_alive()
    assert failed
    assert gone(child.pid)


def test_a_grandchild_that_keeps_the_pipes_holds_nobody(start: Start) -> None:
    child = start(
        """
        import subprocess, sys
        subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(8)"])
        print('{"up": 1}', flush=True)
        """
    )
    assert child.hear(60).body == {"up": 1}
    assert child.close(30) == 0


def test_what_the_environment_says_differently(start: Start) -> None:
    source = PARENT + "import os\nparent.say(dict(os.environ))\nnext(parent.messages())"
    child = start(source, environment={"NBTUNE_X": "ü"})
    given = child.hear(60).body
    assert given.pop("NBTUNE_X") == "ü"
    assert {**given, "LC_CTYPE": ""} == {**os.environ, "LC_CTYPE": ""}  # Python itself sets that one


def test_the_end_of_the_pipe_is_the_end_of_a_child_at_work(start: Start) -> None:
    child = start(PARENT + "import time\nparent.say({})\ntime.sleep(1000)")
    child.hear(60)
    assert child.close(60) == 0
    watched = start(
        "import sys, time\nfrom nbtune.child_process import end_with_parent\nend_with_parent(5)\ntime.sleep(1000)",
        output="inherited",
    )
    assert watched.close(60) == 5


@pytest.mark.parametrize("detached", [False, True])
def test_the_parent_is_killed(detached: bool, tmp_path: Path) -> None:
    """A child ends with it, whatever it is at; one that was detached goes on."""
    work = "" if detached else "from nbtune.child_process import ParentProcess; ParentProcess(); "
    work += f"import time; open({str(tmp_path / 'up')!r}, 'w').close(); time.sleep(1000)"
    source = f"""
        import sys, time
        from nbtune.child_process import ChildProcess
        with open(sys.argv[1], "ab") as log:
            child = ChildProcess(["-c", {work!r}], output={"log" if detached else '"messages"'}, detached={detached})
        print(child.pid, flush=True)
        time.sleep(1000)
    """
    command = [sys.executable, "-c", textwrap.dedent(source), str(tmp_path / "log")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        try:
            until((tmp_path / "up").exists)
            parent.kill()
            parent.wait()
            if detached:
                time.sleep(0.5)
                assert not ended(pid)
            else:
                until(lambda: ended(pid))
        finally:
            if not ended(pid):
                os.kill(pid, signal.SIGKILL)


def ended(pid: int) -> bool:
    """Whether an orphan has ended; who reaps it is up to the machine."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return gone(pid)


def test_how_a_process_ended_is_said() -> None:
    assert exit_sentence(3, "; see its log") == "ended with exit code 3; see its log"
    assert exit_sentence(-15, "; see its log") == "was ended by signal 15; see its log"
    assert exit_sentence(-9, "; see its log") == "was ended by signal 9 (often: the machine ran out of memory)"
