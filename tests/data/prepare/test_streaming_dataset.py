"""Big data is learnt from before all of it is prepared, and what is learnt does not depend on when."""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nbtune.data
from nbtune.data import BatchPlan, Prepared, resolve
from nbtune.data.prepare import cache
from nbtune.data.prepare import prepare as preparing
from nbtune.data.prepare.shards import Workman
from nbtune.data.prepare.streaming_dataset import Arriving
from nbtune.data.prepare.workers import Crew
from nbtune.errors import DataError
from nbtune.spec import from_mapping
from tests.data.making import CHATML, tokenizer
from tests.support.every import every, some

ROWS = 700


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NBTUNE_CACHE", str(Path("cache").absolute()))
    monkeypatch.setattr(preparing, "AT_ONCE", 500)
    monkeypatch.setattr(preparing, "SHARDS", {"first": 16, "most": 64})
    monkeypatch.setattr(cache, "WORTH", 500)


def rows(count: int, word: str = "say") -> list[dict[str, Any]]:
    return [{"prompt": f"ask {i}", "completion": f"{word} {i}" + " more" * (i % 9)} for i in range(count)]


def write(found: list[dict[str, Any]], name: str = "rows.jsonl") -> None:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in found))


def start(processes: int = 0, cached: bool = False, fast: Any = None, **fields: Any) -> Prepared:
    options = {key: fields.pop(key) for key in ("on_error", "tell", "overflow") if key in fields}
    spec = from_mapping({"data": "rows.jsonl", **fields})
    sources = resolve(spec.data)
    if spec.eval.data is not None:
        sources += resolve([spec.eval.data], role="eval")
    fast = fast or tokenizer(CHATML)
    return nbtune.data.prepare_data(
        sources, fast, spec=spec, max_len=64, seed=spec.seed, processes=processes, cached=cached, **options
    )


def batches(prepared: Prepared, steps: range = range(120), **options: Any) -> list[Any]:
    plan = BatchPlan(prepared.train, micro_batch_size=2, gradient_accumulation_steps=4, seed=3, **options)
    return [[b.input_ids.tolist() for b in plan.step(k)] for k in steps]


@pytest.mark.parametrize("packing", [False, True])
def test_batches_do_not_depend_on_who_prepared_them(packing: bool) -> None:
    write(rows(ROWS))
    options = {"packing": packing, "sequence_len": 64}
    alone = batches(start(), **options)
    assert batches(start(cached=True), **options) == alone
    again = start(cached=True)
    assert isinstance(again.train, Arriving)
    assert again.train.complete  # from the cache
    assert batches(again, **options) == alone
    assert batches(again, range(77, 120), **options) == alone[77:]
    flat = [tuple(ids) for step in alone[:5] for batch in step for ids in batch]
    assert len(set(flat)) == len(flat)


def test_huge_files_are_looked_up_in_the_cache_while_the_run_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparing, "HASHED_FIRST", 0)
    write(rows(ROWS))
    first = start(cached=True)
    expected = batches(first)
    prepared: list[int] = []
    prepare = Workman.prepare
    monkeypatch.setattr(Workman, "prepare", lambda self, number: prepared.append(number) or prepare(self, number))
    again = start(cached=True)
    assert batches(again) == expected
    assert prepared == [0]
    assert again.report == first.report
    assert [e.row for e in again.eval or ()] == [e.row for e in first.eval or ()]
    kept, patience = Path("cache") / "prepared", threading.Event()
    for _ in range(600):  # what the second run had begun to write is thrown away by a thread of its own
        if len(list(kept.iterdir())) == 1:
            break
        patience.wait(0.05)
    assert len(list(kept.iterdir())) == 1


@pytest.mark.slow
def test_processes_give_the_same_and_may_die(monkeypatch: pytest.MonkeyPatch) -> None:
    write(rows(4000))
    alone = start()
    expected = [e.row for e in alone.train]
    crews: list[Crew] = []
    hired = threading.Semaphore(0)
    made = Crew.__init__

    def hire(self: Crew, *args: Any, **options: Any) -> None:
        made(self, *args, **options)
        crews.append(self)
        hired.release()

    monkeypatch.setattr(Crew, "__init__", hire)
    helped = start(processes=2)
    assert [e.row for e in helped.train] == expected
    assert len(crews[0]._children) == 2
    assert every(child.wait(240) == 0 for child in crews[0]._children)
    assert hired.acquire(timeout=240)
    killed = start(processes=2)
    assert hired.acquire(timeout=240)
    for child in crews[1]._children:
        os.kill(child.pid, signal.SIGKILL)
    assert [e.row for e in killed.train] == expected
    assert killed.report == helped.report == alone.report


def test_the_first_batch_waits_for_the_first_shard_only(monkeypatch: pytest.MonkeyPatch) -> None:
    write(rows(ROWS))
    go_on = threading.Event()
    prepare = Workman.prepare

    def slowly(self: Workman, number: int) -> Any:
        if number:
            assert go_on.wait(240)
        return prepare(self, number)

    monkeypatch.setattr(Workman, "prepare", slowly)
    prepared = start()
    assert isinstance(prepared.train, Arriving)
    first = batches(prepared, range(1))
    assert not prepared.train.complete
    assert prepared.train.ready <= 16
    go_on.set()
    assert len(prepared.train) + len(prepared.eval or ()) == ROWS
    assert batches(prepared, range(1)) == first


def test_every_row_is_accounted_for_and_none_is_on_both_sides() -> None:
    found = rows(ROWS)
    found[5]["completion"] = ""
    found[6]["completion"] = "long " * 200
    for i in range(20, 120):
        found[i] = dict(found[i % 4])
    write(found)
    told: list[str] = []
    prepared = start(tell=told.append)
    report, held = prepared.report, prepared.eval
    assert held is not None
    train_rows, held_rows = [e.row for e in prepared.train], [e.row for e in held]
    assert sorted([*train_rows, *held_rows, 5]) == list(range(ROWS))
    assert report.fates == [
        ("rows.jsonl", 5, "dropped", "nothing in it would be trained (an empty answer or text)"),
        ("rows.jsonl", 6, "cut", "longer than 64 tokens"),
    ]
    assert (report.rows, report.used, report.held_out) == (ROWS, len(train_rows), len(held_rows))
    assert report.duplicates == 100
    assert {tuple(e.input_ids) for e in prepared.train}.isdisjoint(tuple(e.input_ids) for e in held)
    assert 10 <= len(held_rows) <= 90
    assert report.tokens == sum(len(e.input_ids) for e in prepared.train)
    assert any("repeat" in warning for warning in told)
    few = start(eval={"max_rows": 7})
    assert few.eval is not None
    assert 0 < len({tuple(e.input_ids) for e in few.eval}) < 20
    many = start(eval={"split": 0.5})
    assert many.eval is not None
    assert 0.35 < len(many.eval) / ROWS < 0.65
    assert start(eval={"split": 0}).eval is None


def test_a_broken_row_is_said_where_it_is_waited_for() -> None:
    found = rows(ROWS)
    write(found)
    lines = Path("rows.jsonl").read_text().splitlines()
    for number in range(0, ROWS, 3):
        lines[number] = lines[number] if number % 33 == 0 else lines[number][:-4]
    Path("rows.jsonl").write_text("\n".join(lines))
    with pytest.raises(DataError, match="not JSON") as caught:
        len(start().train)
    assert caught.value.place.startswith("rows.jsonl, line ")
    skipped = start(on_error="skip")
    assert len(skipped.train) + len(skipped.eval or ()) + skipped.report.count("dropped") == ROWS


def test_several_sources_and_kinds_of_files_arrive_mixed() -> None:
    import pandas

    write(rows(300))
    pandas.DataFrame(rows(400, word="tell")).to_parquet("more.parquet")
    prepared = start(data=["rows.jsonl", "more.parquet"], eval={"split": 0})
    seen = [(e.source, e.row) for e in prepared.train]
    assert len(set(seen)) == ROWS
    fast = tokenizer(CHATML)
    for example in list(prepared.train)[:50]:
        word = "say" if example.source == "rows.jsonl" else "tell"
        assert f"ask {example.row}<|im_end|>" in fast.decode(example.input_ids)
        assert f"{word} {example.row}" in fast.decode(example.input_ids)
    early = [name for name, _ in seen[:100]]
    assert 20 < early.count("rows.jsonl") < 70


def test_processes_of_a_run_draw_disjoint_parts() -> None:
    write(rows(ROWS))
    prepared = start(eval={"split": 0})
    shares = []
    for rank in range(2):
        plan = BatchPlan(prepared.train, micro_batch_size=2, seed=3, rank=rank, ranks=2)
        shares.append([e for k in range(plan.steps_per_epoch) for b in plan.step(k) for e in b.examples])
    assert sorted(shares[0] + shares[1]) == list(range(ROWS))


def test_rows_of_their_own_to_evaluate_on_and_windows_of_texts() -> None:
    write([{"text": f"text {i} " + "word " * (i % 80)} for i in range(ROWS)])
    write([{"text": f"other {i}"} for i in range(30)], "held.jsonl")
    prepared = start(eval={"data": "held.jsonl"}, cached=True)
    assert [e.row for e in prepared.eval or ()] == list(range(30))
    assert len(prepared.train) > ROWS
    again = start(eval={"data": "held.jsonl"}, cached=True)
    assert [e.input_ids for e in again.train] == [e.input_ids for e in prepared.train]
    assert [e.input_ids for e in again.eval or ()] == [e.input_ids for e in prepared.eval or ()]
    assert again.report == prepared.report
    assert again.facts == prepared.facts


def test_later_epochs_are_shuffled_anew_and_see_each_example_once() -> None:
    write(rows(ROWS))
    prepared = start(eval={"split": 0})
    plan = BatchPlan(prepared.train, micro_batch_size=7, seed=3)
    per_epoch = plan.steps_per_epoch
    assert per_epoch == 100
    epochs = [
        [e for k in range(i * per_epoch, (i + 1) * per_epoch) for b in plan.step(k) for e in b.examples]
        for i in range(3)
    ]
    assert every(sorted(epoch) == list(range(ROWS)) for epoch in epochs)
    assert epochs[0] == list(range(ROWS))
    assert epochs[1] != epochs[2]
    order = np.argsort(epochs[1])
    assert abs(np.corrcoef(order, np.arange(ROWS))[0, 1]) < 0.2


@pytest.mark.parametrize("packing", [False, True])
def test_pairs_arrive_together(packing: bool) -> None:
    write([{"prompt": f"ask {i}", "chosen": f"aye {i}" + " more" * (i % 9), "rejected": "no"} for i in range(ROWS)])
    prepared = start(method="dpo", eval={"split": 0.1}, cached=True)
    assert isinstance(prepared.train, Arriving)
    plan = BatchPlan(prepared.train, micro_batch_size=2, seed=3, packing=packing, sequence_len=128, together=2)
    sequences = len(plan.bins) if packing else len(prepared.train) // 2
    found = [batch for k in range(-(-sequences // 2)) for batch in plan.step(k)]
    assert every(b.values.tolist() == [1.0, 0.0] * (len(b.examples) // 2) for b in found)
    rows_of = prepared.train.row_of
    assert every((rows_of[list(b.examples[::2])] == rows_of[list(b.examples[1::2])]).all() for b in found)
    assert {e for b in found for e in b.examples} == set(range(len(prepared.train)))
    again = start(method="dpo", eval={"split": 0.1}, cached=True)
    assert again.train.complete  # type: ignore[union-attr]
    assert again.train.whole().value_of.tolist() == prepared.train.whole().value_of.tolist()  # type: ignore[union-attr]


def test_labels_of_steps_arrive_with_their_tokens() -> None:
    found = [
        {"prompt": f"ask {i}", "completions": [f"one {i}", "two"], "labels": [True, i % 2 == 0]} for i in range(ROWS)
    ]
    write(found)
    spec = from_mapping({"data": "rows.jsonl", "eval": {"split": 0}})
    options = {"spec": spec, "max_len": 64, "seed": 0, "kind": "stepwise", "processes": 0}
    prepared = nbtune.data.prepare_data(resolve(spec.data), tokenizer(CHATML), **options)
    for batch in some(BatchPlan(prepared.train, micro_batch_size=4, seed=3).step(2)):
        for line, example in zip(batch.token_values.numpy(), batch.examples, strict=True):
            row = int(prepared.train.row_of[example])
            assert line[~np.isnan(line)].tolist() == [1.0, float(row % 2 == 0)]


def test_rows_of_a_variable_and_of_a_function_arrive_too() -> None:
    spec = from_mapping({"data": {"source": "found", "function": "change"}, "eval": {"split": 0}})
    names = {"found": rows(ROWS), "change": lambda row: None if row["prompt"] == "ask 7" else {**row, "prompt": "Hi"}}
    options = {"spec": spec, "max_len": 64, "seed": 0, "processes": 2}
    prepared = nbtune.data.prepare_data(resolve(spec.data, names), tokenizer(CHATML), **options)
    assert isinstance(prepared.train, Arriving)
    assert sorted(e.row for e in prepared.train) == [i for i in range(ROWS) if i != 7]


@pytest.mark.parametrize("order", ["given", "short_first"])
def test_what_needs_all_rows_waits_and_keeps_their_order(monkeypatch: pytest.MonkeyPatch, order: str) -> None:
    write(rows(ROWS))
    several = start(order=order, eval={"split": 0}).train
    assert not isinstance(several, Arriving)
    monkeypatch.setattr(preparing, "AT_ONCE", ROWS)
    at_once = start(order=order, eval={"split": 0}).train
    for name, array in at_once.columns().items():
        np.testing.assert_array_equal(array, several.columns()[name])


def test_a_start_with_another_learning_rate_finds_what_is_kept() -> None:
    write(rows(ROWS))
    len(start(cached=True).train)
    again = start(cached=True, learning_rate=1e-5, steps=3)
    assert isinstance(again.train, Arriving)
    assert again.train.complete


def test_windows_are_counted_before_they_are_there() -> None:
    write([{"text": f"text {i} " + "word " * (40 * (i % 8))} for i in range(ROWS)])
    prepared = start(eval={"split": 0})
    assert isinstance(prepared.train, Arriving)
    assert prepared.train.planned == pytest.approx(len(prepared.train), rel=0.05)
    assert prepared.train.planned_tokens == pytest.approx(prepared.report.tokens, rel=0.05)


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "both", "function"])
def test_no_row_is_cut_that_a_sample_had_missed(kind: str) -> None:
    """The longest of them need not be among those of the sample."""
    import pandas

    found = [{"prompt": [{"role": "user", "content": f"ask {i}"}], "completion": "ok"} for i in range(1200)]
    found[1101]["prompt"][0]["content"] = "long " * 40  # type: ignore[index]
    Path("mixed").mkdir()
    source = {"jsonl": "rows.jsonl", "both": "mixed"}.get(kind, "mixed/rows.parquet")
    write(found[:600] if kind == "both" else found, "mixed/rows.jsonl" if kind == "both" else "rows.jsonl")
    pandas.DataFrame(found[600:] if kind == "both" else found).to_parquet("mixed/rows.parquet")
    more = {"function": "same"} if kind == "function" else {}
    spec = from_mapping({"data": {"source": source, **more}, "eval": {"split": 0}})
    sources = resolve(spec.data, {"same": lambda row: row})
    prepared = nbtune.data.prepare_data(sources, tokenizer(CHATML), spec=spec, max_len=512, seed=0, processes=0)
    assert isinstance(prepared.train, Arriving)
    assert 60 < prepared.train.whole().longest < 512
    assert prepared.report.fates == []


def test_a_report_that_is_waited_for_is_whole() -> None:
    """As `nbtune data` prints it."""
    from nbtune.system_report import examine_rows

    write(rows(ROWS))
    found = examine_rows(from_mapping({"data": "rows.jsonl", "eval": {"split": 0.1}}))
    assert found.report.used + found.report.held_out == ROWS
    assert f"{ROWS:,} rows" in str(found)
    assert [line["row"] for line in found.each()] == list(range(ROWS))
