"""Names of data that mean much more than data, or a file whose own name looks like a pattern."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nbtune.data import resolve
from nbtune.data.sources import walk
from nbtune.errors import DataError, NbtuneError, SpecError
from nbtune.spec import from_mapping

ROW = '{"text": "a"}\n'


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def files(source: str) -> list[str]:
    [found] = resolve(from_mapping({"data": [{"source": source}]}).data, {})
    assert len(found.rows) == len(found.files)
    return [os.path.relpath(file) for file in found.files]


@pytest.mark.parametrize("prefix", ["", "file:"])
@pytest.mark.parametrize(
    "source", ["/", "//", "/**/*.jsonl", "/proc", "/proc/self/fd", "/sys", "/dev", "/proc/**/*.txt", "loop/..", "away"]
)
def test_a_whole_machine_is_no_data(source: str, prefix: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    home = tmp_path / "homes/ada"
    home.mkdir(parents=True)
    Path("loop").symlink_to(home / "x")
    (home / "x").mkdir()
    Path("away").symlink_to("/")
    monkeypatch.setenv("HOME", str(home))
    with pytest.raises(DataError, match=r"root of everything|system's own|home folder"):
        files(prefix + source)


def test_a_home_is_no_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "homes/ada"
    (home / "rows").mkdir(parents=True)
    (home / "rows/a.jsonl").write_text(ROW)
    monkeypatch.setenv("HOME", str(home))
    for source in ("~", "~/", str(home), str(home.parent), "homes/ada/**", "homes/**/*.jsonl"):
        with pytest.raises(DataError, match="home"):
            files(source)
    assert files("~/rows") == files("~/rows/*") == files("homes/*/rows/*.jsonl") == ["homes/ada/rows/a.jsonl"]


def test_what_holds_too_much_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walk, "MOST", 50)
    for number in range(30):
        Path(f"set/{number}").mkdir(parents=True)
        Path(f"set/{number}/a.jsonl").write_text(ROW)
    for source in ("set", "set/**/*.jsonl", "set/*/*", "**/**/**/a.jsonl"):
        with pytest.raises(DataError, match="more than 50 files and folders"):
            files(source)
    assert len(files("set/1*/a.jsonl")) == 11


@pytest.mark.parametrize(
    "source", ["~nobody/x", "~nobody", "a" * 5000, "\0", "a\0.jsonl", "a/" * 3000, "[", "[!", "**"]
)
@pytest.mark.parametrize("prefix", ["", "file:"])
def test_what_no_path_can_be_called_is_a_sentence(prefix: str, source: str) -> None:
    with pytest.raises(NbtuneError, match=r"no file|no variable"):
        files(prefix + source)


@pytest.mark.parametrize(
    "name", ["rows [1].jsonl", "a*.jsonl", "why?.jsonl", "[abc].jsonl", "naïve 文 [x].jsonl", "[.txt"]
)
def test_a_file_that_is_called_like_a_pattern_is_found(name: str) -> None:
    Path(name).write_text(ROW)
    assert files(name) == [name] == files(f"file:{name}") == files(str(Path(name).absolute()))
    Path("my [x] folder").mkdir()
    Path("my [x] folder", name).write_text(ROW)
    assert files("my [x] folder") == files("my [x] folder/*") == [f"my [x] folder/{name}"]


def test_a_name_that_is_also_a_pattern_of_others_is_refused() -> None:
    Path("rows[12].jsonl").write_text(ROW)
    Path("rows1.jsonl").write_text(ROW)
    with pytest.raises(SpecError, match="own name, and a pattern"):
        files("rows[12].jsonl")
    assert files("rows[[]12].jsonl") == ["rows[12].jsonl"]
    assert files("rows?.jsonl") == ["rows1.jsonl"]


def test_patterns_go_as_in_a_shell() -> None:
    for name in ("a.jsonl", "b/c.jsonl", "b/d/e.jsonl", ".cache/f.jsonl", "b/.ipynb_checkpoints/c.jsonl", "b/.g.jsonl"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(ROW)
    assert files("**/*.jsonl") == files("**") == files("./**/**") == ["a.jsonl", "b/c.jsonl", "b/d/e.jsonl"]
    assert files("*/*.jsonl") == files("[!.]/*") == ["b/c.jsonl"]
    assert files(".cache/*") == files(".*/*.jsonl") == [".cache/f.jsonl"]
    for path in ("b/c.jsonl", "a.jsonl", "b/d/e.jsonl"):
        for pattern in ("**", "**/*.jsonl", "*/*", "b/**", "*", "b/**/e.jsonl", "**/d/**", "**/b/**/*.jsonl"):
            assert walk.fits(path.split("/"), pattern.split("/")) == (path in files(pattern)), (path, pattern)


def test_a_link_to_a_folder_is_not_left_out_without_a_word(tmp_path: Path) -> None:
    for folder in ("set", "elsewhere"):
        Path(folder).mkdir()
        Path(folder, "a.jsonl").write_text(ROW)
    Path("set/more").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"`more` in it is a link"):
        files("set")
    assert files("set/*/*.jsonl") == ["set/more/a.jsonl"]
