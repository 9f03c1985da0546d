"""A stranger's run folder is data: through no door does it run anything, or reach for what lies outside of it."""

import json
import shutil
from pathlib import Path

import pytest

import nbtune
from nbtune import models
from nbtune.data.sources import consent
from nbtune.data.sources.snapshot import open_snapshot
from nbtune.errors import DataError, ExportError, NbtuneError, TrainError
from tests.export.conftest import hub  # noqa: F401 — a push asks its Hub before anything else

ROWS = [{"prompt": f"What is {k}?", "completion": f"It is {k}, sailor."} for k in range(12)]
SPEC = {
    "model": "nbtune/tiny",
    "data": "rows",
    "steps": 2,
    "batch_size": 2,
    "adapter": {"r": 2},
    "eval": {"split": 0.2},
}


def strike(row):
    """What a stranger would have run here: leaves a mark."""
    Path("struck").touch()
    return row


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run that has stopped after its steps, in a folder of its own."""
    return nbtune.finetune(SPEC, rows={"rows": ROWS}, runs_dir=tmp_path_factory.mktemp("runs"), name="made").wait()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model whose own code leaves a mark."""
    folder = tmp_path_factory.mktemp("models") / "own-code"
    shutil.copytree(models.resolve("nbtune/tiny"), folder, ignore=shutil.ignore_patterns("*.py"))
    (folder / "own_code.py").write_text(
        "from pathlib import Path\nPath('struck').touch()\n"
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'llama'\n"
        "class OwnModel(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "own_code.OwnConfig", "AutoModelForCausalLM": "own_code.OwnModel"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def stranger(made, tmp_path):
    """A copy of the run as if somebody had sent it; the test makes it hostile."""
    folder = tmp_path / "runs" / "sent-abc123"
    shutil.copytree(made.folder, folder)
    (folder / "events.jsonl").write_text(
        '{"type":"state","state":"stopped","step":2,"total_steps":2,"time":1.0}\n', encoding="utf-8"
    )
    plan = json.loads((folder / "plan.json").read_text())
    (folder / "plan.json").write_text(json.dumps(plan | {"total_steps": 4}))
    return folder


def entry_of(folder):
    return json.loads((folder / "data" / "sources.json").read_text())["sources"][0]


def write_entry(folder, entry):
    (folder / "data" / "sources.json").write_text(json.dumps({"version": 1, "sources": [entry]}))


def with_import(folder):
    write_entry(folder, {**entry_of(folder), "function": {"import": f"{__name__}:strike", "sha256": ""}})


def with_code(folder, model):
    spec = (folder / "spec.yaml").read_text().replace("model: nbtune/tiny", f"model: {model}")
    assert str(model) in spec
    (folder / "spec.yaml").write_text(spec + "trust_remote_code: true\n")


DOORS = {
    "resume": lambda run: run.resume().wait(),
    "losses": lambda run: run.losses().wait(),
    "chat": lambda run: run.generate("Hi", max_new_tokens=1),
    "importance": lambda run: run.export.gguf("q8_0", importance=True, verify=False),
    "push": lambda run: run.push_to_hub("ada/it", what="gguf", importance=True),
    "go on": lambda run: run.go_on(steps=1).wait(),
    "repeat": lambda run: nbtune.repeat(run.folder).wait(),
    "script": lambda run: run.script(),
    "monitor": lambda run: run.monitor(),
    "attach": lambda run: (repr(run), run._repr_html_(), run.history, run.state),
    "command": lambda run: nbtune.cli.main(["train", str(run.folder / "spec.yaml"), "--set", "steps=1"]),
}
REFUSING = ("resume", "losses", "importance", "push", "go on", "repeat")


@pytest.mark.parametrize("door", [door for door in DOORS if door not in ("chat", "command")])
def test_a_function_that_is_named_in_the_data_is_not_called(door, stranger, hub):  # noqa: F811
    with_import(stranger)
    run = nbtune.attach(stranger)
    if door in REFUSING:
        with pytest.raises(NbtuneError, match="test_trust:strike") as caught:
            DOORS[door](run)
        assert f"nbtune trust {stranger.name}" in caught.value.fix
    else:
        DOORS[door](run)
    assert not Path("struck").exists()


@pytest.mark.parametrize("door", DOORS)
def test_a_models_own_code_is_not_run_because_its_spec_says_so(door, stranger, model, hub):  # noqa: F811
    import nbtune.cli

    with_code(stranger, model)
    run = nbtune.attach(stranger)
    if door in ("resume", "losses", "go on", "repeat", "chat"):
        with pytest.raises(TrainError, match="not allowed here") as caught:
            DOORS[door](run)
        assert f"nbtune trust {stranger.name}" in caught.value.fix
    elif door in ("importance", "push"):
        with pytest.raises(NbtuneError):
            DOORS[door](run)
    elif door == "command":
        assert DOORS[door](run) == 2
    else:
        DOORS[door](run)
    assert not Path("struck").exists()
    assert not run.spec.trust_remote_code
    assert "trust_remote_code: true" not in run.script()


def test_what_the_user_starts_here_needs_no_further_word(tmp_path, model):
    rows, asked = {"rows": ROWS}, {**SPEC, "model": str(model), "trust_remote_code": True, "steps": 1}
    asked["data"] = [{"source": "rows", "function": f"{__name__}:strike"}]
    run = nbtune.finetune(asked, rows=rows, name="mine").wait()
    assert Path("struck").exists()
    assert nbtune.trust(run.folder) == []
    again = nbtune.repeat(run.folder).wait()
    assert again.history["loss"].tolist() == run.history["loss"].tolist()
    assert nbtune.attach(run.folder).generate("Hi", max_new_tokens=1) is not None

    (model / "own_code.py").write_text((model / "own_code.py").read_text() + "\n# changed\n")
    with pytest.raises(TrainError, match="not allowed here"):
        nbtune.attach(run.folder).losses().wait()


def test_a_word_for_the_models_code_is_none_for_anothers(tmp_path, model):
    """Whoever can write into the folder, names another model beside the one that was allowed."""
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    shutil.copytree(model, ours)
    shutil.copytree(model, theirs)
    run = nbtune.finetune({**SPEC, "model": str(ours), "trust_remote_code": True, "steps": 1}, rows={"rows": ROWS})
    run.wait()
    run.free()
    assert nbtune.trust(run.folder) == []
    spec = (run.folder / "spec.yaml").read_text()
    for more in (f"tokenizer: {theirs}\n", f"teacher: {theirs}\nmethod: distill\n"):
        (run.folder / "spec.yaml").write_text(spec + more)
        with pytest.raises(TrainError, match="not allowed here"):
            nbtune.attach(run.folder).generate("Hi", max_new_tokens=1)
        assert [str(theirs) in want for want in nbtune.trust(run.folder)] == [True]
        assert nbtune.trust(run.folder) == []
        (theirs / "own_code.py").write_text((theirs / "own_code.py").read_text() + "\n# changed\n")
        with pytest.raises(TrainError, match="not allowed here"):
            nbtune.attach(run.folder).generate("Hi", max_new_tokens=1)


def test_code_that_a_model_takes_from_elsewhere_is_part_of_what_is_allowed(tmp_path, model):
    """`auto_map` may name another repository, or a folder: its code is asked for again once it is another."""
    other, folder = tmp_path / "other", tmp_path / "borrowing"
    shutil.copytree(model, folder)
    other.mkdir()
    shutil.move(folder / "own_code.py", other / "own_code.py")
    for name in ("config.json", "tokenizer_config.json"):
        shutil.copyfile(model / name, folder / name)
        text = json.loads((folder / name).read_text())
        text["auto_map"] = {"AutoModelForCausalLM": [f"{other}--own_code.OwnModel", None]}
        (folder / name).write_text(json.dumps(text))
        before = consent.code_of(folder)
        (other / "own_code.py").write_text((other / "own_code.py").read_text() + "\n# changed\n")
        assert consent.code_of(folder) != before, name
        del text["auto_map"]
        (folder / name).write_text(json.dumps(text))


def test_a_word_is_for_this_folder_and_this_content(stranger, tmp_path):
    with_import(stranger)
    assert nbtune.trust(stranger) == [f"the function `{__name__}:strike`"]
    assert nbtune.trust(stranger) == []
    assert open_snapshot(stranger / "data")[0].change is strike
    assert not list(stranger.rglob("*consent*"))  # nothing of it lies in the folder

    moved = tmp_path / "elsewhere"
    shutil.copytree(stranger, moved)
    with pytest.raises(DataError, match="not written here by you"):
        open_snapshot(moved / "data")
    write_entry(stranger, {**entry_of(stranger), "role": "eval"})
    with pytest.raises(DataError, match="not written here by you"):
        open_snapshot(stranger / "data")


def test_a_signed_record_means_nothing_anywhere_else(tmp_path, stranger):
    """Each part of a signed entry is changed, one at a time."""
    asked = {**SPEC, "data": [{"source": "rows", "function": f"{__name__}:strike"}], "steps": 1}
    run = nbtune.finetune(asked, rows={"rows": ROWS}, name="mine").wait()
    signed = entry_of(run.folder)
    open_snapshot(run.folder / "data")
    other = {"role": "eval", "name": "x", "kind": "file", "spec": {"source": "y"}}
    other["function"] = {**signed["function"], "import": "subprocess:run"}
    other["files"] = [{**signed["files"][0], "sha256": "0" * 64}]
    for key, value in other.items():
        write_entry(run.folder, {**signed, key: value})
        with pytest.raises(DataError, match="not written here by you"):
            open_snapshot(run.folder / "data")
    write_entry(run.folder, signed)
    (run.folder / "data" / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    with pytest.raises(DataError, match="has changed"):
        open_snapshot(run.folder / "data")


@pytest.mark.parametrize("way", ["path", "link", "folder link", "spec", "kind"])
def test_data_outside_of_the_folder_is_not_read(way, stranger, tmp_path):
    import hashlib

    private = tmp_path / "private" / "rows.jsonl"
    private.parent.mkdir()
    private.write_text('{"prompt": "the", "completion": "secret"}\n')
    record = {"path": "../../../private/rows.jsonl", "sha256": hashlib.sha256(private.read_bytes()).hexdigest()}
    entry = {**entry_of(stranger), "files": [record]}
    if way == "link":
        (stranger / "data" / "linked.jsonl").symlink_to(private)
        record["path"] = "linked.jsonl"
    elif way == "folder link":
        (stranger / "data" / "linked").symlink_to(private.parent)
        record["path"] = "linked/rows.jsonl"
    elif way in ("spec", "kind"):
        entry |= {"files": [], "kind": "set" if way == "kind" else "file", "spec": {"source": f"file:{private}"}}
    write_entry(stranger, entry)
    run = nbtune.attach(stranger)
    for door in ("resume", "go on", "repeat", "importance"):
        with pytest.raises(NbtuneError, match=r"not written here by you|leads out of"):
            DOORS[door](run)
    nbtune.trust(stranger)
    assert next(iter(open_snapshot(stranger / "data")[0].rows))["completion"] == "secret"


EXPORTS = {
    "adapter": lambda run: run.export.adapter(),
    "adapter_gguf": lambda run: run.export.adapter_gguf(),
    "merged": lambda run: run.export.merged(),
    "gguf": lambda run: run.export.gguf("q8_0", verify=False),
    "ollama": lambda run: run.export.ollama(),
    "push": lambda run: run.push_to_hub("ada/it"),
}


@pytest.mark.parametrize("kind", EXPORTS)
@pytest.mark.parametrize(
    "link", ["adapter/tokenizer.json", "adapter/additional_chat_templates", "adapter", "exports", "checkpoints/x"]
)
def test_exports_follow_no_link_out_of_the_folder(kind, link, stranger, tmp_path):
    if link == "exports" and kind == "push":
        pytest.skip("a push writes nothing there")
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "a.jinja").write_text("the secret")
    path = stranger / link
    if path.is_dir():
        shutil.move(path, secret / "it")
        path.symlink_to(secret / "it")
    else:
        path.unlink(missing_ok=True)
        path.symlink_to(secret if "." not in path.name else secret / "a.jinja")
    with pytest.raises(ExportError, match="leads out of its folder") as caught:
        EXPORTS[kind](nbtune.attach(stranger))
    assert link in caught.value.place
    copies = [path for path in stranger.rglob("*") if path.is_file() and not path.is_symlink()]
    assert not [path for path in copies if b"the secret" in path.read_bytes()]


def test_an_index_names_no_file_of_another_folder(stranger, tmp_path):
    adapter = stranger / "adapter"
    shutil.move(adapter / "adapter_model.safetensors", tmp_path / "x.safetensors")
    index = {"weight_map": {"a": "../../../x.safetensors"}}
    (adapter / "adapter_model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ExportError, match="lies outside of its folder"):
        nbtune.attach(stranger).export.merged()


def test_an_adapters_config_imports_no_module(stranger):
    """peft imports what `megatron_core` names."""
    file = stranger / "adapter" / "adapter_config.json"
    body = json.loads(file.read_text()) | {"megatron_config": {"a": 1}, "megatron_core": "strikes.here"}
    file.write_text(json.dumps(body))
    Path("strikes").mkdir()
    Path("strikes/__init__.py").write_text("from pathlib import Path\nPath('struck').touch()\n")
    with pytest.raises(ExportError, match="megatron_config"):
        nbtune.attach(stranger).export.gguf("q8_0", importance=True, verify=False)
    assert not Path("struck").exists()


def test_a_folders_name_is_no_program(made, tmp_path):
    import ast

    folder = tmp_path / 'x"""; open("struck", "w"); """-abc123'
    shutil.copytree(made.folder, folder)
    tree = ast.parse(nbtune.attach(folder).script())
    calls = [node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and hasattr(node.func, "id")]
    assert "open" not in calls


def test_the_key_is_whole_and_a_half_one_is_made_anew(monkeypatch, tmp_path):
    monkeypatch.setenv("NBTUNE_CACHE", str(tmp_path / "cache"))
    first = consent.signature_of({"a": 1})
    assert consent.is_signed({"a": 1}, first)
    assert not consent.is_signed({"a": 2}, first)
    (tmp_path / "cache" / "functions.key").write_bytes(b"")
    assert not consent.is_signed({"a": 1}, first)
    assert len((tmp_path / "cache" / "functions.key").read_bytes()) == 32
