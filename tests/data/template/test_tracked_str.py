"""Tracked strings are strings: every operation gives what `str` gives, and never less of it counts as data."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nbtune.data.template.tracked_str import MARK, concat, mark, plain, spans_of, track

TEXT = st.text(st.sampled_from("ab <|>\n\t é漢🙂x"), max_size=12)


def data_of(text: str) -> list[tuple[str, int]]:
    """The characters that count as data, each with its message."""
    return [(plain(text)[i], tag) for start, end, tag in spans_of(text) if tag != MARK for i in range(start, end)]


@given(TEXT, TEXT, TEXT, st.integers(-6, 6), st.integers(-6, 6))
def test_operations_give_what_str_gives(left: str, right: str, chars: str, i: int, j: int) -> None:
    tracked = track(left, 3)
    for ours, theirs in [
        (tracked + right, left + right),
        (right + tracked, right + left),
        (tracked * 2, left * 2),
        (tracked[i:j], left[i:j]),
        (tracked[::-1], left[::-1]),
        (tracked.strip(), left.strip()),
        (tracked.strip(chars or None), left.strip(chars or None)),
        (tracked.lstrip(), left.lstrip()),
        (tracked.rstrip("\n"), left.rstrip("\n")),
        (tracked.replace("a", right), left.replace("a", right)),
        (tracked.replace("<|", "", 1), left.replace("<|", "", 1)),
        (tracked.upper(), left.upper()),
        (tracked.title(), left.title()),
        (tracked.removeprefix("a"), left.removeprefix("a")),
        (tracked.removesuffix("x"), left.removesuffix("x")),
        (tracked.zfill(9), left.zfill(9)),
        (concat([right, tracked, right]), right + left + right),
    ]:
        assert plain(ours) == theirs
        assert [(s, e) for s, e, _ in spans_of(ours) if not 0 <= s < e <= len(theirs)] == []
    for ours_list, theirs_list in [
        (tracked.split(), left.split()),
        (tracked.split("<|"), left.split("<|")),
        (tracked.rsplit(" ", 1), left.rsplit(" ", 1)),
        (tracked.splitlines(), left.splitlines()),
        (tracked.splitlines(True), left.splitlines(True)),
        (list(tracked.partition("|")), list(left.partition("|"))),
        (list(tracked.rpartition("|")), list(left.rpartition("|"))),
        (list(tracked), list(left)),
    ]:
        assert [plain(piece) for piece in ours_list] == theirs_list
        for piece in ours_list:
            assert data_of(piece) == [(c, 3) for c in plain(piece)]
    assert hash(tracked) == hash(left)
    assert tracked == left
    assert right in concat([tracked, right])


@given(TEXT, TEXT, TEXT)
def test_joined_text_keeps_who_said_what(one: str, two: str, between: str) -> None:
    whole = track(one, 0) + between + track(two, 1)
    assert data_of(whole) == [(c, 0) for c in one] + [(c, 1) for c in two]
    marked = "«" + mark(whole) + "»"
    assert plain(marked) == f"«{one}{between}{two}»"
    if len(whole):
        assert (1, 1 + len(whole), MARK) in spans_of(marked)
    assert data_of(marked) == data_of(whole)


def test_a_slice_keeps_the_parts_inside_it() -> None:
    whole = track("abc", 0) + "--" + track("de", 1)
    assert spans_of(whole[1:6]) == ((0, 2, 0), (4, 5, 1))
    assert spans_of(whole[3:5]) == ()
    assert spans_of(whole[-1]) == ((0, 1, 1),)
