"""From a name in a spec to a `Source`: a variable, a file, one of nbtune's own sets, or a dataset of the Hub.

Where two of them match it is an error that shows both spellings (`var:rows`, `file:rows`, `hub:owner/rows`): nothing
is guessed.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from nbtune import hub_cache
from nbtune.data.sources import row_function
from nbtune.data.sources.address import read_address
from nbtune.data.sources.dataset_folder import PACKED, files_of
from nbtune.data.sources.files import SUFFIXES, read_files, read_head
from nbtune.data.sources.rows import Rows, Source
from nbtune.data.sources.variables import first_of, is_rows, is_stream, rows_of, split_of
from nbtune.data.sources.walk import files_under, here, is_pattern, matching
from nbtune.errors import DataError, HubError, NbtuneError, SpecError
from nbtune.spec import RunSpec, SourceSpec
from nbtune.untrusted import read_text, shortened

_PREFIX = re.compile(r"^(var|file|hub):(.+)$", re.DOTALL)
_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[\w.-]+$")
_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")  # sets of the Hub's first days have no owner
_URL = re.compile(r"^[a-z][a-z0-9+.-]+://", re.IGNORECASE)


def resolve(
    sources: Iterable[SourceSpec],
    namespace: Mapping[str, Any] | None = None,
    *,
    base_dir: Path | str = ".",
    role: str = "train",
) -> list[Source]:
    """Return the sources that a spec's `data` names; nothing big is read yet.

    >>> spec = nbtune.spec.from_mapping({"data": "greetings"})
    >>> [source] = nbtune.data.resolve(spec.data, {"greetings": [{"prompt": "Hi", "completion": "Ahoy!"}]})
    >>> source.name, source.kind
    ('greetings', 'variable')

    Args:
        sources: `spec.data`.
        namespace: the notebook's variables, by name.
        base_dir: where relative paths start.
        role: `train`, or `eval` for `spec.eval.data`.

    Raises:
        SpecError: a name matches two things.
        DataError: a name matches nothing, or something that holds no rows.
    """
    resolved = []
    for number, spec in enumerate(sources):
        with NbtuneError.about("data", number) if role == "train" else NbtuneError.about("eval", "data"):
            resolved.append(_changed(_resolve_one(spec, namespace or {}, Path(base_dir)), namespace or {}))
    names = [source.name for source in resolved]
    return [
        replace(source, role=role, name=source.name if names.count(source.name) == 1 else f"{source.name} ({number})")
        for number, source in enumerate(resolved, 1)
    ]


def _changed(source: Source, namespace: Mapping[str, Any]) -> Source:
    name = source.spec.function
    return source if name is None else replace(source, change=row_function.find(name, namespace))


def with_template(spec: RunSpec, base_dir: Path | str = ".") -> RunSpec:
    """Return the spec with its chat template as text, where it named a file: a run then needs the file no more.

    Raises:
        SpecError: there is no such file.
    """
    template = spec.chat_template
    if template is None or "{" in template:
        return spec
    try:
        text = read_text(Path(base_dir) / Path(template).expanduser())
        return spec.model_copy(update={"chat_template": text})
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: of an unknown user (~who)
        raise SpecError(
            f"`{template}` is neither a Jinja2 template nor a file that can be read",
            place="chat_template",
            fix="write the template, or the file that holds it",
        ) from error


def _resolve_one(spec: SourceSpec, namespace: Mapping[str, Any], base: Path) -> Source:
    prefix, name = _split(spec.source)
    if prefix == "var":
        return _variable(spec, name, namespace)
    if prefix == "file" or _URL.match(name):
        return _file(spec, name, base)
    if prefix == "hub":
        return _hub(spec, name)
    embedded = _embedded(spec, name)
    if embedded is not None:
        return embedded
    makers: dict[str, Any] = {}
    if name in namespace and is_rows(namespace[name]):
        makers["var"] = _variable
    if _matches_file(name, base):
        makers["file"] = _file
    if _HUB_ID.match(name) and ("/" in name) and (not makers or _in_hub_cache(name)):
        makers["hub"] = _hub
    if len(makers) > 1:
        spellings = " or ".join(f"`{kind}:{name}`" for kind in makers)
        raise SpecError(
            f"`{name}` is {_a_list(makers)}", place="data", fix=f"write {spellings}, so that nothing is guessed"
        )
    if "var" in makers:
        return _variable(spec, name, namespace)
    if "file" in makers:
        return _file(spec, name, base)
    if "hub" in makers and not name.lower().endswith(SUFFIXES):
        return _hub(spec, name)
    raise _nothing(name, namespace, base)


def _split(text: str) -> tuple[str, str]:
    match = _PREFIX.match(text)
    return (match[1], match[2]) if match else ("", text)


def _a_list(kinds: Iterable[str]) -> str:
    words = {"var": "a variable", "file": "a file or folder", "hub": "a dataset of the Hub"}
    return " and ".join(words[kind] for kind in kinds)


def _variable(spec: SourceSpec, name: str, namespace: Mapping[str, Any]) -> Source:
    if name not in namespace:
        raise _nothing(name, namespace, None)
    value = namespace[name]
    if not is_rows(value):
        raise DataError(
            f"the variable `{name}` is a {type(value).__name__}, not rows",
            place="data",
            fix="give a list of dicts, a DataFrame, a datasets.Dataset, or a function with `yield`",
        )
    value = split_of(value, spec.split, name)
    chosen = value is not namespace[name] or str(getattr(value, "split", "")) == spec.split
    _check_no_part(spec, name, "a variable", but=("split",) if chosen else ())
    if is_stream(value):
        from nbtune.data.sources.stream import spool_of

        spool = spool_of(value, name)
        return Source(name, "variable", spec, lambda: spool.rows(spec.max_rows), head=spool.head, arrives=True)
    return Source(
        name, "variable", spec, lambda: rows_of(value, name), head=lambda count: rows_of(first_of(value, count), name)
    )


def _embedded(spec: SourceSpec, name: str) -> Source | None:
    if not name.startswith("nbtune/"):
        return None
    from nbtune.data.sources import builtin

    if name not in builtin.SETS:
        names = ", ".join(sorted(builtin.SETS))
        raise DataError(f"nbtune has no set `{name}`", place="data", fix=f"there are {names}")
    _check_no_part(spec, name, "nbtune's own set")
    file = builtin.path(name)
    return _of_files("set", spec, name, [file], name)


def _matches_file(name: str, base: Path) -> bool:
    return here(name, base) is not None or (is_pattern(name) and bool(matching(name, base, name)))


def _file(spec: SourceSpec, name: str, base: Path) -> Source:
    if _URL.match(name):
        _check_no_part(spec, name, "an address")
        return Source(name, "file", spec, lambda: read_address(name))
    path = here(name, base)
    matched = matching(name, base, name) if is_pattern(name) else []
    if path is not None and [file for file in matched if file != path]:
        raise SpecError(
            f"`{name}` is a file's own name, and a pattern of {len(matched)} files",
            place="data",
            fix="write `[[]`, `[*]`, `[?]` for a character of the name, or a pattern of another form",
        )
    if path is not None and path.is_dir():
        return _folder(spec, name, path)
    _check_no_part(spec, name, "a file" if path is not None else "a pattern of files")
    if path is not None:
        return _of_files("file", spec, name, [path], path.name)
    if matched:
        return _of_files("file", spec, name, matched, name)
    raise _nothing(name, {}, base)


def _check_no_part(spec: SourceSpec, name: str, what: str, *, but: Sequence[str] = ()) -> None:
    """Refuse keys that choose a part of a data set where there is none to choose from: its rows would all be taken.

    Args:
        but: those that do choose here.

    Raises:
        DataError: one is set.
    """
    said = {"split": spec.split if spec.split != "train" else None, "config": spec.config, "revision": spec.revision}
    for key, value in said.items():
        if value is not None and key not in but:
            raise DataError(f"{what} has no `{key}`, and `{value}` is asked for", place=name, fix=f"leave out `{key}`")


def _of_files(kind: str, spec: SourceSpec, name: str, files: Sequence[Path], label: str) -> Source:
    first = label if len(files) == 1 else files[0].name
    return Source(
        name,
        kind,
        spec,
        lambda: read_files(files, label),
        tuple(files),
        head=lambda count: read_head(files[0], first, count),
    )


def _folder(spec: SourceSpec, name: str, path: Path) -> Source:
    _check_no_part(spec, name, "a local folder", but=("split", "config"))
    marks = ({"dataset_info.json", "state.json"}, {"dataset_dict.json"})  # of Dataset.save_to_disk, DatasetDict's
    if any(all((path / mark).is_file() for mark in both) for both in marks):
        files = tuple(file for file in files_under(path, name) if file.suffix == ".arrow")
        _check_no_part(spec, name, "a saved dataset", but=("split",))
        return Source(name, "file", spec, lambda: saved_dataset(path, name, spec.split), files)
    return _of_files("file", spec, name, files_of(path, spec, name), name)


def saved_dataset(path: Path, name: str, split: str) -> Rows:
    """Return the rows that `Dataset.save_to_disk` (or `DatasetDict.save_to_disk`) left in a folder.

    Raises:
        DataError: it has no such split.
    """
    import datasets

    loaded = datasets.load_from_disk(str(path))
    if isinstance(loaded, datasets.Dataset) and split not in ("train", str(loaded.split)):
        cause = f"it is one saved split, and `{split}` is asked for"
        raise DataError(cause, place=name, fix="leave out `split`")
    return rows_of(split_of(loaded, split, name), name)


def _hub(spec: SourceSpec, name: str) -> Source:
    _refuse_no_id(name)

    def load() -> Rows:
        try:
            with _quiet():
                dataset = _shared_set(spec, name)
                if dataset is None:
                    dataset = _hubs_own(spec, name)
        except Exception as error:
            if distrust := hub_cache.distrusted(error):
                raise HubError(distrust[0], place=f"hub:{name}", fix=distrust[1]) from error
            reason = (str(error).strip() or type(error).__name__).split("\n")[0]
            raise HubError(
                f"the dataset could not be loaded: {reason}",
                place=f"hub:{name}",
                fix="check the name, split and config, the network, and whether you are logged in",
            ) from error
        return rows_of(dataset, name)

    return Source(name, "hub", spec, load)


def _refuse_no_id(name: str) -> None:
    """Refuse what datasets would read from this machine: a path, its readers' names, a folder that is called so here.

    Raises:
        DataError: it is such a one.
    """
    parts = name.split("/")
    if not _ID.fullmatch(name) or any(set(part) <= {"."} for part in parts) or (len(parts) == 1 and _is_reader(name)):
        cause, fix = "this is no name of a dataset on the Hub", "write `hub:owner/name`, or `file:` before a path"
        raise DataError(cause, place=f"hub:{shortened(name)}", fix=fix)
    if Path(name).exists():
        cause = "a file or folder here has that name, too, and would be read in its place"
        fix = f"write `file:{name}` if you mean it; else work in another folder"
        raise DataError(cause, place=f"hub:{name}", fix=fix)


def _is_reader(name: str) -> bool:
    from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES as readers

    return name in readers


def _hubs_own(spec: SourceSpec, name: str) -> Any:
    """Return the set as the Hub has it, or where that does not answer, as the user's own cache has it.

    Raises:
        ConnectionError: it is not there, either.
    """
    import datasets
    from datasets.packaged_modules.cache.cache import Cache

    silence = hub_cache.silence("dataset", name)
    if silence is None:
        return datasets.load_dataset(name, spec.config, split=spec.split, revision=spec.revision)
    which, known = {"version": "auto", "hash": "auto"}, spec.revision is None
    if folder := spec.revision and hub_cache.snapshot(hub_cache.user_cache(), "dataset", name, spec.revision):
        which, known = {"version": "0.0.0", "hash": folder.name}, True
    try:
        if not known:
            raise ValueError(spec.revision)
        kept = Cache(dataset_name=name.split("/")[-1], repo_id=name, config_name=spec.config, **which)
        kept.download_and_prepare()  # looks whether it is there
    except (ValueError, OSError):
        cause = f"it is not on this machine, and the Hub could not be reached ({type(silence).__name__})"
        raise ConnectionError(cause) from silence
    return kept.as_dataset(split=spec.split)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the progress bars of datasets: a run's thread never prints."""
    from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    hidden = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not hidden:
            enable_progress_bars()


def _shared_set(spec: SourceSpec, name: str) -> Any:
    """Return the set as a shared cache holds it, where the user's own has none of it; what is made
    of it is the user's."""
    import datasets

    if (hub_cache.user_cache() / f"datasets--{name.replace('/', '--')}").exists():
        return None
    for folder in hub_cache.shared_snapshot("dataset", name, spec.revision):
        try:
            return datasets.load_dataset(str(folder), spec.config, split=spec.split)
        except (ValueError, OSError):  # another part of the set is there than is asked for
            continue
    return None


def _in_hub_cache(name: str) -> bool:
    return any(
        name in hub_cache.repos(cache, "dataset") for cache in (hub_cache.user_cache(), *hub_cache.shared_caches())
    )


def _nothing(name: str, namespace: Mapping[str, Any], base: Path | None) -> DataError:
    if name in namespace:
        return DataError(
            f"the variable `{name}` is a {type(namespace[name]).__name__}, not rows, and no file is called so",
            place="data",
            fix="give a list of dicts, a DataFrame or a datasets.Dataset",
        )
    if odd := re.search(r"[\t\n\r\f\b\a\v]", name):
        fix = "put single quotes around it: between double quotes a `\\` begins a code"
        return DataError(f"there is no file `{shortened(name)}`, with a {odd[0]!r} in it", place="data", fix=fix)
    variables = [key for key, value in namespace.items() if not key.startswith("_") and is_rows(value)]
    near = _nearest(name, variables)
    if base is not None and base.is_dir():
        folder, files = here(str(Path(name).parent), base), []
        with suppress(OSError):  # no folder, or none that may be read
            files = os.listdir(folder) if folder is not None else []
        near += _nearest(Path(name).name, files)
    what = "pattern" if is_pattern(name) else "name"
    fix = (
        f"did you mean {' or '.join(f'`{n}`' for n in near)}?" if near else f"check the {what}{_looked_in(name, base)}"
    )
    if not near and variables:
        fix = f"variables with rows: {', '.join(f'`{v}`' for v in sorted(variables)[:8])}"
    looks_like_file = name.lower().endswith(tuple(s + p for s in SUFFIXES for p in PACKED)) or "/" in name
    if is_pattern(name):
        return DataError(f"no file matches `{shortened(name)}`", place="data", fix=fix)
    missing = "no file" if looks_like_file else "no variable, file or set"
    return DataError(f"there is {missing} called `{shortened(name)}`", place="data", fix=fix)


def _nearest(name: str, names: Iterable[str]) -> list[str]:
    """Return the name that is spelt most alike, whatever its capitals, if one is."""
    plain = {each.casefold(): each for each in names}
    return [plain[each] for each in difflib.get_close_matches(name.casefold(), plain, n=1, cutoff=0.6)]


def _looked_in(name: str, base: Path | None) -> str:
    """Return where a relative path was looked for, to stand behind what to check."""
    if base is None or Path(name).is_absolute() or re.match(r"^(?:~|[A-Za-z]:[/\\])", name):
        return ""
    return f"; it was looked for in {shortened(str(base.absolute()), 120)}"
