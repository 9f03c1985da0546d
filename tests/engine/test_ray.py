"""`cluster: {engine: ray}`: what a spec may say, what is said without Ray, and real ones of two machines."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest

import nbtune
from nbtune import events
from nbtune.engine import ray_cluster
from nbtune.errors import SpecError
from nbtune.spec import from_mapping
from nbtune.store.event_log import EventReader
from tests.engine.conftest import ROWS, SPEC
from tests.notebook.kernel import Kernel
from tests.support import ray_machines

CPU = {**SPEC, "device": "cpu", "batch_size": 4, "eval": {"split": 0.2, "every": 3}}
REAL = pytest.mark.skipif(not ray_machines.is_here(), reason="wants Ray, root, and Linux's ip")


def test_a_word_is_an_engine() -> None:
    assert from_mapping({"data": "rows", "cluster": "ray"}).cluster.used
    assert not from_mapping({"data": "rows"}).cluster.used
    assert from_mapping({"data": "rows", "cluster": {"engine": "ray", "workers": [2, 8]}}).cluster.most == 8


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "[::1]:1", "nowhere", "host:many", ":", ""])
def test_nobody_at_an_address_is_known_at_once(address: str) -> None:
    with pytest.raises((OSError, ValueError)):
        ray_cluster._knock(address)
    ray_cluster._knock("auto")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"cluster": "slurm"}, "'none' or 'ray'"),
        ({"cluster": {"engine": "ray", "workers": 0}}, "`workers` is a number from 1 on"),
        ({"cluster": {"engine": "ray", "workers": [4, 2]}}, "the smaller one first"),
        ({"cluster": {"engine": "ray", "workers": True}}, "workers"),
        ({"cluster": {"engine": "ray", "failures": -2}}, "failures"),
        ({"cluster": {"engine": "ray", "nodes": 2}}, "nodes"),
        ({"cluster": "ray", "gpus": 2}, "`cluster` and `gpus` exclude each other"),
        ({"cluster": "ray", "weights": "sharded"}, "parted among several"),
        ({"cluster": "ray", "method": "grpo", "rewards": "good"}, "does not know `cluster"),
    ],
)
def test_what_no_cluster_can_be_asked_for_is_refused_in_a_sentence(change: dict, words: str) -> None:
    with pytest.raises(SpecError) as caught:
        from_mapping({"data": "rows", **change})
    assert words in str(caught.value)


def test_a_run_says_where_it_found_no_ray(tmp_path: Path) -> None:
    """Without Ray installed; or with it, and nobody at that address."""
    spec = {**CPU, "cluster": {"engine": "ray", "workers": 2, "address": "127.0.0.1:1"}}
    run = nbtune.finetune(spec, name="far", rows={"rows": ROWS}, runs_dir=tmp_path)
    with pytest.raises(nbtune.errors.NbtuneError):
        run.wait(300)
    said = run.latest(events.State)
    installed = importlib.util.find_spec("ray") is not None
    assert said.state == "failed"
    assert ("there is no Ray at `127.0.0.1:1`" if installed else "`cluster: ray` needs Ray") in said.detail


def test_nobody_here_schedules_beats_or_elects() -> None:
    """Placing, watching and restarting machines is an engine's work: ours only calls it."""
    text = Path(nbtune.__file__).parent.joinpath("engine", "ray_cluster.py").read_text()
    for word in ("heartbeat", "elect", "schedul", ".bind(", ".listen(", "placement_group", "@ray.remote", "Popen"):
        assert word not in text, word
    assert text.count("TorchTrainer(") == 1
    for name in ("ray_cluster", "slurm", "job_files", "node", "alike", "share"):
        words = Path(nbtune.__file__).parent.joinpath("engine", f"{name}.py").read_text().lower()
        assert not re.search(
            r"\b(heartbeat\w*|elect(s|ed|ion)?|leader|quorum|lease\w*|schedul(e|er|es|ing))\b", words
        ), name


# -- real ones -----------------------------------------------------------------------------------------------------


def losses(folder: Path) -> dict[int, float]:
    return {e.step: e.loss for e in EventReader(folder / "events.jsonl").read() if isinstance(e, events.Step)}


def trained(runs: Path, name: str, **fields: object) -> nbtune.Run:
    return nbtune.finetune({**CPU, **fields}, name=name, rows={"rows": ROWS}, runs_dir=runs)


@REAL
@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_two_machines_from_shell_and_kernel_are_one_process_and_outlive_one_of_them(tmp_path: Path) -> None:
    steps = 60
    fields: dict = {"steps": steps, "checkpoint": {"every": 2, "keep": 2}}
    one = trained(tmp_path, "one", **fields).wait(600)
    with ray_machines.cluster(tmp_path) as machines:
        code = (
            "import sys, nbtune; from tests.engine.test_ray import trained; from pathlib import Path\n"
            "run = trained(Path(sys.argv[1]), 'kernel', steps=6, cluster={'engine': 'ray', 'workers': 2})\n"
            "run.wait(900); print(run.state, run.folder.name)"
        )
        said = machines.run(sys.executable, "-c", code, str(tmp_path))
        assert said.returncode == 0, said.stdout[-3000:] + said.stderr[-3000:]
        kernel = nbtune.attach("kernel", tmp_path)
        assert kernel.state == "finished"
        assert len(losses(kernel.folder)) == 6

        # in the shell, from one machine to two, one of which is lost
        spec = (one.folder / "spec.yaml").read_text()
        hurt = tmp_path / "hurt-000000"
        shutil.copytree(one.folder, hurt)
        for part in ("events.jsonl", "plan.json", "checkpoints", "adapter"):
            path = hurt / part
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        (hurt / "checkpoints").mkdir()
        (hurt / "spec.yaml").write_text(f"{spec}\ncluster: {{engine: ray, workers: [1, 2]}}\n")
        worker = machines.begin(sys.executable, "-m", "nbtune.engine", str(hurt))
        try:
            ray_machines.until(lambda: worker.poll() is not None or len(losses(hurt)) >= 6, 900)
            before = len(losses(hurt))
            machines.lose(1)
            words = worker.communicate(timeout=1200)[0]
        finally:
            if worker.poll() is None:
                os.killpg(worker.pid, signal.SIGKILL)
        state = [e for e in EventReader(hurt / "events.jsonl").read() if isinstance(e, events.State)][-1]
        assert state.state == "finished", f"{before}: {state} {words[-3000:]}"
        warned = [e.message for e in EventReader(hurt / "events.jsonl").read() if isinstance(e, events.Warning)]
        assert before < steps, "it had ended before it could be hurt"
        assert any("Ray has started them again" in message for message in warned)
    assert losses(hurt) == pytest.approx(losses(one.folder), rel=1e-5, abs=1e-5)


CELL = """%%finetune --name cell
model: nbtune/tiny
data: rows
steps: 400
device: cpu
batch_size: 4
learning_rate: 1e-3
eval: {split: 0.2, every: 50}
cluster: {engine: ray, workers: [1, 2]}
"""


@REAL
@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_a_cells_run_is_seen_live_stopped_by_the_monitor_and_goes_on(tmp_path: Path) -> None:
    one = trained(tmp_path / "runs", "one", steps=400, eval={"split": 0.2, "every": 50}).wait(900)
    with ray_machines.cluster(tmp_path) as machines:
        with Kernel(tmp_path, before=machines.before[0], more=machines.environment) as kernel:
            kernel.run(f"%load_ext nbtune\nrows = {ROWS!r}", timeout=300)
            reply = kernel.run(CELL, timeout=300)
            assert reply.status == "ok", reply.text
            shown = reply.outputs("application/vnd.jupyter.widget-view+json")
            monitor = shown[0]["data"]["application/vnd.jupyter.widget-view+json"]["model_id"]
            seen: set[int] = set()
            for _ in range(600):  # as a page that has missed something asks
                data = {"method": "custom", "content": {"t": "need"}}
                kernel.client.shell_channel.send(
                    kernel.client.session.msg("comm_msg", {"comm_id": monitor, "data": data})
                )
                said = kernel.until(lambda m: told(m).get("t") == "s", 120)
                seen.add(told(said)["status"]["step"])
                if len(seen) > 2:
                    break
                time.sleep(0.5)
            assert len(seen) > 2, reply.text
            kernel.click(monitor, "stop")
            kernel.run("run._join(300)", timeout=400)
            assert kernel.value("run.state") == "'stopped'"
            at = int(kernel.value("run.step"))
            assert 0 < at < 400
            kernel.run("run.resume()", timeout=300)
            kernel.run("run._join(900)", timeout=1000)
            assert kernel.value("run.state") == "'finished'"
        cell = nbtune.attach("cell", tmp_path / "runs")
    assert losses(cell.folder) == pytest.approx(losses(one.folder), rel=1e-3, abs=1e-4)  # of 0.004 at last
    assert any(event.tokens and len(event.seconds) == 2 for event in cell.events() if event.type == "processes")


def told(message: dict) -> dict:
    """What a panel says to its page."""
    data = message["content"].get("data", {}) if message["msg_type"] == "comm_msg" else {}
    return data.get("content", {}) if data.get("method") == "custom" else {}
