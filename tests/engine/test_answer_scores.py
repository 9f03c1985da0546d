"""Answers are judged before the first step and after the last, by metrics of libraries and of the user's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import nbtune
from nbtune import events
from nbtune.errors import PlanError, SpecError, TrainError
from nbtune.spec.text_metrics import TEXT_METRICS, functions_of
from nbtune.widgets.run_report import Report
from tests.engine.conftest import ROWS
from tests.support.every import every

Start = Callable[..., Any]
HELD = {"split": 0.2, "answer_rows": 3, "max_new_tokens": 12}


def said(run: Any, kind: type[Any]) -> list[Any]:
    return [event for event in run.events() if isinstance(event, kind)]


def begin(tmp_path: Any, asked: dict[str, Any], name: str = "judged", **known: Any) -> Any:
    rows = {"rows": ROWS, **known}
    fields: dict[str, Any] = {"steps": 12, "batch_size": 8, "learning_rate": 5e-3, "device": "cpu"}
    return nbtune.finetune(data="rows", rows=rows, eval={**HELD, **asked}, name=name, runs_dir=tmp_path, **fields)


def test_base_and_tuned_are_told_as_event_chart_table_and_card_and_what_was_forgotten_is_named(tmp_path: Any) -> None:
    def has_ship(completions: list[str], references: list[str], prompts: list[str], prompt: list[str]) -> list[float]:
        assert prompts == prompt, "asked last, and the row's own column"
        assert every(text.endswith("sailor.") for text in references)
        return [float("sailor" in text) for text in completions]

    names = ["perplexity", "token_accuracy", "exact_match", "json_valid", "rouge", "bleu", "chrf", "has_ship"]
    keep = [{"prompt": "Hello", "match": r"(?s).*", "regex": True}, {"prompt": "Hello", "match": "no such word"}]
    run = begin(tmp_path, {"metrics": names, "must_keep": keep}, has_ship=has_ship).wait()
    before, after = said(run, events.Scores)
    assert (before.step, after.step, after.rows) == (0, 12, 3)
    own = {"loss", "perplexity", "token_accuracy", "exact_match", "json_valid", "bleu", "chrf", "has_ship", "kept"}
    assert before.values.keys() == after.values.keys() == own | {"rouge1", "rouge2", "rougeL"}
    assert after.values["loss"] == pytest.approx(said(run, events.Eval)[-1].loss, abs=1e-6)
    assert after.values["token_accuracy"] > before.values["token_accuracy"]
    assert after.values["has_ship"] > before.values["has_ship"]
    assert after.values["kept"] == 0.5
    assert run.scores["has_ship"] == (before.values["has_ship"], after.values["has_ship"])

    shown = dict(Report(run).facts())
    assert shown["exact match"] == f"{before.values['exact_match']:.3g} → {after.values['exact_match']:.3g}"
    assert f"| has ship | {before.values['has_ship']:.3g} | {after.values['has_ship']:.3g} |" in run.model_card("a/b")
    chart = [item["values"].get("bleu") for item in Report(run).view.lists["metrics"] if "bleu" in item["values"]]
    assert chart == [pytest.approx(one.values["bleu"], rel=1e-6) for one in (before, after)]

    ask = "What is 4 plus 4?"
    once, learnt = (run.generate(ask, base=base, max_new_tokens=12) for base in (True, False))
    assert once not in learnt
    again = begin(tmp_path, {"must_keep": [{"prompt": ask, "match": once}]}, "forgetful").wait()
    (warning,) = [one for one in said(again, events.Warning) if "must_keep" in one.message]
    assert f"'{ask}' → " in warning.message


def test_a_metric_that_does_wrong_is_named_by_row_before_anything_is_trained(tmp_path: Any) -> None:
    def odd(completions: list[str]) -> list[float]:
        return [1.0, *[float("nan")] * (len(completions) - 1)]

    run = begin(tmp_path, {"metrics": ["odd"]}, odd=odd)
    with pytest.raises(TrainError, match="the metric `odd` gave nan") as failed:
        run.wait()
    assert "rows, line " in str(failed.value)
    assert not said(run, events.Step)


def test_a_metric_that_fails_after_the_last_step_costs_no_weights(tmp_path: Any) -> None:
    called = tmp_path / "called"

    def fickle(completions: list[str]) -> list[float]:
        if called.exists():
            raise KeyError("gone")
        called.touch()
        return [0.0 for _ in completions]

    run = begin(tmp_path, {"metrics": ["fickle"]}, fickle=fickle).wait()
    assert (run.state, run.saved_steps[-1]) == ("finished", 12)
    assert any("raised KeyError" in one.message for one in said(run, events.Warning))
    assert "nbtune.repeat(" in run.script(), "the function is the run's"


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"eval": {"metrics": ["nobody"]}}, "`nobody` is not defined"),
        ({"eval": {"metrics": ["rouge", "rouge"]}}, "names one twice"),
        ({"eval": {"metrics": ["exact_match"]}, "method": "reward"}, "has metrics of its own"),
        ({"eval": {"metrics": ["exact_match"]}, "method": "pretrain"}, "no answer to compare with"),
        ({"eval": {"metrics": ["perplexity"]}, "method": "dpo"}, "a loss of whole answers"),
        ({"eval": {"must_keep": [{"prompt": "a", "match": "(", "regex": True}]}}, "no regular expression"),
        ({"eval": {"metrics": ["exact_match"], "split": 0}}, "nothing to measure the metrics on"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_any_work(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises((SpecError, PlanError)) as refused:
        nbtune.plan(**{"data": ROWS, "steps": 2, "device": "cpu", **fields})
    assert sentence in str(refused.value)


def test_figures_are_those_of_the_libraries_and_of_their_formulas() -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    rouge = pytest.importorskip("rouge_score.rouge_scorer")
    answers = ["the cat sat on the mat", '{"a": 1}', "Die Möwe fliegt über das Meer"]
    wanted = ["the cat sat on a mat", '{"a": 1}', "Die Möwe fliegt übers weite Meer"]
    found: dict[str, float] = {}
    for name in TEXT_METRICS:
        of = TEXT_METRICS[name].of
        found |= of(answers, wanted) if of is not None else {}
    assert found["exact_match"] == found["json_valid"] == pytest.approx(1 / 3)
    assert found["bleu"] == sacrebleu.corpus_bleu(answers, [wanted]).score / 100
    scorer = rouge.RougeScorer(["rougeL"])
    one = TEXT_METRICS["rouge"].of
    assert one is not None
    assert one(answers[:1], wanted[:1])["rougeL"] == scorer.score(wanted[0], answers[0])["rougeL"].fmeasure
    assert one(["Чайка летит"], ["Чайка летит"])["rougeL"] == 1.0, "of any alphabet"
    valid = TEXT_METRICS["json_valid"].of
    assert valid is not None
    assert valid(["NaN", "[" * 9999, "", " 1 "], [""] * 4) == {"json_valid": 0.25}
    assert functions_of([*TEXT_METRICS, "mine"]) == ["mine"]
