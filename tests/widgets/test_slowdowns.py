"""When a card was slowed, and why, as the monitor gets it."""

from __future__ import annotations

import json
from itertools import pairwise

from memory_run import MemoryRun, made_up_step

from nbtune import events as ev
from nbtune.widgets import slowdowns
from nbtune.widgets.run_state import Cursor, RunView
from tests.support.every import every


def told(readings, view=None):
    """What a view knows after (step, why, °C, W), a second apart."""
    view = view or RunView(MemoryRun())
    for step, why, heat, watts in readings:
        view.add([made_up_step(step), ev.Device(step=step, busy=90, slowed=why, temperature=heat, watts=watts)])
    return view


def spans_of(view):
    body, _ = view.snapshot()
    items = json.loads(json.dumps(body["slowed"]["items"]))
    return {item["why"]: ([span[:2] for span in item["spans"]], item["at"], item["share"]) for item in items}


def test_steps_are_kept_by_reason_with_the_hottest_and_the_most_watts():
    view = told([(step, ("power" if step < 9 else "heat, power"), 70 + step, 400 - step) for step in range(1, 21)])
    assert spans_of(view) == {"heat": ([[9, 20]], " (90 °C)", 100), "power": ([[1, 20]], " (399 W)", 100)}


def test_a_card_that_was_never_slowed_has_none():
    assert spans_of(told([(step, "", 60, 300) for step in range(1, 9)])) == {}


def test_a_card_that_flickers_has_one_span_and_says_how_much_of_it():
    view = told([(step, "power" if step % 2 else "", 60, 300) for step in range(1, 12)])
    assert spans_of(view) == {"power": ([[1, 11]], " (300 W)", 55)}


def test_of_many_spans_the_nearest_become_one_and_all_are_covered():
    slow = [step for start in range(0, 4000, 100) for step in range(start + 1, start + 11)]
    view = told([(step, "heat" if step in set(slow) else "", 88, 0) for step in range(1, 4001)])
    spans, _, share = spans_of(view)["heat"]
    assert len(spans) == slowdowns.SPANS
    assert every(any(first <= step <= last for first, last in spans) for step in slow)
    assert every(before[1] < after[0] for before, after in pairwise(spans))
    assert 9 <= share <= 100


def test_a_card_that_does_not_say_how_hot_it_is_still_says_why():
    assert spans_of(told([(1, "heat", 0, 0), (2, "heat, moon", float("nan"), 0)])) == {"heat": ([[1, 2]], "", 100)}


def test_a_run_that_goes_back_forgets_what_came_after():
    view = told([(step, "heat", 80, 0) for step in range(1, 21)])
    view = told([(11, "", 70, 0)], view)
    assert spans_of(view)["heat"][0] == [[1, 10]]
    view = told([(5, "heat", 70, 0)], told([(2, "", 70, 0)], view))
    assert spans_of(view)["heat"][0] == [[1, 5]]


def test_a_page_gets_them_with_what_is_new():
    view = RunView(MemoryRun())
    cursor = Cursor()
    view.delta(cursor)
    told([(1, "power", 60, 700)], view)
    body, _ = view.delta(cursor)
    assert body["slowed"]["whole"]
    assert body["slowed"]["items"][0]["why"] == "power"
    told([(2, "", 60, 700)], view)
    assert "slowed" not in view.delta(cursor)[0]


def test_what_was_before_a_step_that_a_run_goes_back_to():
    hot = {"why": "heat", "most": 90, "at": "", "share": 50, "spans": [[3, 5, 3, 3, 5], [7, 12, 4, 9, 14]]}
    cut = slowdowns.cut([hot, {**hot, "why": "power", "spans": [[7, 12, 4, 9, 14]]}], 7)
    assert [(one["why"], [span[:2] for span in one["spans"]]) for one in cut] == [("heat", [[3, 5]])]
    assert slowdowns.cut([hot], 10)[0]["spans"][1][:2] == [7, 9]
