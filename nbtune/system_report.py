"""What this machine is and has, how rows are read, and what to mend. Looks, changes nothing, asks no network.

    for finding in examine():            # nbtune doctor
        print(finding.mark, finding.topic, finding.text, finding.fix)
    print(examine_rows(spec).report)     # nbtune data

A token of the Hub is looked for, and never read into what is said.
"""

from __future__ import annotations

import importlib.metadata as metadata
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from nbtune import device as machine
from nbtune import hub_cache
from nbtune.device.limits import share_in_words
from nbtune.disk import cache_folder, free_bytes, home_folder
from nbtune.errors import NbtuneError
from nbtune.spec import RunSpec

if TYPE_CHECKING:
    from nbtune.data import Prepared, Report

_MARKS = {"ok": "✓", "note": "·", "problem": "✗"}
_NEEDED = ("torch", "transformers", "peft", "datasets", "accelerate", "huggingface_hub", "safetensors", "gguf")
_SHOWN = (*_NEEDED, "triton", "bitsandbytes", "trl", "ipykernel", "ipywidgets", "anywidget", "plotly", "jupyterlab")
_LOW_DISK = 5 * 2**30


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at; `fix` says what to do where something should be done."""

    topic: str
    status: Literal["ok", "note", "problem"]
    text: str
    fix: str = ""

    @property
    def mark(self) -> str:
        """✓, · or ✗."""
        return _MARKS[self.status]

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return asdict(self)


@dataclass(frozen=True)
class Cached:
    """Something in a cache: how big it is, in bytes."""

    kind: str
    name: str
    bytes: int

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return asdict(self)


def examine(*, offline: bool = False) -> list[Finding]:
    """Return all findings, the machine first; `offline` adds what is missing to work without a network."""
    looks: list[Callable[[], Iterator[Finding]]] = [_machine, _device, _versions, _widgets, _disk, _shared, _hub]
    if offline:
        looks.append(_offline)
    return [finding for look in looks for finding in look()]


@dataclass(frozen=True, repr=False)
class Rows:
    """Rows as a run would read them."""

    prepared: Prepared
    tokenizer: Any

    @property
    def report(self) -> Report:
        """Every row's fate, counts, warnings."""
        return self.prepared.report

    def __repr__(self) -> str:
        return str(self.report)

    def _repr_html_(self) -> str:
        return self.report._repr_html_()

    def each(self) -> Iterator[dict[str, Any]]:
        """Yield per example, in the order of the rows: row, source, status (used, held out, cut, split, dropped),
        reason, input_ids, labels (-100 where nothing is trained) and text; a dropped row has no tokens."""
        fates = {(source, row): (status, reason) for source, row, status, reason in self.report.fates}
        parts = [(self.prepared.train, "used"), (self.prepared.eval, "held out")]
        entries: list[tuple[str, int, int, int]] = []  # source, row, which part, which example
        for number, (part, _) in enumerate(parts):
            if part is not None:
                places = zip(part.source_of.tolist(), part.row_of.tolist(), strict=True)
                entries += [(part.sources[s], row, number, i) for i, (s, row) in enumerate(places)]
        rows_there = {place[:2] for place in entries}
        entries += [(*place, -1, -1) for place in fates if place not in rows_there]
        for source, row, number, index in sorted(entries):
            part, status = parts[number] if number >= 0 else (None, "dropped")
            example = part[index] if part is not None else None
            fate, reason = fates.get((source, row), (status, ""))
            ids: list[int] = example.input_ids if example is not None else []
            yield {
                "row": row,
                "source": source,
                "status": fate,
                "reason": reason,
                "input_ids": ids,
                "labels": example.labels if example is not None else [],
                "text": self.tokenizer.decode(ids),
            }


def examine_rows(spec: RunSpec, namespace: Mapping[str, Any] | None = None) -> Rows:
    """Read and tokenise the rows of a spec as a run would, without training.

    Args:
        spec: its model says whose tokenizer and template.
        namespace: where variables named by `data:` are looked up.
    Raises:
        NbtuneError: as a run would.
    """
    from nbtune import data, models

    sources = data.resolve(spec.data, namespace, base_dir=Path.cwd())
    tokenizer = models.load_tokenizer(spec.speaks, trust_remote_code=spec.trust_remote_code)
    max_len = models.model_facts(spec.model).row_tokens(spec.sequence_len)
    options = {"spec": spec, "max_len": max_len, "seed": spec.seed, "on_error": "skip", "work_here": True}
    return Rows(data.prepare_data(sources, tokenizer, **options).whole(), tokenizer)


def _machine() -> Iterator[Finding]:
    python = f"Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    yield Finding("machine", "ok", python)
    try:
        yield Finding("cores and RAM", "ok", share_in_words())
    except NbtuneError as error:
        yield Finding("cores and RAM", "problem", str(error).splitlines()[0], error.fix or "")


def _device() -> Iterator[Finding]:
    try:
        facts = machine.describe(machine.pick("auto"))
    except ImportError:
        yield Finding("device", "problem", "torch is not there", "install torch: see its own page for your system")
        return
    except (NbtuneError, RuntimeError) as error:
        yield Finding("device", "problem", str(error).splitlines()[0], "mend the driver, or set `device: cpu`")
        return
    dtype, why = machine.choose_dtype("auto", facts)
    memory = f"{_gib(facts.free)} of {_gib(facts.total)} free"
    yield Finding("device", "ok", f"{facts.name}, {memory}; trains in {dtype}: {why}")
    if facts.kind == "cuda" and not machine.pinnable():
        yield Finding(
            "pinned RAM", "note", "this machine refuses it: copies to the GPU wait for it", "give WSL more memory"
        )
    if facts.kind == "cpu" and shutil.which("nvidia-smi"):
        yield Finding(
            "GPU", "problem", "there is an NVIDIA driver, but this torch cannot use it", "install a CUDA build of torch"
        )


def _versions() -> Iterator[Finding]:
    floors = _floors()
    for name in _SHOWN:
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            if name in _NEEDED:
                yield Finding(name, "problem", "is not there", f"pip install '{name}{floors.get(name, '')}'")
            continue
        spec = floors.get(name, "")
        if spec and not _satisfies(version, spec):
            yield Finding(name, "problem", f"{version} is not {spec}", f"pip install '{name}{spec}', then restart")
        elif (loaded := _loaded_version(name)) and loaded.split("+")[0] != version.split("+")[0]:
            yield Finding(name, "problem", f"{loaded} is loaded, {version} is installed", "restart the kernel once")
        else:
            yield Finding(name, "ok", f"{version}{f' ({spec})' if spec else ''}")


def _floors() -> dict[str, str]:
    """Return version ranges of nbtune's own requirements, by the name of the package."""
    from packaging.requirements import InvalidRequirement, Requirement

    try:
        lines = metadata.requires("nbtune") or []
    except metadata.PackageNotFoundError:  # a source tree that was not installed
        lines = []
    floors: dict[str, str] = {}
    for line in lines:
        try:
            requirement = Requirement(line)
        except InvalidRequirement:
            continue
        floors.setdefault(requirement.name.replace("-", "_").lower(), str(requirement.specifier))
    return floors


def _satisfies(version: str, spec: str) -> bool:
    from packaging.specifiers import SpecifierSet

    return SpecifierSet(spec).contains(version, prereleases=True)


def _loaded_version(name: str) -> str:
    return str(getattr(sys.modules.get(name), "__version__", ""))


def _widgets() -> Iterator[Finding]:
    missing = [name for name in ("anywidget", "ipywidgets") if not _installed(name)]
    if missing:
        packages = " ".join(missing)
        yield Finding("widgets", "problem", f"{packages} not in the kernel's environment", f"pip install {packages}")
    lab = _lab_prefix()
    if lab is None:
        yield Finding("notebook", "note", "no Jupyter server started this process: no page to look at")
        return
    where = "the kernel's own environment" if lab == Path(sys.prefix) else "an environment of its own"
    extensions = _labextensions(lab)
    lacking = [
        package
        for package, folder in {"anywidget": "anywidget", "ipywidgets": "@jupyter-widgets/jupyterlab-manager"}.items()
        if not any((root / folder).is_dir() for root in extensions)
    ]
    if lacking:
        python = lab / ("python.exe" if os.name == "nt" else "bin/python")
        fix = f"{_short(python)} -m pip install {' '.join(lacking)}, then reload the page"
        yield Finding("notebook", "problem", f"JupyterLab runs in {where} and cannot show {' and '.join(lacking)}", fix)
    else:
        yield Finding("notebook", "ok", f"JupyterLab runs in {where} and can show the panels")


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _lab_prefix() -> Path | None:
    """Return the environment of the Jupyter server that started this kernel: the prefix of its Python."""
    if "JPY_PARENT_PID" not in os.environ and "JPY_SESSION_NAME" not in os.environ:
        return None
    import psutil

    try:
        for parent in psutil.Process().parents():
            command = parent.cmdline()
            if any("jupyter" in Path(word).name for word in command[:3]):
                return Path(command[0]).parent.parent if os.name != "nt" else Path(command[0]).parent
    except psutil.Error:
        return None
    return None


def _labextensions(prefix: Path) -> list[Path]:
    roots = [prefix / "share/jupyter", home_folder() / ".local/share/jupyter", Path("/usr/local/share/jupyter")]
    roots += [Path(entry) for entry in os.environ.get("JUPYTER_PATH", "").split(os.pathsep) if entry]
    return [root / "labextensions" for root in roots]


def _disk() -> Iterator[Finding]:
    for topic, folder in {"runs folder": _runs_root(), "Hub cache": hub_cache.user_cache()}.items():
        folder_there = next(parent for parent in (folder, *folder.parents) if parent.exists())
        text = f"{_short(folder)}, {_gib(free := free_bytes(folder_there))} free"
        if not _writable(folder_there):
            fix = "set NBTUNE_RUNS" if topic == "runs folder" else "set HF_HOME; what is there can still be read"
            yield Finding(topic, "problem" if topic == "runs folder" else "note", f"{text}, cannot be written", fix)
        elif free < _LOW_DISK:
            yield Finding(topic, "note", text, "little: a 7B model takes 15 GB, its checkpoints some more")
        else:
            yield Finding(topic, "ok", text)
    if (cache := cache_folder()).parent == Path(tempfile.gettempdir()):
        yield Finding("nbtune's cache", "note", f"{cache}, since home cannot be written", "set NBTUNE_CACHE to keep it")


def _shared() -> Iterator[Finding]:
    for cache in hub_cache.shared_caches():
        if not cache.is_dir():
            fix = "mount it, or take it out of NBTUNE_SHARED_CACHE"
            yield Finding("shared cache", "problem", f"{_short(cache)} is no folder", fix)
            continue
        counts = " and ".join(f"{len(hub_cache.repos(cache, kind))} {kind}s" for kind in ("model", "dataset"))
        yield Finding("shared cache", "ok", f"{_short(cache)}, {counts}; only read")


def _writable(folder: Path) -> bool:
    """Try whether it is, with a file that is gone at once: root is told yes where it may not, on a
    network folder too."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _hub() -> Iterator[Finding]:
    endpoint = os.environ.get("HF_ENDPOINT", "")
    if endpoint:
        yield Finding("Hub", "note", f"HF_ENDPOINT is set to {endpoint.split('@')[-1]}")
    from huggingface_hub import get_token

    # Only whether there is one: the token itself is in no variable here.
    if get_token():
        source = "HF_TOKEN" if os.environ.get("HF_TOKEN") else "a stored login"
        yield Finding("Hub login", "ok", f"yes, by {source}")
    else:
        yield Finding("Hub login", "note", "no: public models only, and no push", "hf auth login, or set HF_TOKEN")


def _offline() -> Iterator[Finding]:
    models = hub_cache.cached("model")
    lacking = _not_whole(models)
    whole = [name for name in models if name not in lacking]
    where = "caches" if hub_cache.shared_caches() else "cache"
    text = f"nbtune/tiny and {len(whole)} models of the {where}" if whole else "nbtune/tiny only"
    yield Finding("models without a network", "ok" if whole else "note", text)
    for name, runs in {**{name: [] for name in lacking}, **_wanted_by_runs(whole)}.items():
        text = f"the run {', '.join(runs)} needs it" if runs else f"only a part of it is in the {where}"
        yield Finding(f"model {name}", "problem", text, f"hf download {name}, while there is a network")
    if os.environ.get("HF_HUB_OFFLINE", "").lower() not in ("1", "true", "yes", "on"):
        yield Finding("HF_HUB_OFFLINE", "note", "is not set", "set it to 1, so that nothing tries the network first")


def _not_whole(models: list[str]) -> list[str]:
    """Return those whose weights are not all in one of the caches."""
    from nbtune.models import missing_bytes

    return [name for name in models if missing_bytes(name, 1)]


def _wanted_by_runs(whole: list[str]) -> dict[str, list[str]]:
    """Return models of the Hub that runs are about and the cache does not hold, with the names of those runs."""
    from nbtune.store import folder as run_folder

    runs_of: dict[str, list[str]] = {}
    for path in run_folder.all_folders(_runs_root()):
        try:
            model = run_folder.read_spec(path).model
        except NbtuneError:  # of a newer nbtune, or half deleted
            continue
        if model != "nbtune/tiny" and model not in whole and not Path(model).expanduser().is_dir():
            runs_of.setdefault(model, []).append(path.name)
    return runs_of


def restart_needed() -> list[str]:
    """Return packages that this process has loaded in another version than the one that is installed, as sentences.

    Looks only at what is imported already, so it costs nothing in a fresh kernel.
    """
    sentences = []
    for name in _SHOWN:
        loaded = _loaded_version(name)
        if loaded and _installed(name) and loaded.split("+")[0] != metadata.version(name).split("+")[0]:
            sentences.append(f"{name} {loaded} is loaded, {metadata.version(name)} is installed")
    return sentences


def cached() -> list[Cached]:
    """Return what the Hub's cache and those of prepared data and decoded GGUF files hold, biggest first."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    from nbtune.data.prepare import cache as prepared
    from nbtune.models.gguf_file.decoded import decoded_files

    try:
        repos = list(scan_cache_dir(hub_cache.user_cache()).repos)
    except CacheNotFound:
        repos = []
    entries = [Cached(repo.repo_type, repo.repo_id, repo.size_on_disk) for repo in repos]
    entries += [Cached("prepared", key[:16], size) for key, size, _ in prepared.entries()]
    return sorted(entries + [Cached("decoded", *found) for found in decoded_files()], key=lambda entry: -entry.bytes)


def _runs_root() -> Path:
    return Path(os.environ.get("NBTUNE_RUNS") or "runs").expanduser().absolute()


def _short(path: Path) -> str:
    """Return a path with the home folder as ~, as it may be pasted into an issue."""
    home, text = str(home_folder()), str(path)
    return "~" + text[len(home) :] if home != "/" and text.startswith(home + os.sep) else text


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"
