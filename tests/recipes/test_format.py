"""The recipe "add a data format", carried out on a copy of the tree: one new file, and all that reads rows knows it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.recipe import changed, copy_tree, python

TRANSCRIPT = '''\
"""Conversations in two lists of like length: who speaks, and what is said."""

from __future__ import annotations

from nbtune.data.formats.messages import Chat
from nbtune.data.formats.reader import Columns, Format, Reader
from nbtune.data.formats.values import Row
from nbtune.errors import DataError


def transcript_format(columns: Columns) -> Format:
    """`speakers` and `utterances`."""
    speakers, utterances = columns.need("speakers", ("speakers",)), columns.need("utterances", ("utterances",))

    def read(row: Row) -> Chat:
        if len(row[speakers]) != len(row[utterances]):
            raise DataError(f"`{speakers}` and `{utterances}` differ in length", fix="give each text its speaker")
        pairs = zip(row[speakers], row[utterances], strict=True)
        return Chat([{"role": speaker, "content": said} for speaker, said in pairs])

    return Format("transcript", {"speakers": speakers, "utterances": utterances}, read)


READERS = (Reader("transcript", transcript_format, columns=frozenset(("speakers", "utterances"))),)
'''
CODE = """
import nbtune
from nbtune.data.formats.detect import FORMATS
from nbtune.errors import NbtuneError

talks = [[("user", f"Who are you, number {k}?"), ("assistant", f"Number {k}, captain.")] for k in range(8)]
rows = [{"speakers": [who for who, _ in talk], "utterances": [said for _, said in talk]} for talk in talks]
same = [{"messages": [{"role": who, "content": said} for who, said in talk]} for talk in talks]
more = {"steps": 3, "batch_size": 2, "device": "cpu", "eval": {"split": 0}}

def losses(data, **fields):
    run = nbtune.finetune(data=data, **more, **fields).wait()
    assert run.state == "finished", run.error
    return list(run.history["loss"])

wanted = losses(same)
assert losses(rows) == wanted, "found by its columns, and read as the same conversations"
assert losses({"source": "rows", "format": "transcript"}, rows={"rows": rows}) == wanted
assert "transcript" in FORMATS and "transcript" in nbtune.inspect(rows).summary["formats"]
for data, words in (
    ([{**rows[0], "speakers": ["user"]}], "differ in length"),
    ({"source": "rows", "format": "transcripts"}, "did you mean `transcript`?"),
):
    try:
        nbtune.finetune(data=data, rows={"rows": rows}, **more).wait()
    except NbtuneError as error:
        assert words in str(error), error
    else:
        raise AssertionError(words)
"""


@pytest.mark.slow
def test_a_new_format_is_one_file(tmp_path: Path) -> None:
    tree = copy_tree(tmp_path)
    (tree / "nbtune/data/formats/transcript_format.py").write_text(TRANSCRIPT, encoding="utf-8")
    python(tree, "-c", CODE)
    assert changed(tree) == ["nbtune/data/formats/transcript_format.py"]
