"""The recipe "add a key of the spec", carried out on a copy of the tree: one field, and every door knows it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.recipe import changed, copy_tree, insert, python

FIELD = """\
    note: str | None = field(
        None, "Note", "A word on why, kept with the run.", example="a second try", min_length=3, advanced=True
    )
"""
CODE = """
import nbtune
from nbtune.errors import SpecError
from nbtune.notebook import flags
from nbtune.notebook.completion import body_matches
from nbtune.spec import from_yaml, to_yaml
from nbtune.spec.reference import reference

spec = from_yaml("data: nbtune/town\\nnote: calmer\\nsteps: 1\\nbatch_size: 1\\ndevice: cpu")
assert spec.note == "calmer" and from_yaml(to_yaml(spec)) == spec
run = nbtune.finetune(spec).wait()
assert run.state == "finished" and nbtune.attach(run.folder).spec.note == "calmer", run.error
(field,) = [one for one in nbtune.form().setup["fields"] if one["key"] == "note"]
assert field["help"] == "A word on why, kept with the run."
assert "| `note` ⋯ | **Note**. A word on why, kept with the run. |" in reference()
assert "--note" in flags.finetune_parser("%%finetune").flags()
try:
    from_yaml("data: rows\\nnote: a")
except SpecError as error:
    assert "line 2" in str(error) and "note" in str(error), error
else:
    raise AssertionError("a note of one letter")
assert body_matches(["data: rows"], "no", {}) == ("no", ["note: "])
"""


@pytest.mark.slow
def test_a_new_key_is_one_field(tmp_path: Path) -> None:
    tree = copy_tree(tmp_path)
    insert(tree / "nbtune/spec/model.py", "trust_remote_code: bool", FIELD)
    python(tree, "-c", CODE)
    assert changed(tree) == ["nbtune/spec/model.py"]
