"""What a refactoring must leave bit-equal: recorded before it, compared after it.

    python tests/tools/baseline.py record OUT.json
    python tests/tools/baseline.py compare OUT.json --allow help,form

Sections (`--only losses,ids,…`):
    losses  of short CPU runs: methods × adapters × packing × seeds, resumed ones, two processes, big data
    ids     input ids and labels of each data format's example rows, in the inspector and in prepared data
    gguf    bytes of nbtune/tiny in six types, of a run's exports
    help    `--help` of every command
    form    the form's fields
    events  the event log's record types with their fields, and the files of a run's folder (needs losses)

Only what a user reaches is used (`nbtune.*`, the command line, files of run folders and of the cache), so that it runs
unchanged on both sides of a move. A section named by `--allow` may gain (keys, entries, words), but not lose or change.
Figures of two machines differ in their last bits: compare where you recorded.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[2]
SECTIONS = ("losses", "ids", "gguf", "help", "form", "events")
GGUF_TYPES = ("f32", "f16", "bf16", "q8_0", "q4_k_m", "q6_k")
SHOWN = 20  # differences that are printed of a section
_MISSING = "(not there)"


def settle(root: Path) -> None:
    """A home, caches and a working folder of its own, one thread, no network; before a library is imported."""
    for name in [name for name in os.environ if name.startswith(("NBTUNE_", "HF_", "TRANSFORMERS_", "XDG_"))]:
        del os.environ[name]
    paths = [str(REPO), str(REPO / "kernels"), *filter(None, [os.environ.get("PYTHONPATH")])]
    offline = dict.fromkeys(("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"), "1")
    one = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    terminal = {"COLUMNS": "120", "LINES": "50", "NO_COLOR": "1", "TERM": "dumb"}
    homes = {"HOME": str(root / "home"), "HF_HOME": str(root / "hf"), "NBTUNE_CACHE": str(root / "cache")}
    quiet = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"}
    os.environ.update({**offline, **one, **terminal, **homes, **quiet, "PYTHONPATH": os.pathsep.join(paths)})
    (root / "home").mkdir()
    (root / "work").mkdir()
    os.chdir(root / "work")
    sys.path[:0] = paths[:2]


def say(text: str) -> None:
    """To whoever waits."""
    print(text, file=sys.stderr, flush=True)


def nbtune_command(*arguments: str) -> str:
    """What the command line prints."""
    command = [sys.executable, "-m", "nbtune", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr[-2000:]}")
    return done.stdout


def record_ids(root: Path) -> dict[str, Any]:
    """Of each format: tokens as the inspector shows them, and the arrays that a run prepares."""
    from baseline_rows import EXAMPLES
    from baseline_runs import arrays_of_example

    found = {}
    for name, (rows, fields) in EXAMPLES.items():
        found[name] = {"shown": [_shown(rows, fields, number) for number in range(len(rows))]}
        if name not in ("stepwise", "prompts"):  # which no method learns from yet
            found[name]["prepared"] = arrays_of_example(root, name, rows, fields)
    return found


def _shown(rows: Any, fields: dict[str, Any], number: int) -> dict[str, Any]:
    """A row in the inspector: [id, text, flags] a token, written short."""
    import nbtune

    more = {key: value for key, value in fields.items() if key != "source"}
    spec = nbtune.RunSpec(data=[{"source": "var:rows", **fields.get("source", {})}], **more)
    panel = nbtune.inspect(spec, {"rows": rows}, row=number)
    row, summary = panel.row, panel.summary
    counts = {key: summary.get(key) for key in ("tokens", "trained_tokens", "longest", "terminator", "findings")}
    formats = [{key: source.get(key) for key in ("format", "mapping")} for source in summary["sources"]]
    tokens = [repr(token) for token in row["tokens"]]
    shown = {key: row.get(key) for key in ("rendered", "error", "count", "trained", "cut")}
    return {**shown, "tokens": tokens, "summary": counts, "formats": formats}


def record_gguf(root: Path, *, runs: bool) -> dict[str, str]:
    """Digests of GGUF files of nbtune/tiny; with `runs` also of what one of them exports."""
    asked = [word for name in GGUF_TYPES for word in ("--gguf", name)]
    nbtune_command("export", "nbtune/tiny", *asked, "--no-verify", "--out", str(root / "gguf"), "--json")
    found = {}
    for name in GGUF_TYPES:
        (file,) = (root / "gguf").glob(f"*-{name}.gguf")
        found[name] = hashlib.sha256(file.read_bytes()).hexdigest()
    if runs:
        from baseline_runs import take_home

        found |= take_home(root)
    return found


def record_help() -> dict[str, str]:
    """`--help` of the program and of each command that it names."""
    found = {"nbtune": nbtune_command("--help")}
    commands = found["nbtune"].partition("Commands:")[2]
    for name in re.findall(r"^  ([a-z][a-z-]*)", commands, re.MULTILINE):
        found[name] = nbtune_command(name, "--help")
    return found


def record_form() -> dict[str, Any]:
    """The form's synced traits, and the fields that it is made of."""
    import nbtune

    panel = nbtune.form({"rows": [{"prompt": "Hi", "completion": "Ahoy!"}]})
    state = panel.get_state()
    setup = state["setup"]
    fields = {field["key"]: {name: repr(value) for name, value in field.items()} for field in setup["fields"]}
    order = [field["key"] for field in setup["fields"]]
    traits = sorted(name for name in state if not name.startswith("_"))
    rest = {key: value for key, value in setup.items() if key != "fields"}
    return {"traits": traits, "order": order, "fields": fields, "setup": rest, "values": state["values"]}


def record(root: Path, only: set[str]) -> dict[str, Any]:
    """All sections that are asked for, and where they come from."""
    import torch

    torch.set_num_threads(1)
    head = subprocess.run(["git", "-C", str(REPO), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    about = {"commit": head.stdout.strip(), "torch": torch.__version__, "python": platform.python_version()}
    about |= {"cpu": torch.backends.cpu.get_cpu_capability(), "machine": platform.machine()}
    from baseline_runs import event_records, losses

    body: dict[str, Any] = {"about": about}
    needed = only | ({"losses"} if "events" in only else set())
    for section, made in {
        "losses": lambda: losses(root, say),
        "events": lambda: event_records(root / "runs"),
        "gguf": lambda: record_gguf(root, runs="losses" in needed),
        "ids": lambda: record_ids(root),
        "help": record_help,
        "form": record_form,
    }.items():
        if section in needed:
            began = time.monotonic()
            result = made()
            say(f"{section}: {time.monotonic() - began:.0f} s")
            if section in only:
                body[section] = result
    return json.loads(json.dumps(body))


def differences(old: Any, new: Any, *, gain: bool, place: str = "") -> Iterator[str]:
    """What is not as it was, a line each; with `gain` nothing of what was there may be lost or changed."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(key for key in new if key not in old and not gain)]:
            there = f"{place}/{key}"
            if key not in old or key not in new:
                yield f"{there}: {old.get(key, _MISSING)!r:.200} → {new.get(key, _MISSING)!r:.200}"
            else:
                yield from differences(old[key], new[key], gain=gain, place=there)
    elif gain and isinstance(old, list) and isinstance(new, list):
        if not _within(old, new):
            yield f"{place}: {old!r:.400} → {new!r:.400}"
    elif gain and isinstance(old, str) and isinstance(new, str):
        if not _within(re.findall(r"\w+", old), re.findall(r"\w+", new)):
            yield f"{place}: {old!r:.400} → {new!r:.400}"
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for number, (one, other) in enumerate(zip(old, new, strict=True)):
            yield from differences(one, other, gain=gain, place=f"{place}/{number}")
    elif old != new:
        yield f"{place}: {old!r:.400} → {new!r:.400}"


def _within(old: list[Any], new: list[Any]) -> bool:
    """Whether all of `old` is in `new`, in this order."""
    rest = iter(new)
    return all(any(entry == other for other in rest) for entry in old)


def compare(old: dict[str, Any], new: dict[str, Any], only: set[str], allow: set[str]) -> bool:
    """Prints what differs, section by section; whether nothing does."""
    for key, value in old["about"].items():
        if key != "commit" and new["about"].get(key) != value:
            print(f"note: recorded with {key} {value}, compared with {new['about'].get(key)}")
    print(f"{old['about']['commit'][:12]} → {new['about']['commit'][:12]}")
    equal = True
    for section in [section for section in SECTIONS if section in only]:
        found = list(differences(old.get(section, {}), new.get(section, {}), gain=section in allow))
        print(
            f"{section}: {'equal' if not found else f'{len(found)} differences'} ({len(new.get(section, {}))} entries)"
        )
        for line in found[:SHOWN]:
            print(f"  {line}")
        equal = equal and not found
    return equal


def _names(text: str) -> set[str]:
    names = {name for name in text.split(",") if name}
    if odd := names - set(SECTIONS):
        raise argparse.ArgumentTypeError(f"{', '.join(sorted(odd))}: known are {', '.join(SECTIONS)}")
    return names


def main() -> int:
    """Exit 1: something is not as it was."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("record", "compare"))
    parser.add_argument("file", type=Path)
    parser.add_argument("--only", type=_names, default=set(SECTIONS), help="sections, with commas")
    parser.add_argument("--allow", type=_names, default=set(), help="sections that may gain, with commas")
    asked = parser.parse_args()
    file, began = asked.file.absolute(), time.monotonic()
    old = json.loads(file.read_text(encoding="utf-8")) if asked.what == "compare" else dict.fromkeys(SECTIONS)
    only = {section for section in asked.only if section in old}  # what was not recorded is not compared
    with tempfile.TemporaryDirectory(prefix="nbtune-baseline-", ignore_cleanup_errors=True) as place:
        root = Path(place).resolve()
        settle(root)
        new = record(root, only)
        os.chdir(REPO)
    say(f"{time.monotonic() - began:.0f} s in all")
    if asked.what == "record":
        file.write_text(json.dumps(new, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        return 0
    return 0 if compare(old, new, only, asked.allow) else 1


if __name__ == "__main__":
    raise SystemExit(main())
