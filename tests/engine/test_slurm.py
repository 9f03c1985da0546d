"""A run as a job of Slurm: what its file says, who is asked where it is; real ones, on a real Slurm of two nodes."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nbtune
from nbtune import events
from nbtune.api import job_file
from nbtune.cli import main
from nbtune.engine.slurm import Job
from nbtune.errors import SpecError, TrainError
from nbtune.spec import RunSpec, from_mapping
from nbtune.store import batch_job
from nbtune.store.lock import is_owned
from tests.engine.conftest import ROWS, SPEC
from tests.support import slurm_cluster
from tests.support.submitting import refused

CPU = {**SPEC, "device": "cpu"}


# -- the file ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "spec", "lines"),
    [
        ("partition=gpu,nodes=2,gpus=8", {}, ["--nodes=2", "--gpus-per-node=8", "--partition=gpu"]),
        ("gpus=a100:4,time=1-00:00:00,mem=64G", {}, ["--nodes=1", "--gpus-per-node=a100:4", "--time=1-00:00:00"]),
        ("nodelist=n1,n2,nodes=2", {"gpus": 3}, ["--nodelist=n1,n2", "--gpus-per-node=3"]),
        ("gpus=2,constraint=(a100|h100)&nvlink", {"device": "cpu"}, ["--constraint=(a100|h100)&nvlink"]),
        (["partition=a", "nodes=3"], {}, ["--partition=a", "--nodes=3"]),
        ({"nodes": 2, "gpus": 8}, {}, ["--nodes=2", "--gpus-per-node=8"]),
        ("", {}, ["--nodes=1", "--gpus-per-node=1"]),
    ],
)
def test_options_are_sbatchs(asked: object, spec: dict, lines: list[str]) -> None:
    text = job_file(from_mapping({"data": "rows", **spec}), asked)  # type: ignore[arg-type]
    directives = [line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH")]
    assert set(lines) <= set(directives)
    assert any(line.startswith("--gpus") for line in directives) == (spec.get("device") != "cpu")
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("partition=a;touch x", "'a;touch x' cannot be a job's `partition`"),
        ("partition=$(touch x)", "cannot be"),
        ("partition=a\ntouch x", "cannot be"),
        ("partition=a\r\ntouch x", "cannot be"),
        ("partition=", "'' cannot be"),
        ("partition=ä", "cannot be"),
        ("constraint=a\u2028touch", "cannot be"),
        ("nodes=0", "cannot be a job's `nodes`"),
        ("nodes=two", "cannot be a job's `nodes`"),
        ("gpus=-1", "cannot be a job's `gpus`"),
        ("time=soon", "cannot be a job's `time`"),
        ("partiton=gpu", "`partiton` is none of the options"),
        ("wrap=touch x", "`wrap` is none of the options"),
        ("gpu", "`gpu` has no value"),
    ],
)
def test_what_a_job_cannot_be_asked_for_is_refused_in_a_sentence(asked: str, words: str, tmp_path: Path) -> None:
    refused(asked, words, tmp_path)


def test_all_gpus_of_a_node_that_nobody_has_seen_are_to_be_named() -> None:
    with pytest.raises(SpecError, match="gpus: all"):
        Job.of("nodes=2", RunSpec(data="rows", gpus="all"))
    assert Job.of("nodes=2,gpus=4", RunSpec(data="rows", gpus="all")).processes == 4


@given(st.text(max_size=20), st.sampled_from(["partition", "account", "constraint", "nodelist", "time", "mem"]))
def test_no_value_becomes_a_line_of_the_script(value: str, name: str) -> None:
    spec = RunSpec(data="rows", gpus=1)
    try:
        text = job_file(spec, {name: value})  # type: ignore[arg-type]
    except SpecError:
        return
    plain = job_file(spec, "")
    added = [line for line in text.splitlines() if line not in plain.splitlines()]
    assert added == [f"#SBATCH --{name}={value}"]


def test_a_folders_odd_name_is_one_word_of_the_script(tmp_path: Path) -> None:
    """The file is carried out, with a launcher of this machine in srun's place."""
    runs = tmp_path / 'it\'s $(touch x) "and" more %j'
    text = job_file(from_mapping(CPU), "nodes=2", name="demo", runs_dir=runs)
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    (bin_ / "srun").write_text(f'#!/bin/bash\nprintf "%s\\n" "$@" > {shlex.quote(str(tmp_path))}/asked\nexit 3\n')
    (bin_ / "srun").chmod(0o755)
    environment = {**os.environ, "PATH": f"{bin_}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    done = subprocess.run(["bash"], input=text, text=True, env=environment, cwd=tmp_path, check=False)
    assert done.returncode == 3
    assert not (tmp_path / "x").exists()
    words = (tmp_path / "asked").read_text().splitlines()
    assert words[1:5] == [sys.executable, "-m", "nbtune.engine.node", str(runs / "demo-000000")]
    assert words[5:9] == ["--nnodes", "2", "--nproc-per-node", "1"]


def test_print_writes_and_sends_nothing(tmp_path: Path, monkeypatch, capfd) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo.yaml").write_text("data: nbtune/persona\nsteps: 2\n")
    assert main(["submit", "demo.yaml", "--slurm", "partition=p,nodes=2", "--slurm", "gpus=8", "--print"]) == 0
    out = capfd.readouterr().out
    assert out.startswith("#!/bin/bash\n")
    assert "#SBATCH --gpus-per-node=8" in out
    assert main(["submit", "demo.yaml", "--slurm", "partition=a b", "--print"]) == 2
    assert "cannot be a job's `partition`" in capfd.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["demo.yaml"]


# -- the queue -----------------------------------------------------------------------------------------------------


def program(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


@pytest.fixture
def queue(tmp_path, monkeypatch):
    """A stand-in for a cluster's programs: a job waits for as long as the file ``state`` says so."""
    folder = tmp_path / "bin"
    folder.mkdir()
    state = folder / "state"
    state.write_text("PENDING")
    program(folder, "sbatch", f'printf "%s\\n" "$@" > {folder}/sent; echo 4711')
    program(folder, "squeue", f"cat {state}")
    program(folder, "scancel", f"echo CANCELLED > {state}")
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setattr(batch_job, "_ASKED_AGAIN", 0.0)
    return folder


def test_a_job_that_waits_is_a_run_that_lives(queue, tmp_path) -> None:
    runs = tmp_path / "runs"
    run = nbtune.submit(CPU, rows={"rows": ROWS}, slurm="nodes=2", name="demo", runs_dir=runs)
    assert (run.state, run.alive, run.submitted) == ("queued", True, True)
    assert run.latest(events.State).detail == "job 4711 of Slurm"
    sent = (queue / "sent").read_text().splitlines()
    assert sent[0] == "--parsable"
    assert sent[-1] == str(run.folder / "job.sbatch")
    assert nbtune.attach("demo", runs).state == "queued"
    again = nbtune.submit(CPU, rows={"rows": ROWS}, slurm="nodes=2", name="demo", runs_dir=runs)
    assert again.folder == run.folder  # it is attached to, not sent twice
    with pytest.raises(TrainError, match="is at work"):
        run.resume()
    with pytest.raises(TrainError, match="is at work"):
        run.delete()
    run.stop(wait=True)
    assert (run.state, run.alive) == ("stopped", False)
    assert "taken out of the queue" in run.latest(events.State).detail
    (queue / "state").write_text("RUNNING")
    run.resume()
    assert (run.state, run.alive) == ("queued", True)
    (queue / "state").write_text("NODE_FAIL")
    assert (run.state, run.alive) == ("interrupted", False)


def test_a_copy_of_its_folder_does_not_wait(queue, tmp_path) -> None:
    import shutil

    run = nbtune.submit(CPU, rows={"rows": ROWS}, slurm="nodes=2", runs_dir=tmp_path / "runs")
    shutil.copytree(run.folder, tmp_path / "copy-000000")
    assert is_owned(run.folder)
    assert not is_owned(tmp_path / "copy-000000")


@pytest.mark.parametrize("lock", ["{}", '{"job": 7}', '{"job": "7; x"}', '{"job": "-u root"}', '{"job": []}'])
def test_a_lock_that_names_no_job_holds_nothing(queue, tmp_path, lock) -> None:
    run = nbtune.submit(CPU, rows={"rows": ROWS}, slurm="nodes=2", runs_dir=tmp_path / "runs")
    (run.folder / "starting.json").write_text(lock)
    assert not run.alive


def test_where_there_is_no_sbatch_what_to_do_is_said(tmp_path, monkeypatch, capfd) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo.yaml").write_text("data: nbtune/persona\nsteps: 2\ndevice: cpu\n")
    assert main(["submit", "demo.yaml", "--slurm", "nodes=2", "--name", "demo"]) == 1
    out = capfd.readouterr().out
    assert "there is no `sbatch` here: sbatch runs/demo-" in out
    assert nbtune.attach("demo", tmp_path / "runs").state == "stopped"
    assert main(["submit", "demo.yaml", "--name", "held", "--unsent"]) == 0
    assert "not sent, as you asked: sbatch runs/held-" in capfd.readouterr().out


def test_a_job_that_slurm_refuses_leaves_nothing(queue, tmp_path) -> None:
    program(queue, "sbatch", "echo 'sbatch: error: invalid partition' >&2; exit 1")
    with pytest.raises(TrainError, match="Slurm does not take the job: sbatch: error: invalid partition"):
        nbtune.submit(CPU, rows={"rows": ROWS}, slurm="nodes=2", runs_dir=tmp_path / "runs")
    assert not list((tmp_path / "runs").iterdir())


# -- real ones -----------------------------------------------------------------------------------------------------

REAL = pytest.mark.skipif(not slurm_cluster.is_here(), reason="wants root and Debian's slurmctld, slurmd, munge")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A Slurm of two nodes."""
    with slurm_cluster.cluster(tmp_path_factory.mktemp("slurm")) as environment, pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        yield


def losses(run) -> dict[int, float]:
    return {e.step: e.loss for e in run.events() if isinstance(e, events.Step)}


def shown(run) -> str:
    logs = [path.read_text(errors="replace")[-1500:] for path in run.folder.glob("slurm-*.log")]
    return "\n".join([repr(run), *map(str, run.events()[-4:]), *logs])


@REAL
@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_two_nodes_train_as_one_process_and_stop_and_go_on(cluster, start, until, tmp_path) -> None:
    whole = start("whole", device="cpu", steps=60).wait()
    more = {**CPU, "steps": 60, "checkpoint": {"every": 10}}
    run = nbtune.submit(more, rows={"rows": ROWS}, slurm="nodes=2", name="two", runs_dir=tmp_path / "runs")
    until(run, lambda e: isinstance(e, events.Step) and e.step >= 5, timeout=300)
    assert nbtune.attach("two", tmp_path / "runs").state == "running"
    assert {node.split()[0] for node in _processes(run)} == {"one", "two"}
    run.stop(wait=True)
    assert run.state == "stopped", shown(run)
    assert 5 <= run.step < 60
    run.resume().wait(400)
    assert run.state == "finished", shown(run)
    assert losses(run) == pytest.approx(losses(whole), rel=1e-5)
    assert run.plan.gpus == 2


def _processes(run) -> dict[str, psutil.Process]:
    """The workers of a job, by node and rank."""
    found = {}
    for process in psutil.process_iter():
        try:
            environ = process.environ()
            if (
                process.cmdline()[-1:] == [str(run.folder)]
                and "nbtune.engine" in process.cmdline()
                and "RANK" in environ
            ):
                found[f"{environ['SLURMD_NODENAME']} {environ['RANK']}"] = process
        except psutil.Error:
            continue
    return found


@REAL
@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_process_that_is_killed_is_named_with_its_node_and_the_job_goes_on(cluster, start, until, tmp_path) -> None:
    whole = start("whole", device="cpu", steps=30).wait()
    more = {**CPU, "steps": 30, "checkpoint": {"every": 2}}
    run = nbtune.submit(more, rows={"rows": ROWS}, slurm="nodes=2", name="killed", runs_dir=tmp_path / "runs")
    until(run, lambda e: isinstance(e, events.Checkpoint), timeout=300)
    workers = _processes(run)
    (name,) = [name for name in workers if name.endswith(" 1")]
    workers[name].send_signal(signal.SIGKILL)
    with pytest.raises(TrainError, match=f"its process 2 on {name.split()[0]} was ended by signal 9"):
        run.wait(200)
    psutil.wait_procs(workers.values(), timeout=60)
    assert not _processes(run)
    run.resume().wait(400)
    assert run.state == "finished", shown(run)
    assert losses(run) == pytest.approx(losses(whole), rel=1e-5)


@REAL
@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_run_that_fails_on_a_cluster_says_why(cluster, tmp_path) -> None:
    more = {**CPU, "learning_rate": 1e38, "max_grad_norm": 0, "steps": 100}
    run = nbtune.submit(more, rows={"rows": ROWS}, slurm="nodes=2", runs_dir=tmp_path / "runs")
    assert run._join(300)
    assert run.state == "failed", shown(run)
    assert "is no number any more" in str(run.error)
    assert json.loads((run.folder / "environment.json").read_text())["name"] == "run"
