"""Which files of a model's folder are somebody's own, and would leave the house in an export."""

from __future__ import annotations

from pathlib import Path

from nbtune.untrusted import leads_out


def test_a_file_leads_out_by_a_link_of_its_own_or_of_its_folder(tmp_path: Path) -> None:
    folder, private, blobs = tmp_path / "model", tmp_path / "private", tmp_path / "hub" / "models--a--b" / "blobs"
    for made in (folder / "inner", private, blobs):
        made.mkdir(parents=True)
    for file in (private / "config.json", folder / "inner" / "config.json", blobs / "abc"):
        file.write_text("{}")
    links = {
        "config.json": (private / "config.json", True),
        "own.json": (folder / "inner" / "config.json", False),
        "blob.json": (blobs / "abc", False),  # as folders of the Hub's cache have them
        "linked": (private, True),
        "here": (folder / "inner", False),
    }
    for name, (target, out) in links.items():
        (folder / name).symlink_to(target)
        file = folder / name / "config.json" if target.is_dir() else folder / name
        assert leads_out(file, folder) is out, name
    assert not leads_out(folder / "inner" / "config.json", folder)
