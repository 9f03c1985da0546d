"""A local folder as a data set: which of its files are meant by `config` and `split`.

The head of its README says it (``configs:``, as on the Hub); without one, the names of files and folders do. What can
be meant in two ways is refused, with the names that there are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from nbtune.data.sources.files import SUFFIXES
from nbtune.data.sources.walk import files_under, fits, is_pattern
from nbtune.errors import DataError
from nbtune.spec import SourceSpec
from nbtune.spec.yaml_loader import BadYaml, head_of_card, load
from nbtune.untrusted import leads_out, shortened

PACKED = ("", ".gz", ".bz2", ".xz", ".zst")
_SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_TEXTS = (".txt", ".md")
_ABOUT = re.compile(  # files that tell of a data set, and hold none of its rows
    r"(readme|licen[cs]e|copying|notice|citation|changelog|contributing|authors|requirements)([^a-z].*)?\.(md|txt)"
    r"|dataset_infos?\.json|config\.json|state\.json",
    re.IGNORECASE,
)
_MOST_COMPARED = 2_000_000  # names of files with patterns of a README; a few seconds
_READ = {"config_name", "data_files", "data_dir", "default", "description", "version"}


@dataclass(frozen=True)
class _Config:
    """A config of a README: its files by split (patterns), or None where their names tell; and below which folder."""

    files: Mapping[str, Sequence[str]] | None
    folder: str


def files_of(folder: Path, spec: SourceSpec, name: str) -> tuple[Path, ...]:
    """Return the files of a folder that hold the rows of a source's config and split.

    Args:
        name: what errors call it.

    Raises:
        DataError: there is no such config or split, more than one could be meant, or no file holds rows; or one is a
            link to a file elsewhere.
    """
    files = _meant(folder, spec, name)
    if away := next((file for file in files if leads_out(file, folder)), None):
        raise DataError(
            f"`{away.relative_to(folder).as_posix()}` in it is a link to a file elsewhere, and is not followed",
            place=name,
            fix="name the files that are meant (a pattern may go through the link), or put the file itself there",
        )
    return files


def _meant(folder: Path, spec: SourceSpec, name: str) -> tuple[Path, ...]:
    found = files_under(folder, name)
    configs = _configs(folder, name)
    if configs:
        config = configs[_chosen(configs, spec.config, name)]
    elif spec.config is None:
        config = _Config(None, "")
    else:
        raise DataError(
            f"there is no config `{spec.config}` in the folder", place=name, fix="its README names none (`configs:`)"
        )
    root = folder / config.folder
    if config.files is None:
        below = [file for file in found if file.is_relative_to(root)]
        return tuple(_of_split(_with_rows(below, name), root, spec.split, name))
    patterns = config.files[_split_named(config.files, spec.split, name)]
    return _of_patterns(patterns, root, found, name)


def _with_rows(files: Sequence[Path], name: str) -> list[Path]:
    ends = tuple(suffix + packed for suffix in SUFFIXES for packed in PACKED)
    rows = [file for file in files if file.name.lower().endswith(ends) and not _ABOUT.fullmatch(file.name)]
    if not rows:
        raise DataError(
            f"the folder `{name}` holds no data files", place="data", fix=f"put {', '.join(SUFFIXES)} in it"
        )
    texts = [file for file in rows if file.name.lower().endswith(tuple(t + p for t in _TEXTS for p in PACKED))]
    if texts and len(texts) < len(rows):
        table = next(file for file in rows if file not in texts)
        raise DataError(
            f"it holds tables of rows (`{table.name}`) and texts (`{texts[0].name}`), each of which would be a row",
            place=name,
            fix="name the files that are meant, such as `*.jsonl`",
        )
    return rows


# --- what a README says ----------------------------------------------------------------------------------------------


def _configs(folder: Path, name: str) -> dict[str, _Config]:
    """Return the configs that the README's head names; {} where it has none.

    Raises:
        DataError: it names some in a way that cannot be read.
    """
    readme = next((file for file in sorted(folder.iterdir()) if file.name.lower() == "readme.md"), None)
    if readme is None:
        return {}
    if leads_out(readme, folder):
        raise _unread(name, "it is a link to a file elsewhere")
    try:
        text = head_of_card(readme)
        head = load(text) if "configs" in text else None
    except BadYaml as error:
        raise _unread(name, str(error)) from None
    except OSError as error:
        raise _unread(name, error.strerror or str(error)) from None
    written = head.get("configs") if isinstance(head, dict) else None
    if written is None:
        return {}
    if not isinstance(written, list) or not all(isinstance(entry, dict) for entry in written):
        raise _unread(name, "`configs` is no list of mappings")
    configs: dict[str, _Config] = {}
    default = [entry for entry in written if entry.get("default") is True]
    for entry in written:
        title = entry.get("config_name", "default")
        if not isinstance(title, str) or title in configs:
            raise _unread(name, f"`config_name` is {_shown(title)} twice, or no text")
        configs[title] = _config(entry, title, name)
    if len(default) > 1:
        raise _unread(name, "more than one config is the default")
    if default:  # first: that is the one which is meant where none is named
        title = default[0].get("config_name", "default")
        configs = {title: configs[title], **configs, "": configs[title]}
    return configs


def _config(entry: Mapping[str, Any], title: str, name: str) -> _Config:
    if more := sorted(str(key) for key in entry.keys() - _READ):
        raise _unread(name, f"`{shortened(more[0])}` of the config {_shown(title)} is not known here")
    folder = entry.get("data_dir") or ""
    if not isinstance(folder, str) or not _stays_inside(folder):
        raise _unread(name, f"`data_dir` of the config {_shown(title)} is no folder in it")
    written = entry.get("data_files")
    if written is None:
        return _Config(None, folder)
    try:
        files = _by_split(written)
    except (TypeError, KeyError):
        raise _unread(name, f"`data_files` of the config {_shown(title)} name no files by split") from None
    for pattern in (pattern for patterns in files.values() for pattern in patterns):
        if not _stays_inside(pattern):
            raise _unread(name, f"{_shown(pattern)} of the config {_shown(title)} lies outside of the folder")
    return _Config(files, folder)


def _by_split(written: Any) -> dict[str, list[str]]:
    """Return patterns by split of all that may stand as `data_files`."""
    if isinstance(written, dict):
        written = [{"split": split, "path": path} for split, path in written.items()]
    if isinstance(written, str) or (isinstance(written, list) and all(isinstance(part, str) for part in written)):
        written = [{"split": "train", "path": written}]
    if not isinstance(written, list) or not written:
        raise TypeError
    files: dict[str, list[str]] = {}
    for part in written:
        paths = [part["path"]] if isinstance(part["path"], str) else part["path"]
        split = part.get("split", "train")
        if split in files or not paths or not all(isinstance(text, str) for text in (split, *paths)):
            raise TypeError
        files[split] = list(paths)
    return files


def _stays_inside(path: str) -> bool:
    return not PurePosixPath(path).is_absolute() and ".." not in re.split(r"[\\/]", path) and ":" not in path


def _chosen(configs: Mapping[str, _Config], wanted: str | None, name: str) -> str:
    names = [title for title in configs if title]
    if wanted is not None and wanted in names:
        return wanted
    if wanted is not None:
        raise DataError(f"there is no config `{wanted}` in the folder", place=name, fix=f"there are {_list(names)}")
    if "" in configs or len(names) == 1:
        return "" if "" in configs else names[0]
    if "default" in names:
        return "default"
    raise DataError(
        f"its README names {len(names)} configs, none of them as the default",
        place=name,
        fix=f"say which one is meant with `config`: {_list(names)}",
    )


def _split_named(splits: Mapping[str, Any], wanted: str, name: str) -> str:
    """Return the split that is meant: of that name, or the only one that means the same."""
    same = next((words for words in _SPLITS.values() if wanted in words), (wanted,))
    alike = [split for split in splits if split in same]
    if wanted in splits or len(alike) == 1:
        return wanted if wanted in splits else alike[0]
    raise DataError(
        f"there is no split `{wanted}` in the folder", place=name, fix=f"there are {_list(list(splits))} (`split`)"
    )


def _of_patterns(patterns: Sequence[str], root: Path, found: Sequence[Path], name: str) -> tuple[Path, ...]:
    below = {file.relative_to(root).parts: file for file in found if file.is_relative_to(root)}
    if sum(map(is_pattern, patterns)) * len(below) > _MOST_COMPARED:
        raise _unread(name, f"it holds too many patterns ({len(patterns)}) for {len(below)} files")
    files: dict[Path, None] = {}
    for pattern in patterns:
        parts = PurePosixPath(pattern).parts
        named = [below[parts]] if parts in below else [below[path] for path in below if fits(path, parts)]
        if not named:
            raise DataError(
                f"no file is called {_shown(pattern)}, which its README names",
                place=name,
                fix="fetch the file, or name the files that are meant",
            )
        files.update(dict.fromkeys(named))
    return tuple(files)


def _shown(value: object) -> str:
    return f"`{shortened(value, 60)}`"


def _list(names: Sequence[str]) -> str:
    return ", ".join(f"`{shortened(each, 40)}`" for each in names[:12]) + (" …" if len(names) > 12 else "")


def _unread(name: str, why: str) -> DataError:
    return DataError(
        f"its README says which files are meant (`configs:`), and that cannot be read: {why}",
        place=name,
        fix="mend the README's head, or name the files",
    )


# --- what names say --------------------------------------------------------------------------------------------------


def _of_split(files: Sequence[Path], folder: Path, split: str, name: str) -> Sequence[Path]:
    """Return the files of a split, told by the names of files and folders as `datasets` does; all, where none names a
    split.

    Raises:
        DataError: there is no such split, or a file beside those of the splits is of none.
    """
    split_of = {file: _split_of(file.relative_to(folder)) for file in files}
    named = sorted({found for found in split_of.values() if found})
    split_wanted = next((split_name for split_name, words in _SPLITS.items() if split in words), split)
    if not named and split_wanted == "train":
        return files
    if split_wanted not in named:
        choice = f"there are {', '.join(named)}" if named else "no name of a file or folder in it says a split"
        raise DataError(f"there is no split `{split}` in the folder", place=name, fix=f"{choice}; or name the files")
    if stray := [file.relative_to(folder).as_posix() for file in files if split_of[file] is None]:
        raise DataError(
            f"`{stray[0]}` is of none of the folder's splits ({', '.join(named)})",
            place=name,
            fix="name the files that are meant, or move it",
        )
    return [file for file in files if split_of[file] == split_wanted]


def _split_of(path: Path) -> str | None:
    for part in reversed(path.parts):
        words = re.split(r"[^a-z0-9]+", part.lower())
        for split, names in _SPLITS.items():
            if any(word in names for word in words):
                return split
    return None
