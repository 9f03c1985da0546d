"""Memory by what holds it and how busy the device is: said of a real run, and never at a run's expense."""

from __future__ import annotations

import ctypes
import weakref

import pytest
import torch

from nbtune import events
from nbtune.device import nvml
from nbtune.engine import telemetry
from nbtune.engine.telemetry import Gauge

STEP = events.Step(step=3, loss=1.0, memory_allocated=90, memory_peak=120, memory_reserved=130)


def test_a_run_says_once_a_second_what_holds_its_memory(start):
    run = start(steps=60).wait()
    told = [event for event in run.events() if isinstance(event, events.Device)]
    steps = {event.step: event for event in run.events() if isinstance(event, events.Step)}
    assert told
    first, last = told[0].time, told[-1].time
    assert len(told) <= last - first + 2
    for event in told:
        assert sum(event.parts.values()) == steps[event.step].memory_allocated
        assert event.parts["weights"] == pytest.approx(run.plan.memory.weights, rel=0.2)  # the plan counts no buffers
        assert event.parts["adapter"] > 0
        assert -1 <= event.busy <= 100
        assert event.slowed == ""  # a CPU does not say


def test_an_allocators_numbers_add_up_to_what_it_has_reserved():
    assert sum(telemetry.parts(STEP, 60, 10, apart=True).values()) == STEP.memory_reserved
    odd = events.Step(step=1, loss=1.0, memory_allocated=50, memory_peak=0, memory_reserved=0)
    assert telemetry.parts(odd, 60, 10, apart=True) == {"weights": 60, "adapter": 10, "state": 0, "work": 0, "kept": 0}


def test_tied_weights_and_views_count_once():
    model = torch.nn.Sequential(torch.nn.Linear(8, 8, bias=False), torch.nn.Linear(8, 8, bias=False))
    model[1].weight = model[0].weight
    model.requires_grad_(requires_grad=False)
    told = []
    with Gauge(told.append, model, torch.device("cpu")) as emit:
        emit(STEP)
    assert told[0] is STEP
    assert told[1].parts["weights"] == 8 * 8 * 4


def test_a_gauge_that_breaks_lets_the_run_go_on():
    class Odd(torch.nn.Module):
        def parameters(self, recurse=True):
            raise RuntimeError("a parameter of a kind that nobody knows")

    told = []
    with Gauge(told.append, Odd(), torch.device("cpu")) as emit:
        emit(STEP)
        emit(STEP)
    assert told == [STEP, STEP]


class Driver:
    """NVML as far as it is asked, of a card that is hot; `without` are functions that an older one lacks."""

    def __init__(self, *without):
        self.without = without

    def __getattr__(self, name):
        numbers = {
            "nvmlDeviceGetCurrentClocksEventReasons": 0x24,
            "nvmlDeviceGetCurrentClocksThrottleReasons": 0x40,
            "nvmlDeviceGetTemperature": 88,
            "nvmlDeviceGetPowerUsage": 699_500,
        }
        if name in self.without:
            raise AttributeError(name)

        def function(*arguments):
            if name == "nvmlDeviceGetUtilizationRates":
                arguments[-1]._obj.gpu = 97
            elif name in numbers:
                arguments[-1]._obj.value = numbers[name]
            return 0

        return function


@pytest.mark.parametrize(
    ("without", "wanted"),
    [
        ((), nvml.Reading(97, 88, 699.5, "heat, power")),
        (("nvmlDeviceGetCurrentClocksEventReasons",), nvml.Reading(97, 88, 699.5, "heat")),
        (("nvmlDeviceGetUtilizationRates", "nvmlDeviceGetTemperature"), nvml.Reading(-1, 0, 699.5, "heat, power")),
    ],
)
def test_a_card_is_read_as_far_as_its_driver_tells(monkeypatch, without, wanted):
    monkeypatch.setattr(ctypes, "CDLL", lambda _: Driver(*without))
    assert nvml.Card("0f3a").read() == wanted


def test_without_the_library_or_the_card_nothing_is_known(monkeypatch):
    def missing(_):
        raise OSError("libnvidia-ml.so.1: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    with pytest.raises(OSError, match="cannot open"):
        nvml.Card("0f3a")
    monkeypatch.setattr(ctypes, "CDLL", lambda _: Driver("nvmlDeviceGetHandleByUUID"))
    with pytest.raises(OSError, match="knows no card GPU-0f3a"):
        nvml.Card("0f3a")
    assert telemetry.card_of(torch.device("cpu")) is None


def test_a_driver_that_fails_while_it_is_asked_ends_its_thread_only(monkeypatch):
    class Failing:
        def read(self):
            raise OSError("access violation")

    monkeypatch.setattr(telemetry, "card_of", lambda _: Failing())
    monkeypatch.setattr(telemetry, "EVERY", 0.01)
    told = []
    with Gauge(told.append, torch.nn.Linear(2, 2), torch.device("cpu")) as emit:
        emit._thread.join(240)
        assert not emit._thread.is_alive()
        emit(STEP)
    assert [event.type for event in told] == ["step", "device"]


def test_a_gauge_does_not_keep_the_model():
    model = torch.nn.Linear(2, 2)
    left = weakref.ref(model)
    with Gauge(lambda _: None, model, torch.device("cpu")) as emit:
        emit(STEP)
    del model
    assert left() is None
    emit(STEP)
