"""Where the cache is: the user's, or where no home can be written a folder of this user alone."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from nbtune.data.sources import consent
from nbtune.disk import cache_folder, home_folder

pytestmark = pytest.mark.skipif(not hasattr(os, "getuid"), reason="homes that are only read are a matter of Unix")


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine whose home is a file, so that nothing can be made in it, by root either."""
    for name in ("NBTUNE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "home").write_text("")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return tmp_path / "temporary"


def test_a_home_that_cannot_be_written_is_replaced_by_a_folder_of_this_user_alone(temporary: Path) -> None:
    made = cache_folder()
    assert made == temporary / f"nbtune-{os.getuid()}"
    assert made.stat().st_mode & 0o777 == 0o700
    signed = consent.signature_of({"what": "a function"})
    assert consent.is_signed({"what": "a function"}, signed)
    assert (made / "functions.key").exists()


@pytest.mark.parametrize("how", ["open to others", "a link", "a file"])
def test_what_somebody_else_may_have_made_there_is_not_taken(temporary: Path, how: str) -> None:
    place = temporary / f"nbtune-{os.getuid()}"
    if how == "open to others":
        place.mkdir()
        place.chmod(0o777)
    elif how == "a link":
        (temporary / "theirs").mkdir(mode=0o700)
        place.symlink_to(temporary / "theirs")
    else:
        place.write_text("")
    assert cache_folder() == home_folder() / ".cache" / "nbtune"


def test_a_folder_that_is_named_is_taken_as_it_is(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NBTUNE_CACHE", str(temporary.parent / "home" / "cache"))
    assert cache_folder() == temporary.parent / "home" / "cache"


def test_a_user_without_a_name_has_the_root_as_home(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container that runs as a number nobody has heard of, without HOME."""
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(os, "getuid", lambda: 3_999_999_999)
    assert home_folder() == Path("/")
