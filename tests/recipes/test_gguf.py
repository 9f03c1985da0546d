"""The recipes "add a GGUF type" and "add a GGUF family", on a copy of the tree: an entry in one file each."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.support.recipe import changed, copy_tree, insert, python

TYPE = '        FileType("q5_0_v", 8, "Q5_0", 6.05, "good", _always("Q8_0"), usual=True),\n'
FAMILY = '    "stablelm": Family("stablelm", layer_norm=True),\n'
DOORS = """
import nbtune
from nbtune.commands import COMMANDS
from nbtune.commands.values import offered
from nbtune.widgets.export_panel import choices

(argument,) = [one for one in COMMANDS["export"].takes if one.dest == "gguf"]
assert "q5_0_v" in offered(argument, {})
(choice,) = [one for one in choices(10**9) if one["type"] == "q5_0_v"]
assert choice["usual"] and choice["bytes"] == 756_250_000, choice
"""
READ = """
from gguf import GGUFReader
import json, sys
print(json.dumps({tensor.name: tensor.tensor_type.name for tensor in GGUFReader(sys.argv[1]).tensors}))
"""
MEASURE = """
import tempfile, pathlib
from tests.support.families import LIMIT, family_tokenizer, measure
from tests.support.family_cases import CASES, SIZES, Case

CASES["stablelm"] = Case("StableLmConfig", SIZES, "gpt2")
folder = pathlib.Path(tempfile.mkdtemp())
seen = measure("stablelm", folder, folder, family_tokenizer("gpt2", folder), 50)
assert (seen.arch, seen.other) == ("stablelm", 0) and seen.off < LIMIT, seen
"""


@pytest.mark.slow
def test_a_new_type_is_one_line(tmp_path: Path) -> None:
    tree = copy_tree(tmp_path)
    insert(tree / "nbtune/spec/gguf_types.py", 'FileType("q5_0",', TYPE)
    python(tree, "-c", DOORS)
    said = python(tree, "-m", "nbtune", "export", "nbtune/tiny", "--gguf", "q5_0_v", "--no-verify", "--json")
    file = json.loads(said.splitlines()[-1])
    assert file["path"].endswith("-q5_0_v.gguf")
    types = json.loads(python(tree, "-c", READ, file["path"]))
    assert types["blk.0.attn_v.weight"] == "Q8_0"
    assert {types["blk.0.attn_q.weight"], types["blk.0.ffn_down.weight"]} == {"Q5_0"}
    assert changed(tree) == ["nbtune/spec/gguf_types.py"]


@pytest.mark.slow
def test_a_new_family_is_one_entry(tmp_path: Path) -> None:
    """llama.cpp reads the same tokens from its file, and computes transformers' logits."""
    tree = copy_tree(tmp_path)
    table = tree / "nbtune/export/gguf/families.py"
    text = table.read_text(encoding="utf-8")
    without = re.sub(r'    "stablelm": Family\(.*\),\n', "", text)  # as it was before it was added
    assert without != text
    table.write_text(without, encoding="utf-8")
    insert(table, '"smollm3":', FAMILY)
    python(tree, "-c", MEASURE)
    assert changed(tree) == ["nbtune/export/gguf/families.py"]
