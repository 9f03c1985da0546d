"""Rows as a run would read them, with the embedded model's tokenizer."""

from __future__ import annotations

import json

import pandas as pd
import pytest

import nbtune
from nbtune import data, models
from nbtune.errors import NbtuneError
from nbtune.widgets import inspect
from nbtune.widgets.row_inspection import EXAMINED, JOINED, SPECIAL, TERMINATOR, TOKENS, TRAINED, Inspection
from tests.support.every import every

ROWS = [{"prompt": f"Who are you, {k}?", "completion": f"Captain Tune {k}."} for k in range(120)]


@pytest.fixture(scope="module")
def inspection():
    return Inspection.of(ROWS)


def trained_text(row):
    return "".join(text for _, text, flags in row["tokens"] if flags & TRAINED)


def test_the_summary_says_how_rows_are_read(inspection):
    summary = inspection.summary()
    assert (summary["rows"], summary["examined"]) == (120, 120)
    source = summary["sources"][0]
    assert (source["format"], source["mapping"]["prompt"]) == ("prompt-completion", "prompt")
    assert sum(count for _, count in summary["lengths"]) == pytest.approx(120, abs=8)  # some are held out
    assert 0 < summary["trained_tokens"] < summary["tokens"]
    assert len(json.dumps(summary)) < 10_000


def test_the_counts_are_of_the_first_rows_alone():
    """Of a long source nobody waits for all rows; each of them can be looked at all the same."""
    rows = [*ROWS[:1] * EXAMINED, *({"prompt": "Who?", "completion": "A late one. " * 30} for _ in range(5))]
    inspection = Inspection.of(rows)
    summary = inspection.summary()
    assert (summary["rows"], summary["examined"]) == (EXAMINED + 5, EXAMINED)
    assert summary["longest"] == len(inspection.ids(0)) < len(inspection.ids(EXAMINED))
    assert "A late one." in inspection.row(EXAMINED + 4)["rendered"]


def test_a_row_is_shown_as_the_run_tokenises_it(inspection):
    row = inspection.row(7)
    tokenizer = models.load_tokenizer("nbtune/tiny")
    prepared = data.prepare_data(inspection.sources, tokenizer, spec=inspection.spec, max_len=1024, seed=42)
    example = next(e for part in (prepared.train, prepared.eval) for e in part or [] if e.row == 7)
    assert [number for number, _, _ in row["tokens"]] == example.input_ids
    trained = [label != -100 for label in example.labels]
    assert [bool(flags & TRAINED) for _, _, flags in row["tokens"]] == trained
    assert json.loads(row["raw"]) == ROWS[7]
    assert "Who are you, 7?" in row["rendered"]


def test_the_terminator_of_an_answer_is_trained_and_marked(inspection):
    row = inspection.row(0)
    assert trained_text(row) == "Captain Tune 0.<|im_end|>"
    ends = [flags for _, text, flags in row["tokens"] if text == "<|im_end|>"]
    assert ends == [TERMINATOR | SPECIAL, TRAINED | TERMINATOR | SPECIAL]


def test_the_tokens_of_one_character_are_shown_as_that_character():
    said = "Grüße, 你好 👩‍👩‍👧 عربى"
    row = Inspection.of([{"prompt": "Hi", "completion": said}]).row(0)
    tokens = row["tokens"]
    assert said in "".join(text for _, text, _ in tokens)
    assert "\ufffd" not in "".join(text for _, text, _ in tokens)
    joined = [k for k, (_, _, flags) in enumerate(tokens) if flags & JOINED]
    assert joined
    assert every(tokens[k][1] == "" for k in joined)
    assert every(
        tokens[k][2] & TRAINED == tokens[k - 1][2] & TRAINED for k in joined
    )  # a character is trained as a whole


def test_search_goes_around_both_ways(inspection):
    assert inspection.search("TUNE 77", 0) == 77
    assert inspection.search("you, 5?", 100) == 5
    assert inspection.search("Captain", 0, back=True) == 119
    assert inspection.search("parrot", 0) is None


def test_another_rule_trains_other_tokens(inspection):
    everything = inspection.with_training("all")
    row = everything.row(0)
    assert row["trained"] == row["count"]
    assert "train_on: all" in everything.yaml()


def test_another_reading_is_written_into_the_spec(inspection):
    turned = {"prompt": "completion", "completion": "prompt"}
    other = inspection.with_reading(format="prompt-completion", columns=turned)
    assert trained_text(other.row(3)) == "Who are you, 3?<|im_end|>"
    assert "format: prompt-completion" in other.yaml()
    assert other.spec.data[0].columns == turned


def test_a_row_that_cannot_be_read_says_why_and_the_others_are_shown():
    good = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}
    inspection = Inspection.of([good, good, good, {"messages": [{"role": "parrot"}]}])
    assert inspection.row(0)["count"] > 0
    assert inspection.row(3)["error"]
    assert inspection.row(3)["tokens"] == []


def test_frames_files_and_sets_are_read(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in ROWS))
    assert len(Inspection.of(pd.DataFrame(ROWS))) == 120
    assert len(Inspection.of(path)) == 120
    assert Inspection.of("nbtune/persona").summary()["sources"][0]["name"] == "nbtune/persona"
    with pytest.raises(NbtuneError):
        Inspection.of("not-there.jsonl")


def test_a_long_row_is_sent_in_part():
    row = Inspection.of([{"text": "word " * 20_000}]).row(0)
    assert len(row["tokens"]) == TOKENS
    assert row["more"] == row["count"] - TOKENS > 0
    assert len(json.dumps(row)) < 300_000


def test_a_source_without_a_known_column_is_a_finding_not_a_crash():
    summary = Inspection.of([{"foo": 1, "bar": 2}]).summary()
    assert summary["findings"][0]["level"] == "error"
    assert summary["sources"][0]["columns"] == ["foo", "bar"]


def test_unknown_columns_are_asked_for_one_by_one():
    inspection = Inspection.of([{"frage": f"Wer bist du, {k}?", "antwort": "Ahoi!"} for k in range(5)])
    source = inspection.summary()["sources"][0]
    assert source["mapping"] == {"prompt": "", "completion": ""}
    inspection = inspection.with_reading(format=None, columns={"prompt": "frage"})
    assert inspection.summary()["sources"][0]["mapping"] == {"prompt": "frage", "completion": ""}
    inspection = inspection.with_reading(format=None, columns={"prompt": "frage", "completion": "antwort"})
    assert inspection.summary()["trained_tokens"] > 0
    assert "completion: antwort" in inspection.yaml()


def test_a_row_is_shown_first_with_losses_that_were_given():
    losses = [None, *[0.5] * 400]
    panel = inspect(ROWS, row=17, losses={17: losses})
    assert panel.row["index"] == 17
    assert panel.row["losses"] == losses[: len(panel.row["tokens"])]
    panel.do_row(18)
    assert "losses" not in panel.row
    panel.close()


def test_of_a_pair_of_answers_the_better_one_is_shown():
    said = [[{"role": "assistant", "content": text}] for text in ("Ahoy!", "No.")]
    pair = {"prompt": [{"role": "user", "content": "Hi"}], "chosen": said[0], "rejected": said[1]}
    inspection = Inspection.of([pair] * 3, method="dpo")
    assert inspection.summary()["sources"][0]["format"] == "preference"
    assert trained_text(inspection.row(0)) == "Ahoy!<|im_end|>"


class Changes:
    """An inspector whose changes are made at once."""

    def __init__(self, *args, **options):
        self.panel = inspect(*args, **options)
        self.panel.in_background = lambda work, failed: work()

    def __enter__(self):
        return self.panel

    def __exit__(self, *_):
        self.panel.close()


def place(row, text):
    """First and last token of a text in a row."""
    words = [shown for _, shown, _ in row["tokens"]]
    for first in range(len(words)):
        for last in range(first, len(words)):
            if "".join(words[first : last + 1]) == text:
                return first, last
    raise AssertionError(text)


def test_a_span_becomes_a_rule_in_the_spec_is_seen_at_once_and_taken_back():
    with Changes(ROWS) as panel:
        before = panel.row
        panel.do_span(*place(panel.row, " Tune"), train=False)
        assert trained_text(panel.row) == "Captain 0.<|im_end|>"
        assert panel.summary["rules"] == [{"match": " Tune", "train": False, "regex": False, "rows": 120, "of": 120}]
        assert "train_spans:\n- match: ' Tune'\n  train: false" in panel.summary["yaml"]
        assert panel.spec.train_spans[0].match == " Tune"
        panel.do_span(*place(panel.row, "user\nWho"), train=True)
        assert '- match: "user\\nWho"\n  train: true' in panel.summary["yaml"]  # on one line
        panel.do_undo()
        panel.do_span(*place(panel.row, "Who are"), train=True)
        assert trained_text(panel.row) == "Who areCaptain 0.<|im_end|>"
        panel.do_span(*place(panel.row, " Tune"), train=True)  # in place of the earlier rule
        assert [rule["match"] for rule in panel.summary["rules"]] == ["Who are", " Tune"]
        panel.do_undo()
        assert trained_text(panel.row) == "Who areCaptain 0.<|im_end|>"
        panel.do_drop(1)
        assert [rule["match"] for rule in panel.summary["rules"]] == [" Tune"]
        for _ in range(9):
            panel.do_undo()
        assert panel.row == before
        assert panel.spec.train_spans == ()


def test_a_rendered_text_becomes_a_rule_where_it_stands():
    with Changes(ROWS) as panel:
        panel.do_text("Captain", False)
        assert trained_text(panel.row) == " Tune 0.<|im_end|>"
        with pytest.raises(NbtuneError, match="does not stand"):
            panel.do_text("parrot", False)


def test_what_was_seen_is_what_a_run_trains():
    with Changes(ROWS, eval={"split": 0}) as panel:
        panel.do_span(*place(panel.row, "Captain Tune"), train=False)
        spec = panel.spec
    tokenizer = models.load_tokenizer("nbtune/tiny")
    sources = data.resolve(spec.data, {"rows": ROWS})
    example = data.prepare_data(sources, tokenizer, spec=spec, max_len=256, seed=1).train[0]
    assert tokenizer.decode([label for label in example.labels if label != -100]) == " 0.<|im_end|>"


def test_losses_are_asked_of_a_run_row_by_row():
    run = nbtune.finetune(data="rows", rows={"rows": ROWS}, steps=2, batch_size=2, eval={"split": 0}).wait()
    with Changes(ROWS) as panel:
        keys = [judge["key"] for judge in panel.judges]
        assert keys == [run.id, f"{run.id}@2", f"{run.id}:base"]
        for key, options in (("", {}), (f"{run.id}:base", {"base": True}), (run.id, {})):
            panel.do_judge(key)
            if not key:
                assert "losses" not in panel.row
                continue
            ids = [number for number, _, _ in panel.row["tokens"]]
            first, *others = panel.row["losses"]
            assert first is None
            assert others == pytest.approx(run.token_losses(ids, **options)[1:], abs=1e-3)
        panel.do_row(5)
        assert len(panel.row["losses"]) == panel.row["count"]
        with pytest.raises(NbtuneError):
            panel.do_judge("nobody")


def test_a_row_that_is_left_out_is_said_once_with_its_number():
    rows = [*ROWS[:5], {"prompt": "Who are you?", "completion": ""}, *ROWS[5:20]]
    said = [
        finding["text"]
        for finding in Inspection.of(rows).summary()["findings"]
        if "would be trained" in finding["text"]
    ]
    assert len(said) == 1
    assert "row 5" in said[0]


def test_a_function_of_rows_is_asked_once_for_each(monkeypatch):
    asked: list[str] = []

    def shout(row):
        asked.append(row["prompt"])
        return {**row, "completion": row["completion"] + "!"}

    rows = [{"prompt": f"Hi {i}", "completion": "Ahoy"} for i in range(3)]
    spec = nbtune.spec.from_mapping({"data": {"source": "rows", "function": "shout"}})
    summary = Inspection(spec, {"rows": rows, "shout": shout}).summary()
    assert (
        summary["tokens"]
        == Inspection(nbtune.spec.from_mapping({"data": "rows"}), {"rows": [shout(r) for r in rows]}).summary()[
            "tokens"
        ]
    )
