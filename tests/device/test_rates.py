"""What a machine was measured at is kept, and no file that is something else does harm."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from nbtune.device import measured_rates, rates
from nbtune.device.nvml import Reading

CARD = torch.device("cuda", 0)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file, on a machine that has a GPU as far as this is asked."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (2**34, 2**34))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a card")
    monkeypatch.setattr(rates, "_products", lambda _: 5e14)
    monkeypatch.setattr(rates, "_transfers", lambda _: 5e10)
    monkeypatch.setattr(rates, "_launches", lambda _: 2e-5)
    monkeypatch.setattr(rates, "empty_cache", lambda _: None)
    monkeypatch.setattr(rates, "card_of", lambda _: None)
    rates._rates.cache_clear()
    return tmp_path / "nbtune" / "rates.json"


def test_measured_once(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert measured_rates(CARD) == (5e14, 5e10, 2e-5)
    rates._rates.cache_clear()  # as another process would begin
    monkeypatch.setattr(rates, "_products", lambda _: 1.0)
    assert measured_rates(CARD) == (5e14, 5e10, 2e-5)


def test_what_others_leave_of_a_card_is_not_kept(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for busy in (95.0, 0.0):
        monkeypatch.setattr(rates, "card_of", lambda _, busy=busy: SimpleNamespace(read=lambda: Reading(busy=busy)))
        rates._rates.cache_clear()
        assert measured_rates(CARD) == (5e14, 5e10, 2e-5)
        assert place.exists() == (busy == 0)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[1]",
        '{"a card": 3}',
        '{"a card": [0, 1, 1]}',
        '{"a card": [5e13, 1e10]}',
        '{"a card": ["x", 1]}',
        "{" * 900,
    ],
)
def test_a_file_that_is_something_else(text: str, place: Path) -> None:
    place.parent.mkdir()
    place.write_text(text)
    assert measured_rates(CARD) == (5e14, 5e10, 2e-5)


def test_it_is_kept_where_the_cache_is(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NBTUNE_CACHE", str(tmp_path / "mine"))
    measured_rates(CARD)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["rates.json"]
    assert not place.exists()


def test_a_card_that_has_no_room_is_not_measured(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (2**20, 2**34))
    assert measured_rates(CARD) == (0.0, 0.0, 0.0)
    assert not place.exists()


def test_a_card_that_refuses(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> float:
        raise RuntimeError("no")

    monkeypatch.setattr(rates, "_transfers", refuse)
    assert measured_rates(CARD) == (0.0, 0.0, 0.0)
    assert not place.exists()


def test_how_fast_a_host_launches() -> None:
    """Of any device: between a tenth of a microsecond and a thousand."""
    assert 1e-7 < rates._launches(torch.device("cpu")) < 1e-3
