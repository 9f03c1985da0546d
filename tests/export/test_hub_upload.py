"""Pushing: the real client against a Hub of our own, whole or not at all, and never a word of the token."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import types
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from nbtune.errors import HubError
from nbtune.export.hub_errors import retry_after
from nbtune.export.hub_upload import _files, _Push, push_folder
from tests.support.fake_hub import TOKEN, FakeHub, client_environment, run_client
from tests.support.tiny_models import byte_level, save_model, save_tokenizer

PUSH = """
import json, sys, traceback
from nbtune.errors import HubError
from nbtune.export.hub_upload import push_folder
try:
    print(json.dumps({{"url": push_folder({folder!r}, {repo!r}, wait=0.05, {more})}}))
except HubError as error:
    print(json.dumps({{"cause": error.cause, "fix": error.fix, "place": error.place}}))
    traceback.print_exc()
    seen, stack = [], [error]
    while stack:
        one = stack.pop()
        seen.append(repr(vars(one)) + repr(one.args))
        stack += [e for e in (one.__cause__, one.__context__) if e is not None]
    frames = error.__traceback__
    while frames is not None:
        seen.append(repr(frames.tb_frame.f_locals))
        frames = frames.tb_next
    print("".join(seen), file=sys.stderr)
"""


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with FakeHub() as served:
        yield served


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "export"
    made.mkdir()
    (made / "README.md").write_text("---\nlicense: mit\n---\n# demo\n")
    (made / "adapter_config.json").write_text(json.dumps({"r": 8}))
    (made / "adapter_model.safetensors").write_bytes(bytes(range(256)) * 4096)
    (made / ".hidden").write_text("stays here")
    return made


def push(
    hub: FakeHub, folder: Path, home: Path, repo: str = "ada/demo", more: str = "", token: str | None = TOKEN
) -> dict:
    """Push in a process of its own; its answer, after a search for the token in everything that it said."""
    home.mkdir(exist_ok=True)
    code = PUSH.format(folder=str(folder), repo=repo, more=more)
    done = run_client(code, hub, home, token=token)
    assert done.returncode == 0, done.stderr
    assert token is None or token not in done.stdout + done.stderr
    for path in [*home.rglob("*"), *folder.rglob("*")]:
        assert token is None or not path.is_file() or token.encode() not in path.read_bytes(), path
    return json.loads(done.stdout.splitlines()[0])


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if not p.name.startswith(".")}


def test_a_folder_is_pushed_private_in_one_commit(hub: FakeHub, folder: Path, tmp_path: Path) -> None:
    assert push(hub, folder, tmp_path / "home") == {"url": f"{hub.endpoint}/ada/demo"}
    assert hub.repos["ada/demo"].private
    assert hub.repos["ada/demo"].commits == 1
    assert hub.files("ada/demo") == contents(folder)


def test_a_name_without_an_owner_goes_to_the_account_and_a_second_push_sends_nothing_large_again(
    hub: FakeHub, folder: Path, tmp_path: Path
) -> None:
    push(hub, folder, tmp_path / "home", repo="demo")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# demo, again\n")
    hub.requests.clear()
    assert push(hub, folder, tmp_path / "home", repo="demo") == {"url": f"{hub.endpoint}/ada/demo"}
    assert hub.files("ada/demo") == contents(folder)
    assert [r for r in hub.requests if r[0] == "PUT"] == []


def test_a_branch_and_a_pull_request(hub: FakeHub, folder: Path, tmp_path: Path) -> None:
    push(hub, folder, tmp_path / "home", more="revision='v2'")
    assert hub.files("ada/demo", "v2") == contents(folder)
    assert hub.files("ada/demo", "main") == {}
    answer = push(hub, folder, tmp_path / "home", more="create_pr=True")
    assert answer == {"url": f"{hub.endpoint}/ada/demo/discussions/2"}
    assert hub.files("ada/demo", "main") == {}
    assert hub.files("ada/demo", "refs/pr/2") == contents(folder)


def test_a_public_repository_is_not_filled_by_accident(hub: FakeHub, folder: Path, tmp_path: Path) -> None:
    push(hub, folder, tmp_path / "home", more="private=False")
    assert not hub.repos["ada/demo"].private
    (folder / "README.md").write_text("secret")
    answer = push(hub, folder, tmp_path / "home")
    assert answer["cause"] == "ada/demo is public"
    assert hub.repos["ada/demo"].commits == 1


def test_without_a_login(hub: FakeHub, folder: Path, tmp_path: Path) -> None:
    answer = push(hub, folder, tmp_path / "home", token=None)
    assert answer["cause"] == "you are not logged in to the Hub"
    assert hub.requests == []


def test_a_wrong_token(hub: FakeHub, folder: Path, tmp_path: Path) -> None:
    answer = push(hub, folder, tmp_path / "home", token="hf_expired0123456789")
    assert answer["cause"] == "the Hub does not accept the token (401)"
    assert "log in again" in answer["fix"]
    assert hub.repos == {}


def test_somebody_elses_account(hub: FakeHub, folder: Path, tmp_path: Path) -> None:
    answer = push(hub, folder, tmp_path / "home", repo="bob/demo")
    assert answer["cause"] == "this token may not write to bob/demo (403)"
    assert hub.repos == {}


@pytest.mark.parametrize(("status", "words"), [(503, "out of order"), (429, "no more requests")])
def test_a_busy_hub_is_asked_again_and_then_explained(
    hub: FakeHub, folder: Path, tmp_path: Path, status: int, words: str
) -> None:
    hub.fail("POST", "/commit/", status=status, times=2)
    assert "url" in push(hub, folder, tmp_path / "home")
    assert hub.repos["ada/demo"].commits == 1
    hub.heal()
    hub.fail("POST", "/commit/", status=status)
    (folder / "README.md").write_text("other")
    answer = push(hub, folder, tmp_path / "home")
    assert words in answer["cause"]
    assert str(status) in answer["cause"]
    assert "\n" not in answer["cause"]
    assert hub.repos["ada/demo"].commits == 1
    assert len([r for r in hub.requests if "/commit/" in r[1]]) == 5


def test_a_refusal_takes_the_new_empty_repository_away(hub: FakeHub, folder: Path, tmp_path: Path) -> None:
    cases = {
        413: "larger than the Hub takes",
        409: "changed ada/demo409 meanwhile",
        404: "is not there",
        403: "may not write",
        400: "refused the commit (400",
    }
    for status in cases:
        hub.fail("POST", f"/ada/demo{status}/commit/", status=status)
    push = "try:\n  push_folder({!r}, 'ada/demo{}', wait=0.05, attempts=2)\nexcept HubError as e:\n  print(e.cause)\n"
    pushes = "".join(push.format(str(folder), status) for status in cases)
    imports = "from nbtune.errors import HubError\nfrom nbtune.export.hub_upload import push_folder\n"
    done = run_client(imports + pushes, hub, tmp_path)
    answers = done.stdout.splitlines()
    assert len(answers) == len(cases), done.stderr
    for words, answer in zip(cases.values(), answers, strict=True):
        assert words in answer
    assert hub.repos == {}
    assert TOKEN not in done.stdout + done.stderr


def test_a_new_repository_that_somebody_else_has_filled_stays(hub: FakeHub, folder: Path, tmp_path: Path) -> None:
    hub.fail("POST", "/commit/", status=409)
    theirs = {"theirs.txt": (b"mine!", False)}
    hub.seen = lambda number: [repo.branches["main"].update(theirs) for repo in hub.repos.values()] and None
    push = "from nbtune.export.hub_upload import push_folder\npush_folder({!r}, 'ada/demo')"
    assert "somebody else changed ada/demo meanwhile" in run_client(push.format(str(folder)), hub, tmp_path).stderr
    assert hub.files("ada/demo") == {"theirs.txt": b"mine!"}


@pytest.mark.parametrize(
    ("status", "waits"), [(401, []), (403, []), (413, []), (429, [0.001, 0.002]), (503, [0.001, 0.002])]
)
def test_only_what_may_pass_is_tried_again_each_time_after_twice_as_long(status: int, waits: list[float]) -> None:
    error, asked, said = OSError(), [], []  # type: ignore[var-annotated]
    error.response = types.SimpleNamespace(status_code=status, headers={})  # type: ignore[attr-defined]

    def ask() -> None:
        asked.append(1)
        raise error

    request = {"repo_id": "ada/demo", "token": None, "create_pr": False, "revision": None, "files": []}
    pushing = _Push({**request, "wait": 0.001, "attempts": 3}, said.append)
    with pytest.raises(OSError):
        pushing.again("the commit", ask)
    assert [each["waiting"] for each in said] == waits
    assert len(asked) == len(waits) + 1


@pytest.mark.parametrize(("said", "seconds"), [("7", 7.0), ("3600", 60.0), ("²", 0.0), ("-1", 0.0), ("soon", 0.0)])
def test_how_long_a_server_asks_to_wait(said: str, seconds: float) -> None:
    error = OSError()
    error.response = types.SimpleNamespace(headers={"Retry-After": said})  # type: ignore[attr-defined]
    assert retry_after(error) == seconds


@pytest.mark.slow
def test_broken_uploads_leave_no_file_and_the_next_push_completes(folder: Path, tmp_path: Path) -> None:
    """huggingface_hub tries each six times, 23 s in all: the ways to break run side by side."""

    def broken(how: str) -> None:
        with FakeHub() as hub:
            hub.fail("PUT", "/lfs/", how=how, status=503)
            answer = push(hub, folder, tmp_path / how)
            assert answer["cause"] in (
                "the connection to the Hub broke at uploading adapter_model.safetensors",
                "the Hub is out of order (503) at uploading adapter_model.safetensors",
            )
            assert hub.files("ada/demo") == {}
            hub.heal()
            assert "url" in push(hub, folder, tmp_path / how)
            assert hub.files("ada/demo") == contents(folder)

    with ThreadPoolExecutor() as pool:
        list(pool.map(broken, ("status", "drop", "half")))


def test_a_hub_that_never_answers_is_given_up(hub: FakeHub, folder: Path, tmp_path: Path) -> None:
    hub.fail("POST", "/commit/", how="stall")
    answer = push(hub, folder, tmp_path / "home", more="patience=3.0")
    assert answer["cause"].startswith("the Hub stopped answering for 3 seconds")
    assert hub.files("ada/demo") == {}


def test_no_hub_at_all(folder: Path, tmp_path: Path) -> None:
    with FakeHub() as hub:
        pass
    answer = push(hub, folder, tmp_path / "home", more="attempts=2")
    assert answer["cause"] == "the connection to the Hub broke at making the repository"


@pytest.mark.filterwarnings("ignore")
def test_a_run_is_pushed_and_read_back_by_from_pretrained(hub: FakeHub, tmp_path: Path) -> None:
    """Adapter and card, through the same endpoint, by the libraries that people use."""
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig

    base, adapter = tmp_path / "base", tmp_path / "run" / "adapter"
    tokenizer = save_tokenizer(byte_level(vocab=300), base)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2
    )
    model = get_peft_model(
        save_model(config, base), LoraConfig(r=4, init_lora_weights=False, target_modules=["q_proj"])
    )
    model.save_pretrained(adapter)
    code = f"""
import json, torch
from pathlib import Path
from huggingface_hub import ModelCard
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from nbtune.export import ExportSource
from nbtune.export.exporter import push

source = ExportSource(Path({str(base)!r}), Path({str(adapter)!r}), name="demo", base_id="owner/base")
facts = {{"steps": 7, "loss": 0.5, "spec": "steps: 7", "samples": [("hi", "arr")], "license": "mit", "curve": b"png"}}
print(push(source, "demo", card=facts))
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained({str(base)!r}), "ada/demo")
weights = load_file({str(adapter / "adapter_model.safetensors")!r})
state = {{k.replace(".default.", "."): v for k, v in model.state_dict().items()}}
assert weights and all(torch.equal(state[k], v) for k, v in weights.items())
read, local = (AutoTokenizer.from_pretrained(where) for where in ("ada/demo", {str(base)!r}))
assert read.chat_template == local.chat_template and read.get_vocab() == local.get_vocab()
card = ModelCard.load("ada/demo")
print(json.dumps([card.data.base_model, card.data.library_name, card.data.license]))
print(card.text)
"""
    done = run_client(code, hub, tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == f"{hub.endpoint}/ada/demo"
    assert json.loads(lines[1]) == ["owner/base", "peft", "mit"]
    assert "in 7 steps" in done.stdout
    assert "![loss](loss.png)" in done.stdout
    assert hub.files("ada/demo")["loss.png"] == b"png"
    assert [path.name for path in adapter.parent.iterdir()] == ["adapter"]
    assert not any(str(tmp_path).encode() in data for data in hub.files("ada/demo").values())


def test_the_token_is_in_no_argument_of_the_child(hub: FakeHub, folder: Path, tmp_path: Path) -> None:
    """While the upload waits for an answer, the arguments and environments of the processes are read."""
    hub.fail("POST", "/commit/", how="stall")
    code = PUSH.format(folder=str(folder), repo="ada/demo", more="patience=240.0")
    home = tmp_path / "home"
    (home / "hf").mkdir(parents=True)
    (home / "hf" / "token").write_text(TOKEN)  # as huggingface_hub's own login leaves it
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=client_environment(hub, home, None), stdout=-1, stderr=-1, text=True
    )
    try:
        end = time.monotonic() + 240
        while not any("/commit/" in path for _, path, _ in hub.requests):
            assert time.monotonic() < end
            assert process.poll() is None
            time.sleep(0.05)
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        assert len(family) == 2
        for member in family:
            assert TOKEN not in " ".join(member.cmdline())
            assert TOKEN not in repr(member.environ())
        hub.released.set()
    finally:
        process.kill()
        process.communicate()


def test_what_is_hidden_or_leads_out_of_a_folder_is_not_uploaded(folder: Path, tmp_path: Path) -> None:
    (folder / ".cache" / "deep").mkdir(parents=True)
    (folder / ".cache" / "deep" / "token").write_text("secret")
    (folder / "more").mkdir()
    (folder / "more" / "words.txt").write_text("words")
    named = {name for name, _, _ in _files(folder)}
    assert named == {"README.md", "adapter_config.json", "adapter_model.safetensors", "more/words.txt"}
    private = tmp_path / "private"
    private.mkdir()
    (private / "key").write_text("secret")
    for link, target in ((folder / "more" / "key", private / "key"), (folder / "linked", private)):
        link.symlink_to(target)
        with pytest.raises(HubError, match="leads out of its folder"):  # before anybody is asked for anything
            push_folder(folder, "ada/demo")
        link.unlink()
