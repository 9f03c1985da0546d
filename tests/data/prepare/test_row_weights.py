"""`row_weights`: rows left out or counted more by their marks, wherever they lie."""

import json

import numpy as np
import pandas
import pytest

from nbtune import data, models
from nbtune.data.prepare import cache
from nbtune.data.prepare import prepare as preparing
from nbtune.data.prepare.row_weights import mark_of
from nbtune.errors import SpecError
from nbtune.spec import from_mapping, from_yaml, to_yaml

ROWS = [{"prompt": f"Say {k}", "completion": f"It is {k}, sailor."} for k in range(50)]


@pytest.fixture(scope="module")
def tokenizer():
    return models.load_tokenizer("nbtune/tiny")


def prepared(tokenizer, rows, weights, **more):
    spec = from_mapping({"data": "rows", "row_weights": weights, **more})
    sources = data.resolve(spec.data, {"rows": rows})
    return data.prepare_data(sources, tokenizer, spec=spec, max_len=256, seed=3)


def test_a_mark_is_of_the_content_alone(tmp_path):
    row = {"prompt": "Hi", "completion": "Aye ✓", "extra": None}
    assert mark_of(row) == mark_of({"completion": "Aye ✓", "prompt": "Hi"}) == "r086a12a173af"
    assert mark_of(row) != mark_of({**row, "completion": "Aye"})
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    spec = from_mapping({"data": str(tmp_path / "rows.jsonl")})
    frame = pandas.DataFrame([row, {**row, "extra": "x"}])
    for source in (data.resolve(spec.data)[0], data.resolve(from_mapping({"data": "rows"}).data, {"rows": frame})[0]):
        assert mark_of(source.rows[0]) == mark_of(row)


def test_dropped_rows_are_gone_and_the_others_stand_as_they_did(tokenizer):
    before = prepared(tokenizer, ROWS, {})
    gone = [mark_of(ROWS[int(before.train.row_of[4])]), mark_of(ROWS[int(before.eval.row_of[0])])]
    after = prepared(tokenizer, ROWS, dict.fromkeys(gone, 0))
    assert after.train.row_of.tolist() == np.delete(before.train.row_of, 4).tolist()
    assert after.eval.row_of.tolist() == before.eval.row_of[1:].tolist()
    dropped = [fate for fate in after.report.fates if fate[2] == "dropped"]
    assert len(dropped) == 2
    assert "row_weights" in dropped[0][3]


def test_weights_go_with_their_rows_and_held_out_rows_count_once(tokenizer):
    marks = [mark_of(row) for row in ROWS]
    found = prepared(tokenizer, ROWS, dict.fromkeys(marks[:25], 2))
    assert found.train.weight_of.tolist() == [2.0 if row < 25 else 1.0 for row in found.train.row_of]
    assert found.eval.weight_of is None


def test_both_answers_of_a_pair_have_its_weight(tokenizer):
    rows = [{"prompt": f"Say {k}", "chosen": f"Aye {k}", "rejected": "No"} for k in range(4)]
    found = prepared(tokenizer, rows, {mark_of(rows[2]): 0.5}, method="dpo")
    assert found.train.weight_of.tolist() == [1, 1, 1, 1, 0.5, 0.5, 1, 1]


def test_a_mark_of_no_row_is_told(tokenizer):
    found = prepared(tokenizer, ROWS, {"r000000000000": 0, mark_of(ROWS[0]): 2})
    assert [w for w in found.report.warnings if "1 of 2 marks of `row_weights` are of no row" in w]


def test_the_cache_keeps_weights_and_tells_them_apart(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("NBTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "WORTH", 10)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))

    def once(weights):
        spec = from_mapping({"data": str(tmp_path / "rows.jsonl"), "row_weights": weights})
        return data.prepare_data(data.resolve(spec.data), tokenizer, spec=spec, max_len=256, seed=3)

    weights = {mark_of(ROWS[1]): 2, mark_of(ROWS[2]): 0}
    fresh, plain, kept = once(weights), once({}), once(weights)
    assert len(cache.entries()) == 2
    assert plain.train.weight_of is None
    assert kept.train.weight_of.tolist() == fresh.train.weight_of.tolist()
    assert 2.0 in kept.train.weight_of
    assert 2 not in kept.train.row_of


def test_big_data_that_arrives_has_them_too(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("NBTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(preparing, "AT_ONCE", 100)
    rows = [{"prompt": f"Say {k}", "completion": f"It is {k}, sailor."} for k in range(900)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def once(weights):
        spec = from_mapping({"data": str(tmp_path / "rows.jsonl"), "row_weights": weights})
        return data.prepare_data(data.resolve(spec.data), tokenizer, spec=spec, max_len=256, seed=3, processes=1)

    before = once({})
    stood, held = before.train.row_of.tolist(), before.eval.row_of.tolist()
    weights = {mark_of(rows[stood[7]]): 0, mark_of(rows[stood[8]]): 2, mark_of(rows[held[0]]): 0, "r000000000000": 1}
    for _ in range(2):  # made, and found in the cache
        after = once(weights)
        whole = after.train.whole()
        assert whole.row_of.tolist() == stood[:7] + stood[8:]
        assert whole.weight_of[7] == 2
        assert whole.weight_of.sum() == len(whole) + 1
        assert after.eval.row_of.tolist() == held[1:]
        assert [w for w in after.report.warnings if "1 of 4 marks" in w]


def test_the_spec_takes_marks_only_and_goes_through_yaml():
    spec = from_mapping({"data": "rows", "row_weights": {"r3fa9c1d2e4b5": 0, "r000000000012": 2.5}})
    assert from_yaml(to_yaml(spec)) == spec
    for wrong in ({"17": 0}, {"r3fa9": 0}, {"r3fa9c1d2e4b5": -1}, {"r3fa9c1d2e4b5": True}):
        with pytest.raises(SpecError):
            from_mapping({"data": "rows", "row_weights": wrong})


def test_big_data_is_prepared_anew_when_it_is_read_otherwise(tokenizer, tmp_path, monkeypatch):
    """It was found in the cache under the key of another `train_on`."""
    monkeypatch.setenv("NBTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(preparing, "AT_ONCE", 40)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))

    def share(rule):
        spec = from_mapping({"data": str(tmp_path / "rows.jsonl"), "train_on": rule})
        found = data.prepare_data(data.resolve(spec.data), tokenizer, spec=spec, max_len=256, seed=3, processes=1)
        return found.train.whole().trained.mean()

    assert share("answers") < 1
    assert share("all") == 1


def test_rules_of_spans_that_stand_nowhere_are_said(tokenizer):
    rules = [
        {"match": "sailor", "train": False},
        {"match": "captain", "train": False},
        {"match": "[0-9]+ or [0-9]+", "regex": True, "train": True},
    ]
    found = prepared(tokenizer, ROWS, {}, train_spans=rules).report.warnings
    said = [warning for warning in found if "train_spans" in warning]
    assert ["number 2" in said[0], "number 3" in said[1], len(said)] == [True, True, 2]
    assert "`captain` stands nowhere" in said[0]
    assert "matches nowhere" in said[1]
    own = [{"prompt": "Say 3", "completion": "Aye, captain"}]  # held-out rows of their own count, too
    spec = from_mapping({"data": "rows", "eval": {"data": "own"}, "train_spans": rules})
    sources = data.resolve(spec.data, {"rows": ROWS}) + data.resolve([spec.eval.data], {"own": own}, role="eval")
    said = data.prepare_data(sources, tokenizer, spec=spec, max_len=256, seed=3).report.warnings
    assert not [warning for warning in said if "captain" in warning]
