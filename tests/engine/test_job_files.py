"""A run as a file for SkyPilot, Kubeflow's Trainer and Hugging Face Jobs: what it says, and what it does."""

from __future__ import annotations

import ast
import base64
import importlib.util
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import nbtune
from nbtune import events
from nbtune.api import job_file
from nbtune.cli import main
from nbtune.engine import job_files
from nbtune.errors import SpecError, TrainError
from nbtune.models.loading import resolve
from nbtune.spec import RunSpec, from_mapping
from nbtune.store.event_log import EventReader
from tests.engine.conftest import ROWS, SPEC
from tests.engine.test_node import ended, free_port
from tests.support.fake_hub import FakeHub, client_environment
from tests.support.submitting import refused

CPU = {**SPEC, "device": "cpu", "steps": 2}
SKYPILOT = "skypilot,nodes=2,gpus=H100:8,volume=runs"
KUBEFLOW = "kubeflow,nodes=2,gpus=8,volume=runs,image=registry.example/nbtune:1"
HF_JOBS = "hf-jobs,flavor=a100-large,push=ada/demo"


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("sky,gpus=8", "`sky` is no tool"),
        ("skypilot,gpu=8", "`gpu` is none of its options"),
        ("skypilot,gpus=H100:8;rm", "cannot be a job's `gpus`"),
        ("skypilot,gpus=8", "cannot be a job's `gpus`"),
        ("skypilot,nodes=2,gpus=H100:8", "several machines need a folder that all see"),
        ("kubeflow,gpus=8,volume=runs", "`image` is to be named"),
        ("kubeflow,image=a,volume=Runs", "cannot be a job's `volume`"),
        ("hf-jobs,flavor=a100-large", "`push` is to be named"),
        ("hf-jobs,flavor=a,push=demo", "cannot be a job's `push`"),
    ],
)
def test_what_a_tool_cannot_be_asked_for_is_refused_in_a_sentence(asked: str, words: str, tmp_path: Path) -> None:
    refused(asked, words, tmp_path)


@given(st.sampled_from([*job_files.KINDS]), st.text(max_size=12))
def test_no_value_becomes_more_than_a_value(kind: str, value: str) -> None:
    spec = RunSpec(data="rows", gpus=1)
    given_ = {"skypilot": "infra", "kubeflow": "image", "hf-jobs": "flavor"}[kind]
    asked = {"skypilot": "gpus=L4:1", "kubeflow": "volume=runs", "hf-jobs": "push=ada/demo"}[kind]
    try:
        job = job_files.job_of(f"{kind},{asked},{given_}={value}", spec)
    except SpecError:
        return
    assert re.fullmatch(job_files.KINDS[kind].options[given_], job.options[given_], re.ASCII)
    text = job.text(Path("runs") / "none-000000", spec)
    if kind == "hf-jobs":
        ast.parse(text)
    else:
        assert str(yaml.safe_load(text)).count(job.options[given_]) >= 1


def test_skypilots_file_has_a_folder_that_all_machines_see(tmp_path: Path) -> None:
    body = yaml.safe_load(job_file(from_mapping({"data": "rows"}), SKYPILOT, name="demo", runs_dir=tmp_path))
    assert (body["num_nodes"], body["resources"]) == (2, {"accelerators": "H100:8"})
    assert body["volumes"] == {"/nbtune": "runs"}
    assert body["file_mounts"] == {"~/nbtune/demo-000000": str(tmp_path / "demo-000000")}
    assert f"nbtune=={nbtune.__version__}" in body["setup"]
    assert "nbtune.engine.node /nbtune/demo-000000 --nnodes 2 --nproc-per-node 8" in body["run"]
    subprocess.run(["bash", "-n"], input=body["run"], text=True, check=True)
    one = yaml.safe_load(job_file(from_mapping({"data": "rows", "gpus": 4}), "skypilot,gpus=L4:4", runs_dir=tmp_path))
    assert one["resources"] == {"accelerators": "L4:4"}
    assert "volumes" not in one
    assert job_files.job_of(" skypilot , gpus=L4:4", RunSpec(data="rows")).text(tmp_path, RunSpec(data="rows"))


def test_kubeflows_file_is_a_job_of_its_trainer(tmp_path: Path) -> None:
    body = yaml.safe_load(job_file(from_mapping({"data": "rows"}), KUBEFLOW, name="Demo_1", runs_dir=tmp_path))
    assert (body["apiVersion"], body["kind"]) == ("trainer.kubeflow.org/v1alpha1", "TrainJob")
    assert re.fullmatch(r"[a-z]([a-z0-9-]*[a-z0-9])?", body["metadata"]["name"])  # as Kubernetes wants it
    trainer = body["spec"]["trainer"]
    assert trainer["command"] == ["python", "-m", "nbtune.engine.node", "/runs/Demo_1-000000"]
    assert (trainer["numNodes"], trainer["numProcPerNode"]) == (2, 8)
    if importlib.util.find_spec("kubeflow_trainer_api"):  # the peer's own schema
        import kubeflow_trainer_api.models as theirs

        assert theirs.TrainerV1alpha1TrainJob.from_dict(body).to_dict() == body


@given(
    nodes=st.integers(1, 40), gpus=st.integers(1, 16), device=st.sampled_from(["auto", "cpu"]),
    more=st.fixed_dictionaries({}, optional={"namespace": st.just("team"), "runtime": st.just("torch-mine")}),
)  # fmt: skip
@settings(max_examples=15)
def test_each_word_of_kubeflows_job_stands_where_its_trainer_reads_it(
    nodes: int, gpus: int, device: str, more: dict[str, str]
) -> None:
    spec = from_mapping({"data": "rows", "device": device})
    said = {"nodes": nodes, "gpus": gpus, "image": "a/b:1", "volume": "claim", **more}
    asked = "kubeflow," + ",".join(f"{key}={value}" for key, value in said.items())
    body = yaml.safe_load(job_files.job_of(asked, spec).text(Path("runs") / "demo-000000", spec))
    limits = {} if device == "cpu" else {"resourcesPerNode": {"limits": {"nvidia.com/gpu": gpus}}}
    assert body["spec"]["trainer"] == {
        "image": "a/b:1", "numNodes": nodes, "numProcPerNode": gpus, **limits,
        "command": ["python", "-m", "nbtune.engine.node", "/runs/demo-000000"],
    }  # fmt: skip
    assert body["spec"]["runtimeRef"] == {"name": more.get("runtime", "torch-distributed")}
    assert body["metadata"] == {"name": "demo-000000"} | {k: v for k, v in more.items() if k == "namespace"}
    [patch] = body["spec"]["runtimePatches"]
    [job] = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    pod = job["template"]["spec"]["template"]["spec"]
    [volume], [container] = pod["volumes"], pod["containers"]
    assert volume["persistentVolumeClaim"] == {"claimName": "claim"}
    assert container["volumeMounts"] == [{"name": volume["name"], "mountPath": "/runs"}]


def test_a_script_for_the_hub_carries_the_run_and_nobodys_name(tmp_path: Path, capfd: Any, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo.yaml").write_text("data: nbtune/persona\nsteps: 2\ndevice: cpu\n")
    assert main(["submit", "demo.yaml", "--job", HF_JOBS, "--name", "demo"]) == 0
    assert "not sent: hf jobs uv run --flavor a100-large --secrets HF_TOKEN" in capfd.readouterr().out
    run = nbtune.attach("demo", tmp_path / "runs")
    assert (run.state, run.submitted) == ("stopped", False)
    text = (run.folder / "job.hf.py").read_text()
    header = re.match(r"# /// script\n((?:# .*\n)+)# ///\n", text)  # PEP 723
    assert header is not None
    assert f'# dependencies = ["nbtune=={nbtune.__version__}"]' in header.group(1)
    held = next(n.value for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Constant) and len(str(n.value)) > 999)
    with tarfile.open(fileobj=io.BytesIO(base64.b64decode(held))) as packed:
        names = [member.name for member in packed.getmembers()]
        assert {(m.uname, m.gname, m.uid) for m in packed.getmembers()} == {("", "", 0)}
    assert f"{run.folder.name}/spec.yaml" in names
    assert not [name for name in names if name.endswith(("events.jsonl", "job.hf.py"))]


def test_a_folder_that_no_script_can_carry_is_refused(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(job_files, "_MOST", 100)
    with pytest.raises(TrainError, match="too large for a script"):
        nbtune.submit(CPU, rows={"rows": ROWS}, slurm=HF_JOBS, runs_dir=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("asked", [HF_JOBS, SKYPILOT, KUBEFLOW])
def test_the_rows_of_files_go_with_the_run(asked: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"Wer, {k}?", "completion": "Ahoi – für Größe!"} for k in range(6)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:4]))
    Path("few.csv").write_bytes(
        "prompt;completion\nWer, 4?;Ahoi – für Größe!\nWer, 5?;Ahoi – für Größe!\n".encode("cp1252")
    )
    spec = {**CPU, "data": ["rows.jsonl", "few.csv"], "eval": {"data": "rows.jsonl"}}
    folder = nbtune.submit(spec, slurm=asked, runs_dir="runs").folder
    here = nbtune.data.open_snapshot(folder / "data")
    monkeypatch.setenv("NBTUNE_CACHE", str(tmp_path / "another"))  # nobody has allowed anything there
    for path in ("rows.jsonl", "few.csv"):
        Path(path).unlink()
    there = shutil.copytree(folder, tmp_path / "there" / folder.name)
    sources = nbtune.data.open_snapshot(there / "data")
    assert [(s.name, s.role, [*s.rows]) for s in sources] == [(s.name, s.role, [*s.rows]) for s in here]
    assert [row for source in sources if source.role == "train" for row in source.rows] == rows
    assert str(tmp_path) not in (there / "data" / "sources.json").read_text()


def double(row: dict[str, Any]) -> dict[str, Any]:
    return row


@pytest.mark.parametrize("asked", [HF_JOBS, SKYPILOT, KUBEFLOW])
@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"model": "./mine"}, "lies on this machine, and the job runs on another"),
        ({"tokenizer": "mine"}, "lies on this machine, and the job runs on another"),
        (
            {"data": {"source": "rows", "function": "double"}},
            "the functions of `rows` may run where you have allowed it",
        ),
        ({"trust_remote_code": True}, "the model's own code may run where you have allowed it"),
    ],
)
def test_what_the_job_s_machine_has_not_is_refused(
    asked: str, more: dict[str, Any], words: str, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(resolve("nbtune/tiny"), "mine")
    with pytest.raises(SpecError, match=words):
        nbtune.submit({**CPU, **more}, rows={"rows": ROWS, "double": double}, slurm=asked, runs_dir="runs")
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"method": "distill", "teacher": "./mine"}, "`./mine` lies on this machine"),
        ({"method": "grpo", "rewards": {"models": ["judge"]}}, "its reward models are runs of this machine"),
    ],
)
def test_who_teaches_or_judges_here_does_not_travel(
    more: dict[str, Any], words: str, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine").mkdir()
    with pytest.raises(SpecError, match=words):
        job_files.refuse_what_stays(from_mapping({"data": "rows", **more}), ())


def test_no_link_of_a_folder_travels_and_no_number_of_its_owner(tmp_path: Path) -> None:
    """A link would lead to another machine's file there."""
    folder, spec = tmp_path / "demo-000000", from_mapping({"data": "rows"})
    folder.mkdir()
    (folder / "spec.yaml").write_text("data: rows\n")
    (folder / "link").symlink_to("/etc/hostname")
    if os.geteuid() == 0:  # who is anybody else has an id that is not 0
        os.chown(folder / "spec.yaml", 4321, 4322)
    text = job_files.job_of(HF_JOBS, spec).text(folder, spec)
    held = max((str(n.value) for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Constant)), key=len)
    with tarfile.open(fileobj=io.BytesIO(base64.b64decode(held))) as packed:
        assert packed.getnames() == ["demo-000000", "demo-000000/spec.yaml"]
        assert {(m.uname, m.gname, m.uid, m.gid) for m in packed.getmembers()} == {("", "", 0, 0)}


def test_an_option_that_is_given_twice_is_refused_and_so_are_two_tools(
    tmp_path: Path, capfd: Any, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo.yaml").write_text("data: nbtune/persona\nsteps: 2\n")
    for words in (["--job", f"{SKYPILOT},gpus=A100:8"], ["--slurm", "nodes=1,nodes=2"]):
        assert main(["submit", "demo.yaml", *words, "--print"]) == 2
        assert "is given twice" in capfd.readouterr().err
    assert main(["submit", "demo.yaml", "--job", SKYPILOT, "--slurm", "partition=x", "--print"]) == 2
    assert "a job is Slurm's or another tool's" in capfd.readouterr().err


@pytest.mark.parametrize("name", ["7b", "a---b", "Demo_1", "x..y", "x-"])
def test_names_are_such_as_each_tool_takes(name: str, tmp_path: Path) -> None:
    """SkyPilot's own: of a task `[a-z0-9]+([._-]{1,2}[a-z0-9]+)*`, of a cluster one that begins with a letter."""
    spec = from_mapping({"data": "rows"})
    sky = job_file(spec, SKYPILOT, name=name, runs_dir=tmp_path)
    cluster = re.search(r"sky launch -c (\S+) FILE", sky)
    assert cluster is not None
    for found in (yaml.safe_load(sky)["name"], cluster.group(1)):
        assert re.fullmatch(r"[a-z0-9]+(?:[._-]{1,2}[a-z0-9]+)*", found)
        assert re.fullmatch(r"[a-zA-Z]([-_.a-zA-Z0-9]*[a-zA-Z0-9])?", found)
        assert f"rsync -r {found}:/nbtune/{name}-000000 " in sky  # where several machines have trained it
    alone = job_file(spec, "skypilot,gpus=L4:1", name=name, runs_dir=tmp_path)
    assert f":nbtune/{name}-000000 " in alone
    kubernetes = yaml.safe_load(job_file(spec, KUBEFLOW, name=name, runs_dir=tmp_path))["metadata"]["name"]
    assert re.fullmatch(r"[a-z]([a-z0-9-]*[a-z0-9])?", kubernetes)


@pytest.mark.parametrize("asked", [HF_JOBS, SKYPILOT, KUBEFLOW, "nodes=2"])
@pytest.mark.parametrize("name", ["a\ntouch x", "a b", "../up", "-x", ""])
def test_a_file_that_is_only_shown_has_a_name_that_a_run_can_have(asked: str, name: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="cannot be a run's name"):
        job_file(from_mapping({"data": "rows"}), asked, name=name, runs_dir=tmp_path)


@pytest.mark.parametrize("asked", [HF_JOBS, SKYPILOT, KUBEFLOW, "nodes=2"])
@pytest.mark.parametrize("folder", ["a\x07b", "a\nb", "a\udcffb"])
def test_a_path_that_no_file_can_hold_is_said_and_leaves_nothing(asked: str, folder: str, tmp_path: Path) -> None:
    with pytest.raises(TrainError, match="the path of the runs has characters that no job's file can hold"):
        nbtune.submit(CPU, rows={"rows": ROWS}, slurm=asked, send=False, runs_dir=tmp_path / folder)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_all_gpus_of_machines_that_nobody_has_seen_are_to_be_named() -> None:
    every = RunSpec(data="rows", gpus="all")
    with pytest.raises(SpecError, match="`gpus: all` does not say how many"):
        job_files.job_of("kubeflow,volume=runs,image=a", every)
    assert job_files.job_of(KUBEFLOW, every).processes == 8
    assert job_files.job_of(HF_JOBS, every)  # which has all that its flavor has


@pytest.mark.parametrize(
    ("asked", "gpus", "said"),
    [
        ("gpus=8", 4, "`gpus=8` of the job counts, not `gpus: 4` of the spec"),
        ("gpus=a100:2", [0, 3], "`gpus=a100:2` of the job counts, not `gpus: [0, 3]` of the spec"),
        (KUBEFLOW, 4, "`gpus=8` of the job counts, not `gpus: 4` of the spec"),
        ("skypilot,gpus=H100:8", 2, "`gpus=H100:8` of the job counts, not `gpus: 2` of the spec"),
        ("gpus=4", 4, None),
        ("gpus=4", None, None),
        ("nodes=2", 4, None),
        ("gpus=4", "all", None),
    ],
)
def test_of_two_numbers_of_gpus_the_one_that_counts_is_said(
    asked: str, gpus: Any, said: str | None, tmp_path: Path, monkeypatch: Any, capfd: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    line = "" if gpus is None else f"gpus: {gpus}\n"
    Path("demo.yaml").write_text(f"data: nbtune/persona\nsteps: 2\n{line}")
    option = "--job" if asked.startswith(("kube", "sky")) else "--slurm"
    main(["submit", "demo.yaml", option, asked, "--name", "demo", *(["--unsent"] * (option == "--slurm"))])
    out = capfd.readouterr()
    warned = [e.message for e in nbtune.attach("demo", tmp_path / "runs").events() if isinstance(e, events.Warning)]
    assert warned == [said] * (said is not None)
    assert (" of the job counts" in out.out + out.err) == (said is not None)


def test_print_writes_nothing(tmp_path: Path, capfd: Any, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo.yaml").write_text("data: nbtune/persona\nsteps: 2\n")
    assert main(["submit", "demo.yaml", "--job", KUBEFLOW, "--print"]) == 0
    assert yaml.safe_load(capfd.readouterr().out)["kind"] == "TrainJob"
    assert [path.name for path in tmp_path.iterdir()] == ["demo.yaml"]


# -- carried out ---------------------------------------------------------------------------------------------------


def state(folder: Path) -> events.State:
    return [e for e in EventReader(folder / "events.jsonl").read() if isinstance(e, events.State)][-1]


@pytest.mark.slow
def test_a_script_for_the_hub_trains_and_pushes(tmp_path: Path) -> None:
    run = nbtune.submit(CPU, rows={"rows": ROWS}, slurm=HF_JOBS, name="demo", runs_dir=tmp_path / "here")
    there = tmp_path / "there"
    there.mkdir()
    with FakeHub() as hub:
        outside = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TRANSFORMERS_OFF"))}
        environment = {**outside, **client_environment(hub, tmp_path / "home")}
        command = [sys.executable, str(run.folder / "job.hf.py")]
        done = subprocess.run(command, env=environment, cwd=there, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "ada/demo" in done.stdout
    assert state(there / "runs" / run.folder.name).state == "finished"


@pytest.mark.slow
def test_skypilots_commands_train(tmp_path: Path) -> None:
    """On one machine, its home being elsewhere."""
    run = nbtune.submit({**CPU, "gpus": 2}, rows={"rows": ROWS}, slurm="skypilot", name="demo", runs_dir=tmp_path)
    body = yaml.safe_load((run.folder / "job.skypilot.yaml").read_text())
    (mounted,) = body["file_mounts"]
    place = tmp_path / "home" / mounted.removeprefix("~/")
    shutil.copytree(body["file_mounts"][mounted], place)
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    (bin_ / "python").symlink_to(sys.executable)
    environment = {**os.environ, "HOME": str(tmp_path / "home"), "PATH": f"{bin_}:{os.environ['PATH']}"}
    environment["PYTHONPATH"] = os.pathsep.join([os.environ["PYTHONPATH"], *(p for p in sys.path if "site-p" in p)])
    done = subprocess.run(
        ["bash", "-ec", body["run"]], env=environment, capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert state(place).state == "finished"


@pytest.mark.slow
def test_what_kubeflows_trainer_says_by_the_environment_is_heeded(tmp_path: Path) -> None:
    run = nbtune.submit(CPU, rows={"rows": ROWS}, slurm=KUBEFLOW, name="demo", runs_dir=tmp_path)
    usual = {
        "PET_NNODES": "2", "PET_NPROC_PER_NODE": "1", "PET_MASTER_ADDR": "127.0.0.1",
        "PET_MASTER_PORT": str(free_port()), "GLOO_SOCKET_IFNAME": "lo",
    }  # fmt: skip
    both = [
        subprocess.Popen(
            [sys.executable, "-m", "nbtune.engine.node", str(run.folder)],
            env={**os.environ, **usual, "PET_NODE_RANK": str(rank)}, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    codes, words = ended(both)
    assert codes == [0, 0], words
    assert run.state == "finished"
    assert run.plan.gpus == 2
