"""What the page of a run holds: all that was asked for, as text, and nothing private."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import nbtune
from nbtune import events
from nbtune.errors import ExportError
from nbtune.export import take_home

HOSTILE = "</script><script>alert(1)</script>"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("home")
    rows = [{"prompt": f"secret{k} {HOSTILE}", "completion": f"Ahoy {k}!"} for k in range(12)]
    return nbtune.finetune(data=rows, steps=3, samples=[f"Who? {HOSTILE}"], runs_dir=folder, name="shown").wait()


def kept_in(page: Path) -> dict[str, Any]:
    (text,) = re.findall(
        r'<script type="application/json" id="nbtune-kept">(.*?)</script>', page.read_text(), re.DOTALL
    )
    return dict(json.loads(text))


def test_a_page_has_all_of_a_run(run: Any) -> None:
    page = run.html()
    assert page == run.folder / "exports" / "shown.html"
    assert page.stat().st_size < 5 * 2**20
    text, kept = page.read_text(encoding="utf-8"), kept_in(page)
    assert text.count("</script>") == 3  # its own
    assert {sample["step"] for sample in kept["samples"]} >= {0, 3}
    assert kept["snapshot"]["status"]["state"] == "finished"
    assert [row["place"] for row in kept["rows"]] == [f"rows, line {k}" for k in (1, 2, 3)]
    for row in kept["rows"]:
        trained = [token for token in row["tokens"] if token[2] & 1]
        assert "".join(token[1] for token in trained).startswith("Ahoy")
        assert len(row["losses"]) == len(row["tokens"])
    assert ["Steps", "3", "3"] in kept["plan"]
    assert "PeftModel" in kept["use"]
    assert "steps: 3" in kept["spec"]
    assert str(run.folder.parent) not in text
    assert not re.search(r"https?://(?!www\.w3\.org)[^\"']*\.(?:js|css|woff)", text.split('id="nbtune-plotly"')[0])


def _asked(page: Path) -> list[str]:
    """What of the data stands in a page, in whichever pieces."""
    kept = kept_in(page)
    assert "secret" not in json.dumps({name: part for name, part in kept.items() if name != "rows"})
    texts = ["".join(token[1] for token in row["tokens"]) for row in kept["rows"]]
    assert [text for text in texts if "secret" not in text] == []
    return texts


def test_without_rows_none_of_the_data_is_in_it(run: Any, tmp_path: Path) -> None:
    (made,) = take_home(run.export, html=True, rows=0, out=tmp_path / "out")
    assert made.path == tmp_path / "out" / "shown.html"
    assert _asked(made.path) == []
    assert made.notes == ()
    (with_rows,) = take_home(run.export, html=True, rows=1, out=tmp_path / "mine.html")
    assert with_rows.path == tmp_path / "mine.html"
    assert len(_asked(with_rows.path)) == 1
    assert "1 row" in with_rows.notes[0]


def test_the_losses_of_a_page_are_the_models_and_may_be_left_out(run: Any, tmp_path: Path) -> None:
    shown = kept_in(run.html(tmp_path / "with.html"))["rows"]
    told = run.token_losses([token[0] for token in shown[1]["tokens"]])
    assert shown[1]["losses"] == [None, *(round(loss, 3) for loss in told[1:])]
    assert max(shown[1]["losses"][1:]) > 0
    left_out = kept_in(run.html(tmp_path / "without.html", losses=False))["rows"]
    assert [row["tokens"] for row in left_out] == [row["tokens"] for row in shown]
    assert ["losses" in row for row in left_out] == [False] * len(shown)


def test_a_run_whose_model_and_rows_are_gone_still_has_its_page(run: Any, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "runs" / run.folder.name
    shutil.copytree(run.folder, copy)
    shutil.rmtree(copy / "data")
    shutil.rmtree(copy / "adapter")
    kept = kept_in(nbtune.attach("shown", tmp_path / "runs").html())
    assert kept["rows"] == []
    assert kept["samples"]


def test_rows_are_shown_without_the_model_and_its_folder_is_not(tmp_path: Path) -> None:
    import shutil

    base = tmp_path / "somewhere" / "base"
    shutil.copytree(nbtune.models.resolve("nbtune/tiny"), base)
    rows = [{"prompt": f"secret{k}", "completion": "Ahoy!"} for k in range(12)]
    run = nbtune.finetune(model=str(base), data=rows, steps=1, runs_dir=tmp_path, name="moved").wait()
    shutil.rmtree(base)
    page = nbtune.attach(run.id, tmp_path).html(tmp_path / "page.html")
    kept = kept_in(page)
    assert [row["place"] for row in kept["rows"]] == [f"rows, line {k}" for k in (1, 2, 3)]
    assert "from_pretrained('base')" in kept["use"] or 'from_pretrained("base")' in kept["use"]
    assert str(tmp_path) not in page.read_text(encoding="utf-8")


def test_a_reader_cannot_draw_and_a_model_has_no_page(run: Any) -> None:
    from nbtune.export.base_model import BaseModelExporter
    from nbtune.export.exporter import Exporter
    from nbtune.store.run_reader import RunReader

    for exporter in (Exporter(RunReader(run.folder)), BaseModelExporter("nbtune/tiny")):
        with pytest.raises(ExportError, match="page"):
            take_home(exporter, html=True)


def test_answers_to_held_out_rows_are_rows_too(tmp_path: Path) -> None:
    rows = [{"prompt": f"secret{k}", "completion": "Ahoy!"} for k in range(60)]
    run = nbtune.finetune(data=rows, steps=2, runs_dir=tmp_path, name="asked", eval={"every": 1}).wait()
    run.say(events.Sample(step=2, prompt="secret7", answer="Ahoy!"))
    assert kept_in(run.html(tmp_path / "all.html", losses=False))["samples"]
    assert "secret" not in json.dumps(kept_in(run.html(tmp_path / "none.html", rows=0)))
