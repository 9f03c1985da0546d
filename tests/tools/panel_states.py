"""Each state of each panel that is worth a picture: a name, and what brings a page there (`pictures.py` takes them).

Runs are real ones of `nbtune/tiny` where a panel asks the model, and recorded events where only charts are drawn.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from memory_run import MemoryRun, made_up_step

import nbtune
from nbtune import events as ev
from nbtune.models.memory_estimate import MemoryPlan
from nbtune.spec import RunSpec
from nbtune.store import folder, foreign
from nbtune.store.event_log import EventWriter
from nbtune.store.run_reader import RunReader
from nbtune.widgets import chat, compare, exporter, form, home, inspect, losses, monitor
from tests.tools.live_page import LivePage

GIB = 2**30
ODD = ("客服问答", "🚀 rocket", "تدريب النموذج", "<img src=x onerror=globalThis.hacked=1>", "name-" + "w" * 150)
ROWS = [
    {"prompt": f"Who are you, {k}?", "completion": f"Ahoy! I am Captain Tune, number {k}. " * (k % 5 + 1)}
    for k in range(60)
]
TEXTS = [
    {"prompt": "客户问：我的订单什么时候到？" * 3, "completion": "您好！您的订单将在两天内送达。🚚📦 谢谢！"},
    {"prompt": "متى يصل طلبي؟ רגע, איפה ההזמנה שלי?", "completion": "يصل طلبك خلال يومين. ההזמנה תגיע בעוד יומיים."},
    {"prompt": "👩‍👩‍👧‍👦 or 🏳️‍🌈?", "completion": "Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A̴̵̜̰͔ͫ͗͢L̠ͨͧͩ͘G̴̻͈͍͔̹̑͗̎̅͛́Ǫ̵̹̻̝̳͂̌̌͘ " + "w" * 300},
    {"prompt": "<b>bold</b> <img src=x onerror=alert(1)>", "completion": "$x^2$ `code` **Markdown** </script>"},
] * 10
STATES: dict[str, Callable[[LivePage], Any]] = {}
"""Name → shows it; what is returned keeps its widget alive."""


def state(show: Callable[[LivePage], Any]) -> Callable[[LivePage], Any]:
    STATES[show.__name__.replace("_", "-")] = show
    return show


@cache
def trained(name: str = "crew") -> Any:
    """A run of the toy that has finished: with samples, held-out rows, checkpoints."""
    rows = TEXTS if name != "crew" else ROWS
    spec = {"data": rows, "steps": 24, "batch_size": 4, "eval": {"split": 0.2, "every": 8}, "device": "cpu"}
    more = {"samples": [rows[0]["prompt"], rows[1]["prompt"]], "checkpoint": {"every": 8}}
    return nbtune.finetune({**spec, **more}, name=name).wait()


def recorded(name: str, *events: ev.Event, root: Path | None = None, **spec: Any) -> Path:
    """A run's folder with such events."""
    spec = {"data": "rows", "model": "HuggingFaceTB/SmolLM2-135M-Instruct", **spec}
    path = folder.create(root or folder.runs_root(), "x", RunSpec(**spec))
    path = path.rename(path.with_name(f"{name}-{path.name[-6:]}"))
    write = EventWriter(path / "events.jsonl", owner=False)
    write.write_all(events) if hasattr(write, "write_all") else [write(event) for event in events]
    return path


def steps(count: int, total: int = 0) -> list[ev.Event]:
    return [
        ev.State(state="running", total_steps=total or count),
        *(made_up_step(k, count) for k in range(1, count + 1)),
    ]


# --- home -----------------------------------------------------------------------------------------------------------


def at_home(page: LivePage, root: Path, **namespace: Any) -> Any:
    root.mkdir(exist_ok=True)
    widget = home(nbtune.attach, nbtune.plan, nbtune.finetune, namespace, root)
    page.show(widget)
    return widget


@state
def home_without_runs(page: LivePage) -> Any:
    return at_home(page, Path("none"))


@state
def home_with_all_kinds_of_runs(page: LivePage) -> Any:
    root = Path("kinds")
    if not root.exists():
        for name, end in [
            ("first", "finished"),
            ("odd", "failed"),
            *((name, "finished") for name in ODD),
            ("lost", ""),
        ]:
            told = steps(25, 40) if end != "failed" else [ev.State(state="running", total_steps=40)]
            told += [ev.Eval(step=20, loss=0.4, best=True)] * (end != "failed")
            recorded(name, *told, *[ev.State(state=end, step=25)] * bool(end), root=root)
    return at_home(page, root)


@state
def home_asks_before_it_deletes(page: LivePage) -> Any:
    widget = home_with_all_kinds_of_runs(page)
    page.page.get_by_role("checkbox").nth(2).check()
    page.click("[data-do=delete]")
    return widget


# --- form -----------------------------------------------------------------------------------------------------------


def filled(page: LivePage, **values: Any) -> Any:
    widget = form(nbtune.plan, nbtune.finetune, {"rows": ROWS, "texts": TEXTS})
    page.show(widget)
    if values:
        widget.values = {"model": "nbtune/tiny", **values}
        widget.do_check(dict(widget.values))
    page.rest()
    return widget


@state
def form_first(page: LivePage) -> Any:
    return filled(page)


@state
def form_of_a_csv_asks_for_columns(page: LivePage) -> Any:
    Path("kunden.csv").write_text(
        "Kundenfrage,Antwort\n" + "".join(f"Wie lange {k}?,Zwei Tage {k}.\n" for k in range(60))
    )
    widget = filled(page, data="kunden.csv")
    page.rest(".nbt-fields select")
    return widget


@state
def form_filled(page: LivePage) -> Any:
    widget = filled(page, data="rows", steps=30)
    page.rest(".nbt-form[data-costs=known]")
    page.page.locator("summary", has_text="whole plan").click()
    return widget


@state
def form_of_texts_of_the_world(page: LivePage) -> Any:
    widget = filled(page, data="texts")
    page.rest(".nbt-form[data-costs=known]")
    return widget


@state
def form_for_another_machine(page: LivePage) -> Any:
    widget = filled(page, data="rows")
    page.rest(".nbt-form[data-costs=known]")
    page.page.locator(".nbt-machine select").select_option("mac-16")
    page.rest(".nbt-pick[data-fits=no]")
    return widget


@state
def form_with_an_error(page: LivePage) -> Any:
    return filled(page, data="rows", steps="30", epochs="2")


@state
def form_with_one_unusual_value(page: LivePage) -> Any:
    widget = filled(page, data="rows", steps=30, learning_rate=1000)
    page.rest(".nbt-form[data-costs=known]")
    return widget


@state
def form_with_unusual_values(page: LivePage) -> Any:
    pattern = "q_proj|" + "w" * 150
    odd = {"warmup_ratio": 0.9, "adapter.alpha": 9999, "adapter.alpha_pattern": {pattern: 123456789}}
    widget = filled(page, data="rows", epochs=1234, batch_size=9999, learning_rate=1e-30, **odd)
    page.rest(".nbt-form[data-costs=known]")
    page.page.locator("[data-step=train] summary").click()
    return widget


@state
def form_with_all_settings(page: LivePage) -> Any:
    widget = filled(page, data="rows")
    page.rest(".nbt-form[data-costs=known]")
    for words in ("All settings", "same as YAML"):
        page.page.locator("summary", has_text=words).click()
    return widget


# --- inspector ------------------------------------------------------------------------------------------------------


@state
def inspector_tokens(page: LivePage) -> Any:
    widget = inspect(ROWS)
    page.show(widget)
    page.rest(".nbt-tok.nbt-on")
    return widget


@state
def inspector_of_texts_of_the_world(page: LivePage) -> Any:
    widget = inspect(TEXTS)
    page.show(widget)
    page.rest(".nbt-tok.nbt-on")
    page.page.get_by_label("Next row").click()
    page.rest("[data-row='1']")
    return widget


@state
def inspector_raw(page: LivePage) -> Any:
    widget = inspector_of_texts_of_the_world(page)
    page.click("[data-view=raw]")
    return widget


# --- monitor --------------------------------------------------------------------------------------------------------


def watched(page: LivePage, run: Any, until: str = ".nbt-monitor[data-plotly=true]") -> Any:
    widget = monitor(run)
    page.show(widget)
    page.rest(until)
    return widget


@state
def monitor_before_the_first_step(page: LivePage) -> Any:
    run = MemoryRun("fresh")
    run.alive = True
    run.say(ev.State(state="preparing", total_steps=200))
    return watched(page, run, "")


def of_a_gpu() -> MemoryRun:
    run = MemoryRun("客服-🚀-" + "w" * 120)
    run.alive, run.plan.device, run.plan.available_bytes = True, "cuda", 24 * GIB
    parts = {"weights": 15, "adapter": 1 / 8, "gradients": 1 / 8, "optimizer": 1 / 4, "activations": 3, "head": 0.5}
    run.plan.memory = MemoryPlan(**{name: int(size * GIB) for name, size in parts.items()}, reserve=GIB)
    run.plan.total_steps = 400
    run.say(ev.State(state="running", total_steps=400))
    for k in range(1, 201):
        work = int((3.1 + 0.3 * math.sin(k / 9)) * GIB)
        held = {"weights": 15 * GIB, "adapter": GIB // 8, "state": 3 * GIB // 8, "work": work, "kept": GIB // 2}
        slowed = "heat, power" if k > 60 else "power"
        stays = sum(held.values()) - work - GIB // 2
        told = {"memory_allocated": stays, "memory_peak": stays + work, "memory_reserved": stays + work + GIB // 2}
        run.say(dataclasses.replace(made_up_step(k, 200), **told))
        run.say(ev.Device(step=k, parts=held, busy=92 + 6 * math.sin(k), temperature=91, watts=350, slowed=slowed))
    run.say(*[ev.Eval(step=k, loss=0.15 + 2.4 * math.exp(-k / 40), best=True) for k in range(20, 201, 20)])
    return run


@state
def monitor_of_a_gpu(page: LivePage) -> Any:
    widget = watched(page, of_a_gpu())
    for summary in page.page.locator(".nbt-monitor summary:visible").all():
        summary.click()
    page.rest()
    return widget


@state
def monitor_paused(page: LivePage) -> Any:
    run = of_a_gpu()
    run.say(ev.State(state="paused", step=200, total_steps=400))
    return watched(page, run)


@state
def monitor_of_preferences(page: LivePage) -> Any:
    run = MemoryRun("dpo")
    run.alive = True

    def figures(k: float) -> dict[str, float]:
        better, worse = 1.5 * (1 - math.exp(-k / 40)), -2 * (1 - math.exp(-k / 60))
        told = {"accuracy": 1 - 0.5 * math.exp(-k / 30), "margin": better - worse}
        return told | {"reward_chosen": better, "reward_rejected": worse}

    run.say(ev.State(state="running", total_steps=200))
    run.say(*[dataclasses.replace(made_up_step(k), metrics=figures(k)) for k in range(1, 121)])
    run.say(*[ev.Eval(step=k, loss=0.5, metrics=figures(0.8 * k)) for k in (50, 100)])
    return watched(page, run)


@state
def monitor_failed(page: LivePage) -> Any:
    run = MemoryRun("failed")
    run.say(*steps(30, 200), ev.Warning(message="a row is cut", cause="it has 900 tokens", fix="raise `sequence_len`"))
    run.say(
        ev.State(
            state="failed", step=30, detail="CUDA out of memory: 3.2 GiB wanted, 1.1 GiB free. Write `batch_size: 2`."
        )
    )
    return watched(page, run)


@state
def monitor_interrupted(page: LivePage) -> Any:
    path = recorded(
        "killed", *steps(60, 200), ev.Checkpoint(step=50, folder="checkpoints/step-00000050", bytes=5_000_000)
    )
    return watched(page, nbtune.attach(path))


@state
def monitor_of_a_watched_run(page: LivePage) -> Any:
    path = recorded("theirs", *steps(60), ev.Eval(step=60, loss=0.4, best=True))
    foreign.keep(path, foreign.Foreign("SFTTrainer", "trl", "1.16.0"), {})
    (path / "adapter").mkdir()
    EventWriter(path / "events.jsonl", owner=False)(
        ev.State(state="finished", step=60, detail="trained by TRL's SFTTrainer")
    )
    return watched(page, nbtune.attach(path))


@state
def monitor_of_a_million_steps(page: LivePage) -> Any:
    path = next(folder.runs_root().glob("million-*"), None)
    if path is None:
        path = recorded("million", *steps(1_000_000), ev.State(state="finished", step=1_000_000, total_steps=1_000_000))
    return watched(page, RunReader(path))


@state
def monitor_finished(page: LivePage) -> Any:
    return watched(page, trained(), ".nbt-finish")


@state
def monitor_finished_of_texts_of_the_world(page: LivePage) -> Any:
    widget = watched(page, trained("world"), ".nbt-finish")
    for summary in page.page.locator(".nbt-monitor summary:visible").all():
        summary.click()
    page.rest()
    return widget


@state
def monitor_beside_compare(page: LivePage) -> Any:
    trained("world")
    widget = watched(page, trained(), ".nbt-finish")
    page.click("[data-do=compare]", ".nbt-compare[data-plotly=true]")
    return widget


# --- what a run is asked and taken to --------------------------------------------------------------------------------


@state
def chat_empty(page: LivePage) -> Any:
    widget = chat(trained())
    page.show(widget)
    return widget


@state
def chat_answered(page: LivePage) -> Any:
    widget = chat(trained("world"))
    page.show(widget)
    for words in ("Who are you, 7?", TEXTS[0]["prompt"], TEXTS[1]["prompt"]):
        widget.do_ask(words, max_new_tokens=60)
        page.rest()
        while widget.busy:  # a machine that is shared may take its time
            page.rest()
    return widget


@state
def export_before(page: LivePage) -> Any:
    widget = exporter(trained())
    page.show(widget)
    return widget


@state
def export_made_and_pushing(page: LivePage) -> Any:
    widget = exporter(trained())
    page.show(widget)
    page.page.get_by_role("button", name="Make GGUF").click()
    page.rest(".nbt-made", 300)
    return widget


@state
def compare_two(page: LivePage) -> Any:
    widget = compare([trained(), trained("world")])
    page.show(widget)
    page.rest(".nbt-compare[data-plotly=true]")
    return widget


@state
def compare_twelve(page: LivePage) -> Any:
    widget = compare(
        [RunReader(recorded(f"{ODD[k % 5]}-{k}", *steps(40 + 10 * k), learning_rate=1e-4 * (k + 1))) for k in range(12)]
    )
    page.show(widget)
    page.rest(".nbt-compare[data-plotly=true]")
    return widget


@state
def losses_measured(page: LivePage) -> Any:
    found = losses(trained("world")).wait()
    widget = found.panel()
    page.show(widget)
    page.rest("tbody tr")
    return widget
