"""When a device was slowed, and why: a few spans of steps a reason, from what is said once a second."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from nbtune import events as ev

SPANS = 6  # of a reason; of more the two nearest become one
NEAR = 3  # readings that lie so near are one span: a card at its limit flickers
_UNITS = {"heat": "°C", "power": "W"}


def grown(reasons: list[dict[str, Any]], event: ev.Device, reading: int) -> list[dict[str, Any]]:
    """Return the reasons with what a reading says of them, for a page.

    Each has `why`, `at` (how hot, or how many watts at most, in words), `share` (percent of the readings in its spans)
    and `spans`: first and last step, how many readings were slow, number of the first and of the last one.

    Args:
        reasons: as of before.
        event: what the device says.
        reading: its number; it counts on where a run goes back.

    >>> hot = ev.Device(step=7, slowed="heat", temperature=91)
    >>> grown(grown([], hot, 1), ev.Device(step=9, slowed="heat", temperature=89), 3)
    [{'why': 'heat', 'most': 91, 'at': ' (91 °C)', 'share': 67, 'spans': [[7, 9, 2, 1, 3]]}]
    """
    known = {item["why"]: item for item in reasons}
    for why in event.slowed.split(", "):
        if why in _UNITS:
            value = event.temperature if why == "heat" else event.watts
            known[why] = _with(known.get(why, {"why": why, "most": 0, "spans": []}), event.step, value, reading)
    return [known[why] for why in _UNITS if why in known]


def cut(reasons: list[dict[str, Any]], step: int) -> list[dict[str, Any]]:
    """Return what of them was before a step: the run went back."""
    kept = [
        {**item, "spans": [[first, min(last, step - 1), *rest] for first, last, *rest in item["spans"] if first < step]}
        for item in reasons
    ]
    return [item for item in kept if item["spans"]]


def _with(item: dict[str, Any], step: int, value: float, reading: int) -> dict[str, Any]:
    spans = [*item["spans"], [step, step, 1, reading, reading]]
    gaps = [after[3] - before[4] for before, after in pairwise(spans)]
    if gaps and (gaps[-1] <= NEAR or len(spans) > SPANS):
        k = len(gaps) - 1 if gaps[-1] <= NEAR else gaps.index(min(gaps))
        (first, _, slow, begin, _), (_, last, more, _, end) = spans[k : k + 2]
        spans[k : k + 2] = [[first, last, slow + more, begin, end]]
    most = max(item["most"], round(value) if 0 < value < 1e5 else 0)
    readings = sum(end - begin + 1 for *_, begin, end in spans)
    share = max(1, round(100 * sum(span[2] for span in spans) / readings))
    at = f" ({most} {_UNITS[item['why']]})" if most else ""
    return {"why": item["why"], "most": most, "at": at, "share": share, "spans": spans}
