"""The chat on real runs: any two of bases, runs and checkpoints; and from votes to a run that prefers what won."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

import nbtune
from nbtune.errors import NbtuneError
from tests.support.every import every

ROWS = [{"prompt": f"Who are you, {k}?", "completion": "Ahoy! I am Captain Tune."} for k in range(24)]
ASKED = "Who are you, 3?"


def train(name, **fields):
    return nbtune.finetune(
        data="rows", rows={"rows": ROWS}, name=name, eval={"split": 0}, batch_size=4, **fields
    ).wait()


def ask(panel, prompt, **options):
    done = threading.Event()

    def look(change):
        if not change["new"]:
            done.set()

    panel.observe(look, "busy")
    panel.do_ask(prompt, **options)
    assert done.wait(240)
    panel.unobserve(look, "busy")
    assert panel.turns[-1]["errors"] == ["", ""]
    return panel.turns[-1]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    place = tmp_path_factory.mktemp("runs")
    one = train("one", steps=20, learning_rate=3e-3, checkpoint={"every": 10, "keep": 9}, runs_dir=place)
    return one, train("two", steps=4, runs_dir=place)


def test_bases_runs_and_checkpoints_can_be_put_beside_each_other(runs):
    one, two = runs
    panel = one.chat()
    keys = [choice["key"] for choice in panel.choices]
    assert keys == [one.id, f"{one.id}@10", f"{one.id}@20", f"{one.id}:base", two.id, f"{two.id}@4", f"{two.id}:base"]
    assert [side["key"] for side in panel.sides] == [f"{one.id}:base", one.id]
    first = ask(panel, ASKED, max_new_tokens=16)["answers"]
    assert first == [one.generate(ASKED, base=True, max_new_tokens=16), one.generate(ASKED, max_new_tokens=16)]

    panel.do_pick(0, two.id)
    panel.do_pick(1, f"{one.id}@10")
    assert panel.turns == []  # another one, another conversation
    assert [side["name"] for side in panel.sides] == ["two", "one · 10"]
    asked = ask(panel, ASKED, max_new_tokens=16)["answers"]
    assert asked == [two.generate(ASKED, max_new_tokens=16), one.at(10).generate(ASKED, max_new_tokens=16)]
    with pytest.raises(NbtuneError):
        panel.do_pick(0, "nobody")
    panel.close()


def test_a_checkpoint_can_be_named_in_code(runs):
    one, _ = runs
    panel = one.chat(one.at(10))
    assert [side["key"] for side in panel.sides] == [f"{one.id}@10", one.id]
    panel.close()


def test_the_same_seed_draws_the_same_of_the_same_model(runs):
    one, _ = runs
    panel = one.chat(one)
    left, right = ask(panel, "Tell me a story", temperature=1.5, max_new_tokens=20)["answers"]
    assert left == right
    panel.close()


def test_votes_are_learnt_from(runs):
    """Ask blind, vote for the captain, save, train `method: dpo` on the file."""
    one, _ = runs
    panel = one.chat(system="Answer in one sentence.")
    panel.do_blind(True)
    for k in range(6):
        turn = ask(panel, f"Who are you, {k}?", max_new_tokens=12)
        assert turn["order"] is None
        captain = next((place for place, said in enumerate(turn["answers"]) if "Ahoy" in said), None)
        assert captain is not None, turn["answers"]
        panel.do_vote(turn["number"], captain)
        panel.do_clear()
    assert panel.votes == 6
    name = panel.do_save()
    panel.close()
    rows = [json.loads(line) for line in Path(name).read_text(encoding="utf-8").splitlines()]
    assert every(row["prompt"][0]["role"] == "system" and "Ahoy" in row["chosen"][0]["content"] for row in rows)

    shared = {"eval": {"split": 0}, "batch_size": 2, "learning_rate": 1e-3}
    run = nbtune.finetune(data=name, method="dpo", steps=12, name="preferred", **shared).wait()
    losses = run.history["loss"]
    assert losses.iloc[0] == pytest.approx(0.6931, abs=1e-3)  # −ln σ(0): nothing is preferred yet
    assert losses.iloc[-3:].mean() < 0.6 * losses.iloc[0]
