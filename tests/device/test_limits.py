"""What a process may take: of cgroups (v1, v2), the machine's owner, environment and spec the smallest limit."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import nbtune
from nbtune import device
from nbtune.device import limits, memory, site_file
from nbtune.errors import NbtuneError, PlanError

GIB = 2**30
ROWS = [{"prompt": "Hi", "completion": "Ahoy!"}] * 16


@pytest.fixture(autouse=True)
def big_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of 64 cores and 256 GiB, whose files of cgroups the test writes; nobody else limits anything."""
    monkeypatch.setattr(limits, "_CGROUP", tmp_path / "cgroup")
    monkeypatch.setattr(limits, "_OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr(site_file, "_ETC", tmp_path / "etc.toml")
    for name in ("NBTUNE_SITE", "NBTUNE_VRAM_GIB", "NBTUNE_RAM_GIB", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    monkeypatch.setattr(limits, "_memory", lambda: SimpleNamespace(total=256 * GIB, available=200 * GIB))
    return tmp_path


def write(root: Path, own: str, **files: str) -> None:
    """Write which groups the process is in, and files of theirs ("a/b:name" → text)."""
    (root / "own").write_text(own)
    for place, text in files.items():
        path = root / "cgroup" / place.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


V2 = {"memory_dot_max": str(2 * GIB), "memory_dot_current": str(300 * 2**20), "cpu_dot_max": "100000 100000"}
V1 = {
    "memory__memory_dot_limit_in_bytes": str(2 * GIB),
    "memory__memory_dot_usage_in_bytes": str(300 * 2**20),
    "cpu__cpu_dot_cfs_quota_us": "100000",
    "cpu__cpu_dot_cfs_period_us": "100000",
}
V1_OWN = "4:memory:/docker/3f2a\n3:cpu,cpuacct:/docker/3f2a\n0::/\n"


@pytest.mark.parametrize(
    ("own", "files"),
    [
        ("0::/\n", V2),  # a container: its group is the root of what it sees
        ("0::/../../system.slice\n", V2),  # one that shares the host's names
        ("0::/user.slice/job\n", {f"user.slice__job__{name}": text for name, text in V2.items()}),  # systemd, Slurm
        ("0::/user.slice/job/step\n", {f"user.slice__{name}": text for name, text in V2.items()}),  # one above
        (V1_OWN, V1),  # v1 in a container: paths are the host's
        ("4:memory:/job\n3:cpu,cpuacct:/job\n", {k.replace("__", "__job__", 1): text for k, text in V1.items()}),
        (
            "3:cpu,cpuacct:/\n4:memory:/\n",
            {k.replace("cpu__", "cpu,cpuacct__", 1): text for k, text in V1.items()},
        ),
    ],
)
def test_a_container_of_one_core_and_two_gib_plans_one_thread_and_no_more_than_it_has(
    big_machine: Path, own: str, files: dict[str, str]
) -> None:
    write(big_machine, own, **files)
    assert (device.cpu_count(), device.ram_total()) == (1, 2 * GIB)
    plan = nbtune.plan(data=ROWS, steps=2, device="cpu", batch_size=512, sequence_len=2048)
    assert plan.threads == 1
    assert plan.peak_bytes <= 1.8 * GIB
    assert plan.micro_batch_size < 512  # 256 GiB would have taken all
    told = " ".join(plan.reasons)
    assert "at most 2.0 GiB" in told
    assert "1 core is used" in told
    assert "64 cores are visible" in told
    assert "container" in told


def test_what_does_not_fit_says_whose_limit_it_is(big_machine: Path) -> None:
    write(big_machine, "0::/\n", **V2)
    with pytest.raises(PlanError, match=r"the limit of its container \(cgroup\) allows 2\.0 GiB"):
        nbtune.plan(data=ROWS, steps=2, device="cpu", micro_batch_size=512, sequence_len=2048)


def test_files_that_were_read_do_not_count_as_taken(big_machine: Path) -> None:
    """A model's file fills a container's cache: the kernel drops it when somebody wants memory."""
    full = V2 | {"memory_dot_current": str(2 * GIB)}
    write(big_machine, "0::/\n", **full)
    assert limits.ram_available() == 0
    write(big_machine, "0::/\n", **full, memory_dot_stat=f"anon 5\ninactive_file {GIB}\n")
    assert limits.ram_available() == GIB


def test_without_limits_the_machine_counts(big_machine: Path) -> None:
    write(
        big_machine,
        "4:memory:/\n3:cpu:/\n",
        memory__memory_dot_limit_in_bytes=str(2**63 - 4096),
        cpu__cpu_dot_cfs_quota_us="-1",
        cpu__cpu_dot_cfs_period_us="100000",
    )
    assert (device.cpu_count(), device.ram_total(), device.ram_available()) == (64, 256 * GIB, 200 * GIB)
    assert nbtune.plan(data=ROWS, steps=2, device="cpu").threads == 64
    assert limits.ram_limit() is None
    assert limits.core_limit() is None


@pytest.mark.parametrize(
    ("own", "above", "cores"),
    [
        ("50000 100000", "max 100000", 1), ("199000 100000", "max 100000", 1), ("250000 100000", "max 100000", 2),
        ("400000 100000", "900000 100000", 4), ("400000 100000", "300000 100000", 3),
        ("max 100000", "800000 50000", 16),
        ("6300000 100000", "max 100000", 63), ("6400000 100000", "max 100000", None),
        ("max 100000", "max 100000", None),
    ],
)  # fmt: skip
def test_of_the_shares_of_a_group_and_those_above_it_the_smallest_counts_in_whole_cores(
    big_machine: Path, monkeypatch: pytest.MonkeyPatch, own: str, above: str, cores: int | None
) -> None:
    """As many cores as there are, or more, are no limit, and none is said."""
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    write(big_machine, "0::/a/b\n", a__b__cpu_dot_max=own, a__cpu_dot_max=above)
    limit = limits.core_limit()
    assert (limit.value if limit else None) == cores
    assert device.cpu_count() == (cores or 64)
    said = limits.share_in_words()
    assert said.startswith(
        f"{cores} core{'s' if cores != 1 else ''} (of 64 in the machine: " if cores else "64 cores, "
    )
    assert said.endswith("200.0 GiB of 256.0 GiB RAM free")
    write(big_machine, "0::/a\n", a__memory_dot_max=str(2 * GIB), a__memory_dot_current="0")
    assert "container" in limits.share_in_words().partition("2.0 GiB of 2.0 GiB RAM free: ")[2]


@pytest.mark.parametrize(("word", "threads"), [("4", 4), (" 3 ", 3), ("4,2", 4), ("", 0), ("many", 0), ("-1", 0)])
def test_threads_that_the_environment_asks_for(word: str, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert limits.threads_wished() == 0
    monkeypatch.setenv("OMP_NUM_THREADS", word)
    assert limits.threads_wished() == threads


@pytest.mark.parametrize("smaller", ["spec", "variable", "site", "container"])
def test_the_smallest_limit_counts_and_is_named(
    big_machine: Path, monkeypatch: pytest.MonkeyPatch, smaller: str
) -> None:
    say = {name: 3.0 if name == smaller else 5.0 for name in ("spec", "variable", "site", "container")}
    write(big_machine, "0::/\n", memory_dot_max=str(int(say["container"] * GIB)), memory_dot_current="0")
    (big_machine / "etc.toml").write_text(f"ram_gib = {say['site']}\nthreads = 3\n")
    monkeypatch.setenv("NBTUNE_RAM_GIB", str(say["variable"]))
    plan = nbtune.plan(data=ROWS, steps=2, device="cpu", memory={"ram_gib": say["spec"]})
    names = {"spec": "memory.ram_gib", "variable": "NBTUNE_RAM_GIB", "site": "etc.toml", "container": "container"}
    (reason,) = [reason for reason in plan.reasons if "of memory at most 3.0 GiB" in reason]
    assert names[smaller] in reason
    assert plan.available_bytes <= 3 * GIB
    assert plan.threads == 3


def test_a_plan_for_another_machine_keeps_the_specs_limit_and_none_of_this_ones(
    big_machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NBTUNE_VRAM_GIB", "1")
    whole = nbtune.plan(data=ROWS, steps=2, machine="t4")
    capped = nbtune.plan(data=ROWS, steps=2, machine="t4", memory={"vram_gib": 6})
    assert whole.available_bytes > 14 * GIB
    assert capped.available_bytes == 6 * GIB
    assert any("6.0 GiB are taken: `memory.vram_gib`" in reason for reason in capped.reasons)


@pytest.mark.parametrize("text", ["abc", "-1", "0", "nan", "inf", "8 GB", "8,5"])
def test_a_limit_that_is_no_number_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("NBTUNE_RAM_GIB", text)
    with pytest.raises(PlanError, match="NBTUNE_RAM_GIB"):
        device.describe(device.pick("cpu"))


@pytest.mark.parametrize(
    "text", ["vram = 8", "ram_gib = 'much'", "ram_gib = -1", "threads = 1.5", "threads = true", "ram_gib =", "\x00"]
)
def test_a_site_file_that_is_odd_is_refused_with_its_place(big_machine: Path, text: str) -> None:
    (big_machine / "etc.toml").write_text(text)
    with pytest.raises(NbtuneError, match=r"etc\.toml"):
        device.describe(device.pick("cpu"))


def test_a_site_file_that_is_named_limits_further_and_never_grants(
    big_machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (big_machine / "etc.toml").write_text("threads = 4")
    for text, threads in (("threads = 9", 4), ("threads = 2", 2), ("", 4)):
        (big_machine / "mine.toml").write_text(text)
        monkeypatch.setenv("NBTUNE_SITE", str(big_machine / "mine.toml"))
        assert device.cpu_count() == threads


def test_a_site_file_that_is_named_and_not_there_limits_nobody_in_silence(
    big_machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A letter wrong in its name, and thirty students would have no limit."""
    monkeypatch.setenv("NBTUNE_SITE", str(big_machine / "miine.toml"))
    with pytest.raises(PlanError, match="not there"):
        device.describe(device.pick("cpu"))


def test_a_run_works_by_the_threads_that_it_may_have(big_machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (big_machine / "etc.toml").write_text("threads = 2")
    before, seen = torch.get_num_threads(), []
    torch.set_num_threads(3)
    monkeypatch.setattr("nbtune.engine.engine._Engine.train", _noting(seen))
    try:
        run = nbtune.finetune(data=ROWS, steps=1, batch_size=2, device="cpu", name="threads").wait()
        assert run.state == "finished", run.error
        assert seen == [2]
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def _noting(seen: list[int]):  # type: ignore[no-untyped-def]
    from nbtune.engine.engine import _Engine

    train = _Engine.train

    def noting(engine):  # type: ignore[no-untyped-def]
        seen.append(torch.get_num_threads())
        return train(engine)

    return noting


def test_a_card_is_held_to_its_limit_from_before_the_model_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """No card is here: torch's answers are played, with what it was told."""
    told: list[float] = []
    card = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _=None: (70 * GIB, 80 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _=None: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _=None: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _=None: "card")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda share, _=None: told.append(share))
    monkeypatch.setattr(
        torch.cuda, "get_per_process_memory_fraction", lambda _=None: told[-1] if told else 1.0, raising=False
    )
    monkeypatch.setenv("NBTUNE_VRAM_GIB", "12")
    facts = device.describe(card, vram_gib=8)
    assert (facts.total, facts.free, facts.cap) == (8 * GIB, 8 * GIB, 8 * GIB)
    assert "memory.vram_gib" in facts.cap_why
    with device.within_limits(card, facts):
        beside = 8 * GIB - told[-1] * 80 * GIB
        assert beside == pytest.approx(memory._BESIDE)  # CUDA's context is not of the allocator
        assert device.describe(card).cap == pytest.approx(8 * GIB, rel=1e-6)  # whoever asks now knows of it
    assert told[-1] == 1.0
    assert device.describe(card, vram_gib=200).cap == 12 * GIB
