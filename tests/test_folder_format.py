"""A run's folder says its version; older ones are read in one place, newer ones nowhere; a key may be missing."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import nbtune
from nbtune import events
from nbtune.cli.spec_file import spec_of
from nbtune.data.sources import consent, snapshot
from nbtune.errors import DataError, NbtuneError, TrainError
from nbtune.folder_format import FORMAT, plan_body, version_of
from nbtune.models.abilities import Abilities
from nbtune.store import control
from nbtune.store.folder import plan_of
from tests.support.every import every, some

ROWS = [{"prompt": f"Count {k}.", "completion": f"{k}, {k + 1}."} for k in range(8)]
SPEC = {
    "model": "nbtune/tiny",
    "data": "var:rows",
    "adapter": {"type": "lora", "r": 2, "target_modules": ["q_proj"]},
    "steps": 2,
    "batch_size": 2,
    "device": "cpu",
    "eval": {"split": 0.25},
    "checkpoint": {"every": 1, "keep": 2},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run, not to be changed."""
    run = nbtune.finetune(SPEC, name="demo", rows={"rows": ROWS}, runs_dir=tmp_path_factory.mktemp("runs")).wait()
    run.stop(wait=True)  # a wish, so that there is a control.json
    return run.folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(made, tmp_path / "runs" / made.name))


def _edit(file: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    body = json.loads(file.read_text(encoding="utf-8"))
    change(body)
    file.write_text(json.dumps(body), encoding="utf-8")


def _keys(file: Path) -> list[str]:
    return sorted(json.loads(file.read_text(encoding="utf-8")))


def _tried(call: Callable[[], Any]) -> Any:
    """What comes of it; an error that says a cause is an answer, any other is not."""
    try:
        return call()
    except NbtuneError as error:
        return None if "\n" not in error.cause.strip() != "" else error


def test_a_new_folder_says_its_version(made: Path) -> None:
    assert version_of(made) == FORMAT == json.loads((made / "environment.json").read_text())["version"]


@pytest.mark.parametrize("text", [None, "{}", "{", '{"version": "one"}', '{"version": {}}', "[]"])
def test_a_folder_that_says_none_is_of_version_0(folder: Path, text: str | None) -> None:
    (folder / "environment.json").unlink()
    if text is not None:
        (folder / "environment.json").write_text(text)
    assert version_of(folder) == 0
    assert nbtune.attach(folder).plan is not None


def test_what_an_older_plan_lacks_is_filled_in_and_what_a_new_one_lacks_is_damage(folder: Path) -> None:
    def forget(body: dict[str, Any]) -> None:
        del body["hidden_size"], body["learning_rate_reason"]

    _edit(folder / "plan.json", forget)
    run = nbtune.attach(folder)
    with pytest.raises(TrainError, match=r"plan\.json"):
        _ = run.plan
    for version in range(2):
        _edit(folder / "environment.json", lambda body, version=version: body.update(version=version))
        assert run.plan is not None
        assert run.plan.hidden_size == 0


@pytest.mark.parametrize(("version", "meant"), [(0, "cosine"), (2, "cosine"), (3, "cosine"), (4, "linear")])
def test_a_spec_without_a_schedule_means_what_it_did_when_it_was_written(folder: Path, version: int, meant: str):
    _edit(folder / "environment.json", lambda body: body.update(version=version))
    run = nbtune.attach(folder)
    assert run.spec.lr_scheduler_type == spec_of(folder / "spec.yaml", None).lr_scheduler_type == meant
    assert spec_of(folder / "spec.yaml", ["lr_scheduler_type=constant"]).lr_scheduler_type == "constant"
    assert ("cosine" in run.yaml()) == ("cosine" in run.script()) == (meant == "cosine")
    with (folder / "spec.yaml").open("a", encoding="utf-8") as file:
        file.write("lr_scheduler_type: polynomial\n")
    assert nbtune.attach(folder).spec.lr_scheduler_type == "polynomial"


def test_a_plan_of_today_is_read_as_it_is(made: Path) -> None:
    body = json.loads((made / "plan.json").read_text())
    assert every(plan_body(body, version) == body for version in range(FORMAT + 1))


def test_a_newer_folder_is_refused_in_one_sentence_at_every_door(folder: Path) -> None:
    _edit(folder / "environment.json", lambda body: body.update(version=FORMAT + 1))
    run, root = nbtune.attach(folder), folder.parent
    doors: dict[str, Callable[[], Any]] = {
        "spec": lambda: run.spec,
        "plan": lambda: run.plan,
        "script": run.script,
        "yaml": run.yaml,
        "resume": run.resume,
        "resume at": lambda: run.resume(step=1),
        "go on": run.go_on,
        "generate": lambda: run.generate("Hello"),
        "adapter": lambda: run.export.adapter(root / "out"),
        "merged": lambda: run.export.merged(root / "out"),
        "gguf": lambda: run.export.gguf(out=root / "out"),
        "say": lambda: run.say(events.Warning(message="hello")),
        "repeat": lambda: nbtune.repeat(folder),
        "trust": lambda: nbtune.trust(folder),
        "start from": lambda: nbtune.finetune({**SPEC, "start_from": str(folder)}, rows={"rows": ROWS}, runs_dir=root),
    }
    for name, door in doors.items():
        with pytest.raises(TrainError) as caught:
            door()
        assert caught.value.cause == "this run was made by a newer nbtune", name
    assert [path.name for path in root.iterdir()] == [folder.name], "nothing was begun"


def test_every_key_of_the_plan_may_be_missing_or_have_company(made: Path, folder: Path) -> None:
    run, plan = nbtune.attach(folder), nbtune.attach(made).plan
    for key in some(_keys(made / "plan.json")):
        _edit(folder / "plan.json", lambda body, key=key: body.pop(key))
        got = _tried(lambda: run.plan)
        if key == "abilities" and got is not None:  # a plan without them says that nothing was tried
            assert got.abilities == Abilities()
            got = got.model_copy(update={"abilities": plan.abilities})
        if key == "threads" and got is not None:  # nor how many it works by
            assert got.threads == 0
            got = got.model_copy(update={"threads": plan.threads})
        assert got is None or got == plan, key  # refused, or a default that says the same
        assert "demo" in repr(run)
        script = _tried(run.script)
        assert script is None or "demo" in script, key  # refused in a sentence, or the run's own
        shutil.copy(made / "plan.json", folder / "plan.json")
    _edit(folder / "plan.json", lambda body: body.update(colour="green"))
    assert run.plan == plan
    assert plan_of(json.loads((folder / "plan.json").read_text()), folder) == plan


def test_every_key_of_the_environment_may_be_missing_or_have_company(made: Path, folder: Path) -> None:
    for key in [*_keys(made / "environment.json"), ""]:
        _edit(folder / "environment.json", lambda body, key=key: body.pop(key, None) or body.update(colour="green"))
        (run,) = nbtune.runs(folder.parent)
        assert (run.state, run.step, run.trouble) == ("finished", 2, ""), key
        assert run.plan is not None
        shutil.copy(made / "environment.json", folder / "environment.json")


def test_every_key_of_the_data_may_be_missing_or_have_company(made: Path, folder: Path) -> None:
    index = folder / "data" / "sources.json"
    entry = json.loads(index.read_text())["sources"][0]
    rows = list(snapshot.open_snapshot(made / "data")[0].load())
    changes = [(key, lambda body, key=key: body["sources"][0].pop(key)) for key in entry]
    changes += [(key, lambda body, key=key: body["sources"][0]["files"][0].pop(key)) for key in entry["files"][0]]
    changes += [(key, lambda body, key=key: body.pop(key)) for key in _keys(index)]
    for key, change in changes:
        _edit(index, change)
        opened = _tried(lambda: snapshot.open_snapshot(folder / "data"))
        assert opened is None or list(opened[0].load()) == rows, key
        shutil.copy(made / "data" / "sources.json", index)
    _edit(index, lambda body: body.update(colour="green") or body["sources"][0]["files"][0].update(colour="green"))
    assert list(snapshot.open_snapshot(folder / "data")[0].load()) == rows


def test_every_key_of_the_wishes_may_be_missing_or_have_company(made: Path, folder: Path) -> None:
    file = folder / "control.json"
    for key in some(_keys(file)):
        _edit(file, lambda body, key=key: (body.pop(key) and None) or body.update(colour="green"))
        found, whole = control.FileControl(folder).look(), control.FileControl(made).look()
        assert {k: v for k, v in vars(found).items() if k != key} == {k: v for k, v in vars(whole).items() if k != key}
        shutil.copy(made / "control.json", file)


def test_every_key_of_an_event_may_be_missing_or_have_company(made: Path) -> None:
    lines = {json.loads(line)["type"]: line for line in (made / "events.jsonl").read_text().splitlines()}
    assert {"state", "step", "eval", "checkpoint", "device"} <= set(lines)
    for line in lines.values():
        body, whole = json.loads(line), events.from_line(line)
        assert events.from_line(json.dumps({**body, "colour": "green"})) == whole
        for key in body:
            less = json.dumps({k: v for k, v in body.items() if k != key})
            try:
                event = events.from_line(less)
            except ValueError:
                continue  # such a line is passed over
            assert type(event) is type(whole)


@pytest.mark.parametrize("key", ["step", "tokens", "trained_tokens", "best_eval", "learning_rate", "colour"])
def test_a_run_goes_on_without_a_key_of_its_checkpoint_or_says_that_it_cannot(folder: Path, key: str) -> None:
    run = nbtune.attach(folder)

    def change(body: dict[str, Any]) -> None:
        assert key == "colour" or key in body
        if body.pop(key, "green") == "green":
            body[key] = "green"

    _edit(folder / "checkpoints" / "step-00000001" / "progress.json", change)
    done = _tried(lambda: run.resume(step=1).wait())
    assert (done is None) == (key == "step")
    assert run.state == ("failed" if key == "step" else "finished")
    assert key == "step" or list(run.history.index) == [1, 2]


def _with_function(folder: Path, version: int) -> Path:
    """The folder as version 1 kept it: the pickle of a function signed by itself."""
    import cloudpickle

    data = folder / "data"
    body = cloudpickle.dumps(lambda row: row)
    (data / "function-0.function").write_bytes(body)
    signed = {
        "path": "function-0.function",
        "sha256": hashlib.sha256(body).hexdigest(),
        "signature": consent._mac(body),
    }
    _edit(data / "sources.json", lambda index: index["sources"][0].update(function=signed))
    _edit(folder / "environment.json", lambda index: index.update(version=version))
    return data


def test_a_pickle_that_was_signed_by_itself_counts_in_an_older_folder_only(folder: Path) -> None:
    assert len(snapshot.open_snapshot(_with_function(folder, 1))) == 1
    with pytest.raises(DataError, match="pickled function"):
        snapshot.open_snapshot(_with_function(folder, FORMAT))
