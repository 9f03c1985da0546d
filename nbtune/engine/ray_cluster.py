"""A run on a Ray cluster: `ray.train.torch.TorchTrainer` places the processes, lets them meet and starts them again.

    cluster: {engine: ray, workers: 16}                  (`python -m nbtune.engine RUN_DIR` comes to `drive`)

Each worker calls the very function that a process of `gpus:` or torchrun calls, on the run's folder, which all machines
must see: its events, wishes and checkpoints are those of any run. Which machines, when, what counts as lost, and how
often it is tried again is Ray's work; a worker group that is new goes on from the last checkpoint in the folder,
whatever its number.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import sys
import threading
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbtune import events
from nbtune.engine.distributed_launcher import WITNESS, refuse, said_its_end
from nbtune.errors import NbtuneError, TrainError
from nbtune.store.control import FileControl
from nbtune.store.event_log import EventReader, add_event
from nbtune.store.lock import wait_until_free

if TYPE_CHECKING:
    from nbtune.spec import RunSpec
    from nbtune.spec.cluster import ClusterSpec

_LONG = 7 * 86400  # seconds that preparing, saving and pausing may take
_FINAL = "final"  # in the run's folder of Ray's: it failed of something that another try would not mend
_USUAL = {  # a busy machine takes minutes to import torch; nobody is told
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "120",
    "RAY_raylet_start_wait_time_s": "300",
    "RAY_USAGE_STATS_ENABLED": "0",
}


_HERE = {  # read when Ray is imported: its servers listen on the loopback interface, as on macOS
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    **({"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}),
}


def drive(folder: Path, spec: RunSpec) -> int:
    """Give a run to Ray, and wait for its end; 0: it did well, else the reason stands in the folder.

    Raises:
        TrainError: there is no Ray, or it cannot be reached.
    """
    for name, value in _USUAL.items():
        os.environ.setdefault(name, value)
    if _is_here(spec.cluster):
        os.environ.update(_HERE)
    ray = _connected(spec.cluster)
    own = folder / "ray"
    shutil.rmtree(own, ignore_errors=True)
    own.mkdir()
    try:
        gpus = _has_gpus(ray, spec)
        _say_queued(folder, ray, spec, gpus)
        threading.Thread(target=_heed_stop, args=(folder,), name="nbtune-ray-stop", daemon=True).start()
        return _fit(folder, spec, gpus)
    finally:
        shutil.rmtree(own, ignore_errors=True)
        with contextlib.suppress(Exception):
            ray.shutdown()


def _connected(cluster: ClusterSpec) -> Any:
    try:
        import ray
        import ray.train.torch
    except ImportError as error:
        raise TrainError(f"`cluster: ray` needs Ray ({error})", fix="pip install 'nbtune[ray]'") from error
    address = _address(cluster)
    how: dict[str, Any] = {"include_dashboard": False} if _is_here(cluster) else {}
    try:
        _knock(address)
        ray.init(address=address, log_to_driver=False, **how)
    except Exception as error:  # Ray raises that very class, too
        words = " ".join(str(error).split())[:200]
        raise TrainError(
            f"there is no Ray at `{address}`: {words}",
            fix="`ray start --head` on one machine, `ray start --address HOST:6379` on the others, or `address: local`",
        ) from error
    return ray


def _address(cluster: ClusterSpec) -> str:
    return cluster.address or os.environ.get("RAY_ADDRESS") or "auto"


def _is_here(cluster: ClusterSpec) -> bool:
    """Return whether Ray is started here, for this run alone: then nothing of it listens for other machines."""
    return _address(cluster) == "local"


def _knock(address: str) -> None:
    """See that somebody is at HOST:PORT: Ray itself waits for minutes.

    Raises:
        OSError, ValueError: nobody is, or it is no such address.
    """
    if address not in ("auto", "local"):
        host, _, port = address.rpartition("://")[2].rpartition(":")
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def _has_gpus(ray: Any, spec: RunSpec) -> bool:
    return spec.device == "cuda" or (spec.device == "auto" and ray.cluster_resources().get("GPU", 0) >= 1)


def _say_queued(folder: Path, ray: Any, spec: RunSpec, gpus: bool) -> None:
    kind = "GPU" if gpus else "CPU"
    there, wanted = int(ray.cluster_resources().get(kind, 0)), spec.cluster.workers
    least = wanted[0] if isinstance(wanted, tuple) else wanted
    words = f"waits for Ray: {least} workers, a {kind} each" if least > 1 else f"waits for Ray: a worker with a {kind}"
    add_event(folder, events.State(state="queued", detail=words))
    if there < least:
        short = f"Ray has {there} {kind}s of {least}: the run waits until it has more"
        add_event(folder, events.Warning(message=short, fix="add machines (`ray start --address …`), or ask for fewer"))


def _heed_stop(folder: Path) -> None:
    """End a run that is to stop while it waits for Ray: nobody else looks at wishes then."""
    control = FileControl(folder)
    while control.look().mode != "stop":
        time.sleep(0.5)
    last = next((e for e in reversed(EventReader(folder / "events.jsonl").read()) if e.type == "state"), None)
    if isinstance(last, events.State) and last.state == "queued":
        add_event(folder, events.State(state="stopped", detail="it had not begun"))
        os._exit(0)  # Ray ends what it has started for a process that is gone


def _fit(folder: Path, spec: RunSpec, gpus: bool) -> int:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.backend import Backend
    from ray.train.torch import TorchConfig, TorchTrainer

    class Meeting(TorchConfig):  # torch's own way to meet listens for other machines
        @property
        def backend_cls(self) -> type[Backend]:
            return Backend

    cluster, here = spec.cluster, _is_here(spec.cluster)
    trainer = TorchTrainer(
        work,
        train_loop_config={"folder": str(folder), "here": here},
        torch_config=(Meeting if here else TorchConfig)(
            backend="cpu:gloo,cuda:nccl" if gpus else "gloo", timeout_s=_LONG
        ),
        scaling_config=ScalingConfig(num_workers=cluster.workers, use_gpu=gpus),
        run_config=RunConfig(
            name=f"{folder.name}-{uuid.uuid4().hex[:6]}",  # Ray would go on with one of the same name
            storage_path=str(folder / "ray"),
            failure_config=FailureConfig(max_failures=cluster.failures),
        ),
    )
    try:
        trainer.fit()
    except Exception as error:  # noqa: BLE001 - of Ray's own kinds, each a story of many lines
        if not said_its_end(folder):
            words = " ".join(str(error).split())[-300:]
            add_event(folder, events.State(state="interrupted", detail=f"Ray gave it up: {words}"))
        return 1
    return 1 if (folder / "ray" / _FINAL).exists() else 0


def work(config: dict[str, Any]) -> None:
    """Do one process's share of a run, inside a worker of Ray's.

    Raises:
        RuntimeError: Ray is to start the workers again.
    """
    from nbtune.engine.share import share
    from nbtune.train.distributed import Ranks

    folder = Path(config["folder"])
    final = folder / "ray" / _FINAL
    if final.exists():
        return
    ranks = Ranks.join(_meeting(folder) if config["here"] else None)
    try:
        if ranks is None or ranks.first:
            wait_until_free(folder)  # a machine that is lost may hold it for a while
            _say_again(folder)
        code = share(folder, ranks, compare=ranks is not None)
    except NbtuneError as error:
        final.touch()
        if ranks is not None and not ranks.first:
            refuse(folder, error)
        raise RuntimeError(str(error)) from None
    if code == WITNESS:
        raise RuntimeError("another worker has ended")
    if code:
        final.touch()
        raise RuntimeError("the run cannot go on; its folder says why")


def _meeting(folder: Path) -> str:
    """Return a new folder in which the workers of one machine meet, and say in the environment who this one is."""
    from ray.train import get_context
    from ray.train.collective import broadcast_from_rank_zero

    about = get_context()
    numbers = (about.get_world_rank(), about.get_local_rank(), about.get_world_size())
    os.environ.update(zip(("RANK", "LOCAL_RANK", "WORLD_SIZE"), map(str, numbers), strict=True))
    place = folder / "ray" / str(broadcast_from_rank_zero(uuid.uuid4().hex))
    place.mkdir(exist_ok=True)
    return str(place)


def _say_again(folder: Path) -> None:
    said = EventReader(folder / "events.jsonl").read()
    last = next((e for e in reversed(said) if isinstance(e, events.State)), None)
    if last is not None and last.state not in ("queued", *events.ENDED):
        add_event(folder, events.Warning(message="a worker was lost: Ray has started them again"))
