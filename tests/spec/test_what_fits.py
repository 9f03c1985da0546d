"""What of a spec does not go together, key by key: refused where it does nothing, taken where it does."""

from __future__ import annotations

from typing import Any

import pytest

from nbtune.errors import SpecError
from nbtune.methods import METHODS
from nbtune.spec import RunSpec, from_mapping, from_yaml, yaml_loader
from nbtune.spec.learning import OPTIMIZERS, SCHEDULES, OptimArgs, ScheduleArgs
from nbtune.spec.loss_options import options_of, takes_logits
from nbtune.spec.text_metrics import TEXT_METRICS, missing_library

ONLINE = [name for name, method in METHODS.items() if method.online]


def spec(**fields: Any) -> RunSpec:
    return from_mapping({"data": "rows", **fields})


def refused(words: str, **fields: Any) -> None:
    with pytest.raises(SpecError) as caught:
        spec(**fields)
    assert words in f"{caught.value.cause}: {caught.value.fix}"


# -- methods that answer by themselves -----------------------------------------------------------------------------

IDLE_ONLINE: list[tuple[str, dict[str, Any]]] = [
    ("gpus", {"gpus": 2}), ("gpus", {"gpus": "all"}), ("cluster", {"cluster": "ray"}), ("packing", {"packing": True}),
    ("weights", {"weights": "streamed"}), ("optim", {"optim": "adamw_8bit"}), ("optim", {"optim": "lion"}),
    ("lr_scheduler_type", {"lr_scheduler_type": "polynomial"}), ("optim_args", {"optim_args": {"ema_decay": 0.9}}),
    ("optim_args", {"optim_args": {"lora_b_rate": 2}}), ("row_weights", {"row_weights": {"r3fa9c1d2e4b5": 0}}),
    ("neftune_noise_alpha", {"neftune_noise_alpha": 5}), ("mix", {"mix": {"temperature": 2}}),
    ("order", {"order": "in_turn"}), ("order", {"order": "short_first"}), ("eval.patience", {"eval": {"patience": 2}}),
    ("eval.load_best", {"eval": {"load_best": True}}),
]  # fmt: skip
KNOWN_ONLINE: list[dict[str, Any]] = [
    {"gpus": 1}, {"cluster": "none"}, {"packing": False}, {"packing": "auto"}, {"optim": "adamw"}, {"mix": {}},
    {"optim_args": {"beta1": 0.8, "beta2": 0.9, "eps": 1e-6}}, {"schedule": {"warmup_steps": 3}}, {"order": "given"},
    {"order": "shuffled"}, {"lr_scheduler_type": "linear"}, {"lr_scheduler_type": "constant"}, {"eval": {"split": 0.2}},
]  # fmt: skip


@pytest.mark.parametrize("method", ONLINE)
def test_what_a_method_that_answers_does_not_know_yet_is_refused(method: str) -> None:
    for key, more in IDLE_ONLINE:
        refused(f"method `{method}` does not know `{key}: …` yet", method=method, rewards="f", **more)
    for more in KNOWN_ONLINE:
        assert spec(method=method, rewards="f", steps=20, **more).method == method


@pytest.mark.parametrize("method", ONLINE)
def test_a_penalty_for_leaving_the_base_wants_an_adapter_to_leave_it_by(method: str) -> None:
    full = {"type": "full"}
    for beta in (None, 0.1, 0):
        asked: dict[str, Any] = {"method": method, "rewards": "f"} | ({} if beta is None else {"beta": beta})
        if METHODS[method].options["beta"] if beta is None else beta:
            refused("compares with the model without its adapter", adapter=full, **asked)
        else:
            assert spec(adapter=full, **asked).adapter.type == "full"
        assert spec(**asked).adapter.type == "lora"


# -- a method and its keys -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_a_method_takes_what_it_can_do_something_with(method: str) -> None:
    """Teacher, labels, samples, `full`, the least batch: each by what the method says of itself."""
    of = METHODS[method]
    asked: dict[str, Any] = {"method": method} | ({"teacher": "a/b"} if of.teacher else {})
    asked |= {"rewards": "f"} if of.online else {}
    assert spec(**asked).method == method
    if of.teacher:
        refused("learns from a teacher: name it", method=method)
    else:
        refused("`teacher` is nothing to method", **asked, teacher="a/b")
    for labels, fine in ((["a", "b"], True), (["a"], False), (["a", "b", "a"], False), (["a", "a"], False)):
        if of.names_labels and fine:
            assert spec(**asked, labels=labels).labels == tuple(labels)
        else:
            refused(
                "two labels or more" if of.names_labels else "`labels` is nothing to method", **asked, labels=labels
            )
    if of.head:
        refused("gives scores and writes no answers", **asked, samples=["Hi"])
        refused("learns from scores, not from tokens: drop `train_on`", **asked, train_on=["assistant"])
    if of.reference and not of.online:
        refused("compares with the model without its adapter", **asked, adapter={"type": "full"})
    if not of.online:
        for parts, batch in (({"batch_size": 1}, 1), ({"batch_size": 2}, 2), ({"micro_batch_size": 1}, 1),
                             ({"micro_batch_size": 1, "gradient_accumulation_steps": 2}, 2)):  # fmt: skip
            if batch < of.least_batch:
                refused("compares the answers of a step: set batch_size to 2 or more", **asked, **parts)
            else:
                assert spec(**asked, **parts).method == method


def test_teachers_words_that_are_written_are_read_by_one_process() -> None:
    how: dict[str, Any] = {"method": "distill", "teacher": "a/b"}
    assert spec(**how, loss={"top_k": 8}).loss.top_k == 8
    assert spec(**how, gpus=2).gpus == 2
    refused("`loss.top_k` is written and read by one process", **how, loss={"top_k": 8}, gpus=2)


def test_a_beta_is_of_methods_that_have_one_and_its_value_is_the_losss() -> None:
    assert options_of(spec(method="dpo", beta=0.3)) == {"beta": 0.3}
    assert options_of(spec(method="dpo")) == {}
    refused("`beta` is of methods that learn preferences", beta=0.3)
    for name, method in METHODS.items():
        if "beta" in method.options and not method.online:
            refused(f"with `beta: 0` method `{name}` would learn nothing", method=name, beta=0)
    assert [takes_logits(spec(loss=loss)) for loss in ({}, {"label_smoothing": 0.1}, {"z_loss": 0.1})] == [0, 1, 1]
    assert not takes_logits(spec(method="dpo", loss={"label_smoothing": 0.1}))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("metric", ["exact_match", "perplexity", "token_accuracy", "mine"])
def test_a_metric_is_of_methods_that_it_measures(method: str, metric: str) -> None:
    of = METHODS[method]
    asked: dict[str, Any] = {"method": method, "eval": {"metrics": [metric]}}
    asked |= ({"teacher": "a/b"} if of.teacher else {}) | ({"rewards": "f"} if of.online else {})
    own = metric in ("perplexity", "token_accuracy")
    if of.head:
        refused("writes no answers, and has metrics of its own: drop `eval.metrics`", **asked)
    elif of.online:
        refused("does not know `eval.metrics` yet", **asked)
    elif not own and of.rows not in ("sft", "pairs"):
        refused(f"have no answer to compare with: drop `{metric}`", **asked)
    elif own and not of.by_tokens:
        refused(f"has a loss of whole answers: drop `{metric}`", **asked)
    else:
        assert spec(**asked).eval.metrics == (metric,)


def test_a_metric_whose_library_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    libraries = {metric.library for metric in TEXT_METRICS.values() if metric.library}
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name in libraries else object())
    assert missing_library(["exact_match", "mine", "bleu", "rouge"]) == ("bleu", "sacrebleu")
    assert missing_library(["exact_match", "mine", "perplexity"]) is None


# -- an optimizer, a schedule, an adapter --------------------------------------------------------------------------


def example(part: Any, name: str) -> Any:
    """A value of a key that is not its default."""
    return part.model_fields[name].examples[0]


@pytest.mark.parametrize("optim", OPTIMIZERS)
def test_an_optimizer_takes_what_it_reads_and_nothing_else(optim: str) -> None:
    of_all = {"lora_b_rate", "embedding_rate", "head_rate", "ema_decay"}
    for name in OptimArgs.model_fields.keys() - {"in_backward"}:
        args = {name: example(OptimArgs, name)}
        if name in {*OPTIMIZERS[optim].reads, *of_all}:
            assert spec(optim=optim, optim_args=args).optim_args.model_dump(exclude_defaults=True) == args
        else:
            refused(f"`optim_args.{name}` changes nothing: optimizer `{optim}` has none", optim=optim, optim_args=args)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_schedule_takes_what_it_reads_and_nothing_else(schedule: str) -> None:
    for name in ScheduleArgs.model_fields:
        told = {"lr_scheduler_type": schedule, "schedule": {name: example(ScheduleArgs, name)}}
        if name in SCHEDULES[schedule]:
            assert spec(steps=10**6, **told).schedule.model_dump(exclude_defaults=True) == told["schedule"]
        else:
            refused(f"`schedule.{name}` changes nothing: schedule `{schedule}` has none", steps=10**6, **told)


@pytest.mark.parametrize(("steps", "warmup", "fine"), [(5, 4, True), (5, 5, False), (5, 6, False), (None, 6, True)])
def test_a_warm_up_ends_within_the_run(steps: int | None, warmup: int, fine: bool) -> None:
    more: dict[str, Any] = {"schedule": {"warmup_steps": warmup}} | ({} if steps is None else {"steps": steps})
    if fine:
        assert spec(**more).schedule.warmup_steps == warmup
    else:
        refused(f"a warm-up of {warmup} steps does not end within {steps}", **more)


@pytest.mark.parametrize("kind", ["lora", "qlora", "dora"])
def test_first_values_are_of_the_adapter_that_can_have_them(kind: str) -> None:
    for first, able in (
        ("pissa", {"lora"}),
        ("olora", {"lora"}),
        ("loftq", {"qlora"}),
        ("gaussian", {"lora", "qlora", "dora"}),
    ):
        adapter = {"type": kind, "init_lora_weights": first}
        if kind in able:
            kept = spec(adapter=adapter).adapter
            assert (kept.changes_base, kept.keeps_first_values) == (first in ("pissa", "olora"),) * 2
        else:
            refused(f"first values `{first}`", adapter=adapter)
    assert spec(adapter={"type": kind, "bias": "all"}).adapter.keeps_first_values
    for rank, fine in ((4, True), (5, False)):
        odd = {"type": kind, "init_lora_weights": "orthogonal", "r": rank}
        if fine:
            assert spec(adapter=odd).adapter.r == rank
        else:
            refused("want an even rank", adapter=odd)


# -- values without end --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("many", [5, 6])
def test_a_text_of_so_many_values_is_read_and_of_one_more_is_not(many: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(yaml_loader, "MOST", 7)
    text = f"data: [{', '.join(f'r{i}' for i in range(many - 1))}]"  # the mapping, the key, the list, and its items
    if many == 5:
        assert len(from_yaml(text).data) == 4
    else:
        with pytest.raises(SpecError, match="more than 7 values"):
            from_yaml(text)


def test_a_token_is_trained_once() -> None:
    """peft makes a row of each mention, one of which counts."""
    refused("`trainable_token_indices` has token 3 twice", adapter={"trainable_token_indices": [3, 5, 3]})
