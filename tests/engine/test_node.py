"""Several machines by plain torchrun: two agents on the loopback, and in two network namespaces joined by a cable."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from torch.distributed import TCPStore

from nbtune import events
from nbtune.engine import node
from nbtune.engine.alike import Seen, differences, look
from nbtune.engine.engine import execute
from nbtune.errors import TrainError
from nbtune.store.event_log import EventReader
from tests.train.test_distributed import folder_of, said

CAN_JOIN = sys.platform == "linux" and os.geteuid() == 0 and shutil.which("ip") is not None


# -- what they must have in common ---------------------------------------------------------------------------------

ONE = Seen("a", ("nbtune 1", "torch 2"), "5a", 8, 8, "NVIDIA H100", 80 << 30, 1e9)


def test_machines_that_are_alike_have_nothing_to_say() -> None:
    assert differences([ONE, replace(ONE, host="b", now=ONE.now + 5, memory=ONE.memory - (1 << 20))]) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"spec": ""}, "process 2 of 2, on b, does not see the run's folder"),
        ({"spec": "6b"}, "process 2 of 2, on b, sees another spec.yaml"),
        ({"versions": ("nbtune 1", "torch 3")}, "process 2 of 2, on b, has torch 3, the first one torch 2"),
        ({"devices": 4}, "b has 4 GPUs for 8 processes"),
    ],
)
def test_machines_that_cannot_train_together_are_told_why(change: dict, words: str) -> None:
    with pytest.raises(TrainError) as caught:
        differences([ONE, replace(ONE, host="b", **change)])
    assert words in caught.value.cause
    assert caught.value.fix


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "NVIDIA L4", "memory": 22 << 30}, "the GPUs differ: NVIDIA H100 on a, NVIDIA L4 on b"),
        ({"now": ONE.now + 3600}, "the clock of b is 3600 s ahead of that of a"),
        ({"now": ONE.now - 3600}, "the clock of a is 3600 s ahead of that of b; times are those of a"),
    ],
)
def test_what_is_worth_a_word_is_said(change: dict, words: str) -> None:
    (sentence,) = differences([ONE, replace(ONE, host="b", **change)])
    assert sentence.startswith(words)


def test_a_process_without_the_folder_sees_none(tmp_path: Path) -> None:
    assert look(tmp_path / "gone").spec == ""
    assert look(tmp_path / "gone").versions[0].startswith("nbtune ")


def test_who_ended_of_itself_is_told_from_who_followed() -> None:
    class Failure:
        def __init__(self, exitcode: int, timestamp: int) -> None:
            self.exitcode, self.timestamp, self.error_file_data = exitcode, timestamp, {}

    assert node._first({0: Failure(3, 1), 1: Failure(-9, 2), 2: Failure(-15, 0)})[0] == 1
    assert node._first({0: Failure(3, 1), 2: Failure(-15, 0)})[0] == 2
    assert node._first({5: Failure(1, 7), 4: Failure(1, 6)})[0] == 4


# -- two of them ---------------------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def agent(folder: Path, endpoint: str, *before: str, **environment: str) -> subprocess.Popen[str]:
    """One machine's part of a run."""
    asked = ["--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-endpoint", endpoint]
    return subprocess.Popen(
        [*before, sys.executable, "-m", "nbtune.engine.node", str(folder), *asked, "--rdzv-id", "together"],
        env={**os.environ, **environment}, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip


def ended(agents: list[subprocess.Popen[str]], seconds: float = 1200.0) -> tuple[list[int], str]:
    """Their exit codes and what they said; none is left."""
    try:
        words = [one.communicate(timeout=seconds)[0] for one in agents]
    finally:
        for one in agents:
            one.kill()
    return [one.returncode for one in agents], "\n".join(words)[-4000:]


def workers(agents: list[subprocess.Popen[str]]) -> list[psutil.Process]:
    return [child for one in agents for child in psutil.Process(one.pid).children(recursive=True)]


def last(folder: Path) -> events.State:
    return [e for e in EventReader(folder / "events.jsonl").read() if isinstance(e, events.State)][-1]


@contextmanager
def two_machines():
    """Two network namespaces, each with one end of a cable; what is given goes before a command, for each."""
    ip, names = shutil.which("ip"), [f"nbtune{os.getpid()}{end}" for end in "ab"]
    assert ip is not None

    def call(*words: str) -> None:
        subprocess.run([ip, *words], check=True)

    with ExitStack() as stack:
        for name in names:
            call("netns", "add", name)
            stack.callback(call, "netns", "delete", name)
        call("-n", names[0], "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", names[1])
        for number, name in enumerate(names, 1):
            call("-n", name, "address", "add", f"10.77.0.{number}/24", "dev", "cable")
            for link in ("lo", "cable"):
                call("-n", name, "link", "set", link, "up")
        yield [(ip, "netns", "exec", name) for name in names]


@pytest.mark.timeout(1500)
@pytest.mark.slow
@pytest.mark.parametrize("where", ["loopback", "namespaces"])
def test_two_machines_are_one_process(tmp_path: Path, where: str) -> None:
    if where == "namespaces" and not CAN_JOIN:
        pytest.skip("wants root and Linux's ip")
    one = folder_of(tmp_path, device="cpu")
    two = tmp_path / "two"
    shutil.copytree(one, two)
    assert execute(one) == "finished"
    with ExitStack() as stack:
        if where == "namespaces":
            before = stack.enter_context(two_machines())
            agents = [agent(two, "10.77.0.1:29571", *words, GLOO_SOCKET_IFNAME="cable") for words in before]
        else:
            endpoint = f"127.0.0.1:{free_port()}"
            agents = [agent(two, endpoint, GLOO_SOCKET_IFNAME="lo") for _ in range(2)]
        codes, words = ended(agents)
    assert codes == [0, 0], words
    assert [s["loss"] for s in said(two, "step")] == pytest.approx([s["loss"] for s in said(one, "step")], rel=2e-6)
    assert last(two).state == "finished"
    assert not [event for event in said(two, "warning") if "clock" in event["message"]]


@pytest.mark.slow
def test_a_machine_without_the_folder_is_named_and_none_is_left(tmp_path: Path) -> None:
    here = folder_of(tmp_path, device="cpu")
    endpoint = f"127.0.0.1:{free_port()}"
    agents = [agent(folder, endpoint, GLOO_SOCKET_IFNAME="lo") for folder in (here, tmp_path / "gone-000000")]
    codes, words = ended(agents)
    assert 0 not in codes
    told = f"{words} {last(here).detail if (here / 'events.jsonl').exists() else ''}"
    assert "does not see the run's folder" in told, told
    assert not (tmp_path / "gone-000000").exists()


@pytest.mark.slow
def test_when_torchrun_is_killed_its_processes_end(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, device="cpu")
    text = (folder / "spec.yaml").read_text()
    (folder / "spec.yaml").write_text(text.replace("\nsteps: 6\n", "\nsteps: 5000\n"))
    endpoint = f"127.0.0.1:{free_port()}"
    agents = [agent(folder, endpoint, GLOO_SOCKET_IFNAME="lo") for _ in range(2)]
    try:
        reader = EventReader(folder / "events.jsonl")
        for _ in range(600):
            if any(isinstance(e, events.Step) for e in reader.read()):
                break
            psutil.wait_procs([psutil.Process(one.pid) for one in agents], timeout=0.5)
        children = workers(agents)
        assert len(children) == 2
        for one in agents:
            one.send_signal(signal.SIGKILL)
        _, alive = psutil.wait_procs(children, timeout=60)
        assert not alive
    finally:
        ended(agents)


def test_a_port_is_another_programs_or_another_agents(monkeypatch) -> None:
    monkeypatch.setattr(node, "_ANSWER", 1.0)
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        port = mute.getsockname()[1]
        assert node._taken(f"127.0.0.1:{port}") == node._taken(f"localhost:{port}") != ""
    assert node._taken(f"127.0.0.1:{port}") == ""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    assert node._taken(f"127.0.0.1:{store.port}") == ""
    for elsewhere in ("192.0.2.1:29500", "no such host:29500", "host", "", "127.0.0.1:many"):
        assert node._taken(elsewhere) == ""


@pytest.mark.slow
def test_a_port_in_use_is_said_in_a_sentence(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, device="cpu")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        one = agent(folder, f"127.0.0.1:{taken.getsockname()[1]}", GLOO_SOCKET_IFNAME="lo")
        codes, words = ended([one])
    assert codes == [1], words
    assert last(folder).state == "failed"
    assert "does not meet the others at 127.0.0.1:" in last(folder).detail
    assert "in use by another program on this machine" in last(folder).detail
