"""Which rows are held out: the same ones however they come, and in older folders the ones that were."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import nbtune.data
from nbtune.data import Prepared, resolve
from nbtune.data.prepare import prepare as preparing
from nbtune.data.prepare.eval_split import expected_held_out
from nbtune.spec import from_mapping
from tests.data.making import CHATML, tokenizer


def rows(count: int) -> list[dict[str, Any]]:
    return [{"prompt": f"ask {i}", "completion": f"say {i}" + " more" * (i % 9)} for i in range(count)]


def with_copies() -> list[dict[str, Any]]:
    made = rows(700)
    return [*made[:20], *(dict(made[i % 4]) for i in range(20, 120)), *made[120:]]


def prepare(found: list[dict[str, Any]], version: int | None = None, **fields: Any) -> Prepared:
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
    spec = from_mapping({"data": "rows.jsonl", **fields})
    sources = resolve(spec.data)
    sources = sources if version is None else [replace(source, version=version) for source in sources]
    options = {"spec": spec, "max_len": 64, "seed": spec.seed, "cached": False, "processes": 0}
    return nbtune.data.prepare_data(sources, tokenizer(CHATML), **options)


def held_out(prepared: Prepared) -> list[int]:
    return [] if prepared.eval is None else sorted(e.row for e in prepared.eval.whole())


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparing, "AT_ONCE", 100)
    monkeypatch.setattr(preparing, "SHARDS", {"first": 16, "most": 64})


def test_so_many_as_are_asked_for_where_all_are_there_at_once() -> None:
    assert len(held_out(prepare(rows(200)))) == 10
    assert len(held_out(prepare(rows(200), eval={"max_rows": 3}))) == 3
    assert len(held_out(prepare(rows(30), eval={"split": 0.5}))) == 15
    assert held_out(prepare(rows(39))) == held_out(prepare(rows(200), eval={"split": 0})) == []


def test_there_is_always_a_row_left_to_learn_from() -> None:
    for count, share, out in ((1, 0.5, 0), (2, 0.9, 1), (3, 0.99, 2)):
        assert len(held_out(prepare(rows(count), eval={"split": share}))) == out


@pytest.mark.parametrize("asked", [{}, {"max_rows": 4}, {"max_rows": 4, "split": 0.2}, {"split": 0.0}])
def test_a_plan_expects_what_is_held_out(asked: dict[str, Any]) -> None:
    for count in (39, 40, 61, 200):
        spec = from_mapping({"data": "rows", "eval": asked})
        assert expected_held_out(count, spec) == len(held_out(prepare(rows(count), eval=asked)))
    own = from_mapping({"data": "rows", "eval": {"data": "others"}})
    assert expected_held_out(200, own) == 0


def test_the_same_rows_beside_others_and_in_another_order() -> None:
    few, more = prepare(rows(200), eval={"split": 0.2}), prepare(rows(220), eval={"split": 0.2})
    before = set(held_out(few))
    assert len(before & set(held_out(more))) > 30
    turned = prepare(rows(200)[::-1], eval={"split": 0.2})
    assert {199 - row for row in held_out(turned)} == before
    assert set(held_out(prepare(rows(200), eval={"split": 0.2}, seed=1))) != before


def test_copies_stay_together_and_too_many_of_them_are_passed_over() -> None:
    for split in (0.02, 0.2, 0.5):
        prepared = prepare(with_copies(), eval={"split": split})
        held = held_out(prepared)
        texts = [with_copies()[row]["completion"] for row in held]
        assert len(held) == round(700 * split)
        assert {e.row for e in prepared.train}.isdisjoint(held)
        assert not {with_copies()[e.row]["completion"] for e in prepared.train} & set(texts)
    same = prepare([rows(1)[0]] * 50)
    assert held_out(same) == []
    assert any("no rows are held out" in warning for warning in same.report.warnings)


@pytest.mark.usefixtures("small_shards")
def test_rows_that_arrive_are_held_out_by_the_same_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    several = held_out(prepare(rows(700), eval={"split": 0.1}))
    assert 40 < len(several) < 100
    monkeypatch.setattr(preparing, "SHARDS", {"first": 100, "most": 400})
    assert held_out(prepare(rows(700), eval={"split": 0.1})) == several
    monkeypatch.setattr(preparing, "AT_ONCE", 700)
    at_once = held_out(prepare(rows(700), eval={"split": 0.1}))
    assert len(at_once) == 70
    assert set(at_once) <= set(several) or set(several) <= set(at_once)


# as the code of 27e283e did (folders of format 2), with its EARLY = 500 where rows arrived
COPIES = [0, *range(20, 120, 4)]
BEFORE: list[tuple[dict[str, Any], list[int], list[int]]] = [
    ({"max_rows": 7}, [140, 179, 278, 293, 295, 590, 654], [*COPIES, 223, 241, 257, 382, 424, 698]),
    (
        {"split": 0.02},
        [140, 170, 179, 262, 278, 293, 295, 305, 408, 429, 445, 544, 590, 654],
        [*COPIES, 213, 223, 241, 257, 273, 382, 424, 436, 515, 645],
    ),
]


@pytest.mark.parametrize(("asked", "at_once", "arriving"), BEFORE)
def test_older_folders_hold_out_the_rows_that_they_did(
    monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any], at_once: list[int], arriving: list[int]
) -> None:
    assert held_out(prepare(with_copies(), 2, eval=asked)) == at_once
    monkeypatch.setattr(preparing, "arrived_before_3", lambda count, **_: count >= 500)
    monkeypatch.setattr(preparing, "SHARDS", {"first": 16, "most": 64})
    prepared = prepare(with_copies(), 2, eval=asked)
    assert held_out(prepared) == arriving
    assert [e.row for e in prepared.train][:12] == [87, 555, 34, 697, 454, 524, 222, 39, 654, 415, 516, 79]
