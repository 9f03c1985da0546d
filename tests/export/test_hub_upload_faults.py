"""A Hub that fails in every way, and pushes that are killed: a sentence each, no half of a commit, and it goes on."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from nbtune.errors import HubError
from nbtune.export.hub_upload import check_push, push_folder
from tests.support.every import every
from tests.support.fake_hub import TOKEN, FakeHub, run_client

PLACES = {
    "making the repository": ("POST", "/api/repos/create"),
    "asking what is there": ("POST", "/preupload/"),
    "asking where to send it": ("POST", "/objects/batch"),
    "sending it": ("PUT", "/lfs/"),
    "the commit": ("POST", "/commit/"),
}
STATUSES = (401, 403, 404, 409, 413, 429, 500, 503)
PASSING = (429, 500, 503)


def folder(where: Path, size: int = 300_000, seed: int = 0) -> Path:
    """Something to push: a card, and weights of `size` bytes."""
    where.mkdir(parents=True)
    (where / "README.md").write_text(f"# demo {seed}\n")
    (where / "model.safetensors").write_bytes(random.Random(seed).randbytes(size))
    return where


def contents(made: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in made.iterdir()}


def sentence(error: HubError) -> str:
    """The error's words, which must be for people."""
    assert "\n" not in error.cause
    assert error.fix
    assert len(error.cause) < 300
    assert TOKEN not in str(error) + repr(vars(error))
    assert error.__cause__ is None
    assert error.__context__ is None
    return error.cause


@pytest.mark.slow
def test_an_answer_that_comes_byte_by_byte_is_given_up(hub: FakeHub, tmp_path: Path) -> None:
    hub.fail("POST", "/preupload/", how="loris")
    with pytest.raises(HubError) as found:
        push_folder(folder(tmp_path / "a"), "ada/demo", patience=3.0)
    assert sentence(found.value).startswith("the Hub stopped answering for 3 seconds")
    assert hub.files("ada/demo") == {}


@pytest.mark.parametrize(
    ("role", "repo", "whose"),
    [("read", "ada/demo", "ada's, to read only"), ("write", "bob/demo", "ada's")],
)
def test_a_token_that_may_not_write_there_is_named_before_anything_is_exported(
    role: str, repo: str, whose: str, hub: FakeHub
) -> None:
    hub.role = role
    with pytest.raises(HubError) as found:
        check_push(repo)
    assert sentence(found.value) == f"this token may not write to {repo} (it is {whose})"
    assert not [path for method, path, _ in hub.requests if method == "POST"]


@pytest.mark.parametrize("link", ["sub/file", "other"])
@pytest.mark.parametrize("by_link", [False, True])
def test_a_link_out_of_the_folder_is_named_and_nothing_is_pushed(
    hub: FakeHub, tmp_path: Path, link: str, by_link: bool
) -> None:
    """Also where the folder itself is named by a link."""
    made = folder(tmp_path / "a")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text("secret")
    (made / link).parent.mkdir(exist_ok=True)
    (made / link).symlink_to(tmp_path / "outside" / ("secret" if "/" in link else ""))
    (tmp_path / "named").symlink_to(made)
    with pytest.raises(HubError, match="leads out of its folder") as found:
        push_folder(tmp_path / "named" if by_link else made, "ada/demo")
    assert found.value.place == f"{made.name}/{link}"
    assert hub.repos == {}


def test_many_files_are_one_commit_or_none(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also through Xet, where `upload_folder` would commit what was refused again in parts."""
    monkeypatch.delenv("HF_HUB_DISABLE_XET")
    made = folder(tmp_path / "a", size=1000)
    (made / "model.safetensors").unlink()
    for number in range(30):
        (made / f"{number}.txt").write_text(str(number))
    hub.fail("POST", "/commit/", status=413, times=6)
    with pytest.raises(HubError):
        push_folder(made, "ada/demo")
    assert hub.repos == {}
    hub.heal()
    push_folder(made, "ada/demo")
    assert hub.repos["ada/demo"].commits == 1
    assert hub.files("ada/demo") == contents(made)


@pytest.mark.parametrize("xet", [False, True])
def test_how_far_it_is_within_one_large_file(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, xet: bool
) -> None:
    if xet:
        pytest.importorskip("hf_xet")
        monkeypatch.delenv("HF_HUB_DISABLE_XET")
    made, told = folder(tmp_path / "a", size=40_000_000), []
    push_folder(made, "ada/demo", progress=lambda *now: told.append(now))
    total = sum(len(data) for data in contents(made).values())
    done = [bytes for bytes, _, _ in told]
    assert done == sorted(done)
    assert {all_ for _, all_, _ in told} == {total}
    assert told[-1] == (total, total, "commit")
    assert any(0 < bytes - len(contents(made)["README.md"]) < 40_000_000 for bytes, _, what in told if what != "commit")


def test_a_push_that_is_interrupted_leaves_no_process_and_no_file(hub: FakeHub, tmp_path: Path) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        push_folder(folder(tmp_path / "a"), "ada/demo", progress=stop)
    assert not any("hub_upload" in " ".join(child.cmdline()) for child in psutil.Process().children())
    assert hub.files("ada/demo") == {}


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_every_refusal_at_every_step_is_a_sentence(place: str, tmp_path: Path, hub: FakeHub) -> None:
    """What may pass is answered once, and tried again; the rest for good, and told."""
    made = folder(tmp_path / "a")
    for status in STATUSES:
        hub.heal()
        hub.objects.clear()
        hub.fail(*PLACES[place], status=status, times=1 if status in PASSING else 99)
        repo = f"ada/d{status}"
        answer = refusal(made, repo)
        if status in PASSING:
            assert answer is None
            assert hub.files(repo) == contents(made)
        elif (
            status == 409 and place == "making the repository"
        ):  # it is there already, says the Hub, and then: it is not
            assert answer is not None
            assert "404" in answer
        else:
            assert answer is not None
            assert str(status) in answer
            assert repo not in hub.repos, "an empty repository that was made for this push goes with it"


def refusal(made: Path, repo: str) -> str | None:
    """The sentence of a push that fails, or None."""
    try:
        push_folder(made, repo, wait=0.05, attempts=2)
    except HubError as error:
        return sentence(error)
    return None


@pytest.mark.slow
def test_killed_at_fifty_points_of_a_push(hub: FakeHub, tmp_path: Path) -> None:
    """The process that uploads is killed at the n-th request, before or after it is served; the next push completes."""
    probe = folder(tmp_path / "probe")
    push_folder(probe, "ada/probe")
    last = len(hub.requests)
    whole, nothing = 0, 0
    for point in range(50):
        made, repo = folder(tmp_path / str(point), seed=point), f"ada/demo{point}"
        hub.requests.clear()
        rng, at = random.Random(point), 1 + point % last

        def kill(number: int, rng: random.Random = rng, at: int = at) -> None:
            if number == at:
                for child in psutil.Process().children():
                    if "hub_upload" in " ".join(child.cmdline()):
                        time.sleep(rng.random() * 0.02)  # somewhere in the request
                        child.kill()

        hub.seen = kill
        with pytest.raises(HubError) as found:
            push_folder(made, repo)
        assert "the upload's process ended" in sentence(found.value)
        hub.seen = None
        there = hub.files(repo) if repo in hub.repos else {}
        assert there in ({}, contents(made))  # all or nothing
        whole, nothing = whole + bool(there), nothing + (not there)
        push_folder(made, repo)
        assert hub.files(repo) == contents(made)
    assert nothing > 30


@pytest.mark.slow
def test_random_faults_for_a_while(hub: FakeHub, tmp_path: Path) -> None:
    """Large files through a Hub that fails at random; what is read back is equal. NBTUNE_TEST_SECONDS says how long."""
    seconds, rng = float(os.environ.get("NBTUNE_TEST_SECONDS", "30")), random.Random(7)
    began, sent, pushes, tries, faults = time.monotonic(), 0, 0, 0, 0
    while time.monotonic() < began + seconds:
        made = folder(tmp_path / f"r{pushes}", size=64 << 20, seed=pushes)
        for _ in range(rng.randint(0, 3)):
            method, path = rng.choice(list(PLACES.values()))
            how = rng.choice(["status", "drop", "half"] if method == "PUT" else ["status", "drop"])
            hub.fail(method, path, how=how, status=rng.choice([408, 429, 500, 502, 503, 504]), times=1)
            faults += 1
        for _ in range(5):
            tries += 1
            try:
                push_folder(made, "ada/demo", wait=0.05)
                break
            except HubError as error:
                sentence(error)
        assert hub.files("ada/demo") == contents(made)
        sent, pushes = sent + sum(len(data) for data in contents(made).values()), pushes + 1
        hub.heal()
        hub.objects.clear()
        for path in made.iterdir():
            path.unlink()
    rate = sent / (time.monotonic() - began) / 1e6
    print(f"{pushes} pushes in {tries} tries under {faults} faults, {rate:.0f} MB/s")
    assert pushes > 1


@pytest.mark.slow
def test_the_token_is_nowhere(hub: FakeHub, tmp_path: Path) -> None:
    """A run is trained and pushed, once in vain; outputs, %tb, logs, the run's folder and the card are searched."""
    import subprocess
    import sys

    code = """
import logging
logging.basicConfig(level=logging.DEBUG, filename="all.log")
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance(colors="nocolor")

def cell(text):
    print(">>>", text.splitlines()[0], flush=True)
    shell.run_cell(text)

cell("%xmode Verbose")
cell("%load_ext nbtune")
cell("import nbtune; rows = [{'prompt': 'hi', 'completion': 'ahoy'}] * 8")
cell("run = nbtune.finetune({'data': 'rows', 'model': 'nbtune/tiny', 'steps': 2}, name='demo', rows=globals()).wait()")
cell("run.push_to_hub('ada/taken')")
cell("%tb")
cell("%nbtune push demo ada/taken")
cell("%tb")
cell("import traceback, sys; traceback.print_exception(sys.last_value)")
cell("print(run.push_to_hub('ada/demo'), run.events(), vars(run), run)")
"""
    hub.fail("POST", "/ada/taken/commit/", status=403)
    environment: dict[str, Any] = {**os.environ, "HF_DEBUG": "1", "HF_HUB_VERBOSITY": "debug"}
    work = tmp_path / "work"
    work.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=work,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    said = done.stdout + done.stderr
    assert said.count("this token may not write to ada/taken (403)") >= 4, said
    assert "README.md" in hub.files("ada/demo"), said
    assert "Traceback" in said
    assert TOKEN not in said
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.name == "events.jsonl" for path in files)
    for path in files:
        assert TOKEN.encode() not in path.read_bytes(), path
    assert every(TOKEN.encode() not in data for data in hub.files("ada/demo").values())


def test_the_xet_path(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The large file goes through hf_xet with its own short-lived token; nothing is PUT as LFS."""
    pytest.importorskip("hf_xet")
    monkeypatch.delenv("HF_HUB_DISABLE_XET")
    made = folder(tmp_path / "a", size=3_000_000)
    push_folder(made, "ada/demo", patience=30)
    assert hub.xorbs
    assert not any(method == "PUT" for method, _, _ in hub.requests)
    assert hub.files("ada/demo") == contents(made)


def test_a_cache_that_cannot_be_written_is_no_end_of_a_push(hub: FakeHub, tmp_path: Path) -> None:
    """As in CI, with a home folder that is only read: hf_xet writes into the Hub's cache while it uploads."""
    pytest.importorskip("hf_xet")
    made, home = folder(tmp_path / "a", size=3_000_000), tmp_path / "ci"
    home.mkdir()
    (home / "hf").write_text("a file, in which no folder can be made, by root either")
    push = f"from nbtune.export.hub_upload import push_folder\nprint(push_folder({str(made)!r}, 'ada/demo'))"
    done = run_client(f"import os\nos.environ.pop('HF_HUB_DISABLE_XET')\n{push}", hub, home)
    assert done.returncode == 0, done.stderr
    assert hub.xorbs
    assert hub.files("ada/demo") == contents(made)
