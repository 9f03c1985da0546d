"""From rows to tokens: every row is accounted for, nothing is silently untrained, and a split that does not leak."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nbtune.data
from nbtune.data import DataFacts, Prepared, measure, resolve
from nbtune.data.prepare.stats import longest_pair
from nbtune.data.template.chat_template import PLAIN_TEMPLATE, ChatTemplate
from nbtune.errors import DataError, SpecError
from nbtune.spec import from_mapping
from tests.data.making import CHATML, tokenizer
from tests.support.every import every


def prepare(rows: Any, max_len: int = 256, fast: Any = None, **fields: Any) -> Prepared:
    options = {key: fields.pop(key) for key in ("overflow", "on_error") if key in fields}
    spec = from_mapping({"data": "rows", **fields})
    sources = resolve(spec.data, {"rows": rows})
    return nbtune.data.prepare_data(
        sources, fast or tokenizer(CHATML), spec=spec, max_len=max_len, seed=spec.seed, **options
    )


def chats(count: int, words: int = 1) -> list[dict[str, Any]]:
    return [{"prompt": f"ask {i}", "completion": f"say {i} " + "word " * words + "end"} for i in range(count)]


def said(prepared: Prepared, index: int = 0) -> str:
    example = prepared.train[index]
    kept = [label for label in example.labels if label != -100]
    return tokenizer(CHATML).decode(kept)


def test_answers_with_their_terminator_are_trained() -> None:
    prepared = prepare(chats(3))
    assert said(prepared) == "say 0 word end<|im_end|>"
    example = prepared.train[0]
    assert (example.source, example.row) == ("rows", 0)
    assert every(label in (-100, token) for label, token in zip(example.labels, example.input_ids, strict=True))
    assert prepared.eval is None
    assert prepared.report.terminator == "<|im_end|>"


def test_what_is_trained_can_be_chosen() -> None:
    talk = [{"role": r, "content": f"{r} {i}"} for i in range(2) for r in ("user", "assistant")]
    rows = [{"messages": talk}]
    assert said(prepare(rows)) == "assistant 0<|im_end|>assistant 1<|im_end|>"
    assert said(prepare(rows, train_on="last_answer")) == "assistant 1<|im_end|>"
    everything = prepare(rows, train_on="all").train[0]
    assert everything.labels == everything.input_ids
    talk[1]["weight"] = 0
    assert said(prepare(rows)) == "assistant 1<|im_end|>"
    talk[1].pop("weight")
    talk[3]["train"] = False
    assert said(prepare(rows)) == "assistant 0<|im_end|>"


def test_a_role_that_no_message_has_is_named() -> None:
    rows = [{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "train": True}]}]
    told = [w for w in prepare(rows, train_on=["user", "assitant"]).report.warnings if "train_on" in w]
    assert len(told) == 1
    assert "`assitant`, and no message has that role: they are `user`, `assistant`" in told[0]
    assert not [w for w in prepare(rows, train_on=["user"]).report.warnings if "train_on" in w]
    assert not [w for w in prepare([{"text": "some words"}], train_on=["user"]).report.warnings if "train_on" in w]


def test_stretches_of_an_answer_can_be_left_out() -> None:
    answer = {"role": "assistant", "content": "keep this, not that, and this"}
    answer["train_detail"] = [  # type: ignore[assignment]
        {"begin_offset": 0, "end_offset": 9, "train": True},
        {"begin_offset": 10, "end_offset": 19, "train": False},
    ]
    rows = [{"messages": [{"role": "user", "content": "q"}, answer]}]
    assert said(prepare(rows)) == "keep this, and this<|im_end|>"
    answer["train_detail"] = [{"begin_offset": 10, "end_offset": 99, "train": False}]  # type: ignore[assignment]
    with pytest.raises(DataError, match="outside") as caught:
        prepare(rows)
    assert caught.value.place == "rows, row 0"


def test_the_prompts_messages_are_not_trained() -> None:
    before = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "old"},
        {"role": "user", "content": "r"},
    ]
    rows = [{"prompt": before, "completion": [{"role": "assistant", "content": "new"}]}]
    assert said(prepare(rows)) == "new<|im_end|>"


def test_every_row_is_accounted_for() -> None:
    rows = [*chats(5), {"prompt": "q", "completion": ""}, {"prompt": "q", "completion": "  \n"}, *chats(1, words=400)]
    rows.append({"prompt": "word " * 400, "completion": "never seen"})
    report = prepare(rows).report
    fates = {fate[1]: fate[2:] for fate in report.fates}
    assert fates[5] == fates[6] == ("dropped", "nothing in it would be trained (an empty answer or text)")
    assert fates[7] == ("cut", "longer than 256 tokens")
    assert fates[8] == ("dropped", "no trained token within its first 256 tokens")
    assert report.rows == 9
    assert report.used == report.rows - report.count("dropped")
    assert report.longest == 256
    frame = report.to_frame()
    assert list(frame.columns) == ["source", "row", "status", "reason"]
    assert len(frame) == 4
    assert "cut: 1 row: longer than 256 tokens" in str(report)
    assert any("cut" in warning for warning in report.warnings)


def test_too_long_rows_can_be_dropped_refused_or_cut_on_the_left() -> None:
    rows = [*chats(2), *chats(1, words=400)]
    assert len(prepare(rows, overflow="drop").train) == 2
    with pytest.raises(DataError, match="limit is 256") as caught:
        prepare(rows, overflow="raise")
    assert caught.value.place == "rows, row 2"
    left = prepare(rows, overflow="truncate_left").train[2]
    assert len(left.input_ids) == 256
    assert tokenizer(CHATML).decode(left.input_ids).endswith("end<|im_end|>\n")


def test_long_text_becomes_windows_and_loses_nothing() -> None:
    text = "".join(f"word{i} " for i in range(400))
    prepared = prepare([{"text": text}], max_len=64)
    fast = tokenizer(CHATML)
    ids = [i for example in prepared.train for i in example.input_ids]
    assert ids == [*fast(text)["input_ids"], fast.eos_token_id]
    assert {example.row for example in prepared.train} == {0}
    assert every(len(example.input_ids) <= 64 for example in prepared.train)
    assert prepared.report.count("split") == 1


def test_a_base_model_gets_a_plain_template_and_says_so() -> None:
    fast = tokenizer(None)
    prepared = prepare(chats(2), fast=fast)
    assert prepared.chat_template == PLAIN_TEMPLATE
    assert fast.chat_template is None
    assert any("no chat template" in warning for warning in prepared.report.warnings)
    example = prepared.train[0]
    assert fast.decode(example.input_ids) == "<s>### User:\nask 0\n\n### Assistant:\nsay 0 word end</s>\n\n"
    assert fast.decode([t for t in example.labels if t != -100]) == "say 0 word end</s>"
    spec = from_mapping({"data": "rows"})
    assert ChatTemplate(nbtune.data.speaking(fast, spec, prepared.chat_template)).turns.header == "### Assistant:\n"


def test_the_callers_tokenizer_stays_as_it_is() -> None:
    """A template of the spec, or the plain one, is for these rows; the tokenizer may be used for others after them."""
    for own, asked in ((CHATML, PLAIN_TEMPLATE), (None, PLAIN_TEMPLATE), (None, None)):
        fast = tokenizer(own)
        spec = from_mapping({"data": "rows", "chat_template": asked} if asked else {"data": "rows"})
        sources = resolve(spec.data, {"rows": chats(2)})
        prepared = nbtune.data.prepare_data(sources, fast, spec=spec, max_len=256, seed=0)
        assert fast.chat_template == own
        assert prepared.chat_template == PLAIN_TEMPLATE


def test_a_plan_measures_by_the_template_that_the_run_uses() -> None:
    wordy = PLAIN_TEMPLATE.replace("User", "User who asks a question that is long enough to be counted")
    spec = from_mapping({"data": "rows", "chat_template": wordy, "eval": {"split": 0}})
    sources = resolve(spec.data, {"rows": chats(3)})
    prepared = nbtune.data.prepare_data(sources, tokenizer(CHATML), spec=spec, max_len=999, seed=0)
    assert measure(sources, tokenizer(CHATML), spec).tokens_total == prepared.facts.tokens_total


def test_a_plan_refuses_what_the_run_refuses() -> None:
    rows = [*chats(3), {"prompt": "half of a smile \ud83d", "completion": "Ahoy!"}, *chats(3)]
    spec = from_mapping({"data": "rows", "eval": {"split": 0}})
    sources = resolve(spec.data, {"rows": rows})
    said = []
    for work in (
        lambda: measure(sources, tokenizer(CHATML), spec),
        lambda: nbtune.data.prepare_data(sources, tokenizer(CHATML), spec=spec, max_len=999, seed=0),
    ):
        with pytest.raises(DataError, match="half of a character") as caught:
            work()
        said.append(str(caught.value))
    assert said[0] == said[1]
    skipping = spec.model_copy(update={"on_error": "skip"})
    assert measure(sources, tokenizer(CHATML), skipping).rows == 7  # as many as there are


def test_all_masked_data_is_refused() -> None:
    for rows in (
        [{"messages": [{"role": "user", "content": "only asking"}]}] * 3,
        [{"prompt": "q", "completion": ""}] * 3,
        [{"segments": [{"text": "a", "label": False}]}] * 3,
    ):
        with pytest.raises(DataError, match="0 %") as caught:
            prepare(rows)
        assert caught.value.place == "rows"
        assert caught.value.fix


def test_little_trained_data_is_warned_of() -> None:
    few = prepare([{"prompt": "word " * 60, "completion": "y"}] * 3).report
    assert few.trained_share < 0.05
    assert any("tokens are trained" in warning for warning in few.warnings)
    assert not any("tokens are trained" in warning for warning in prepare(chats(3)).report.warnings)


def test_a_bad_row_is_named_or_skipped() -> None:
    rows = [*chats(3), {"prompt": "q", "completion": None}, *chats(1), {"prompt": "q", "completion": ["x"]}]
    with pytest.raises(DataError, match="`completion` is missing") as caught:
        prepare(rows)
    assert caught.value.place == "rows, row 3"
    report = prepare(rows, on_error="skip").report
    assert [fate[1] for fate in report.fates] == [3, 5]
    assert report.used == 4


def test_a_conversation_that_the_template_refuses_is_named() -> None:
    from tests.data.making import RECREATED

    fast = tokenizer(RECREATED["llama2"])
    good = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    rows = [{"messages": good}, {"messages": [*good, good[1]]}]
    with pytest.raises(DataError, match="alternate") as caught:
        prepare(rows, fast=fast)
    assert caught.value.place == "rows, row 1"


def test_rows_are_held_out_whole_and_without_leaks() -> None:
    rows = [*chats(60), *chats(20)]  # the first twenty are there twice
    prepared = prepare(rows, eval={"split": 0.2})
    assert prepared.eval is not None
    assert len(prepared.eval) == 16
    train = {tuple(example.input_ids) for example in prepared.train}
    assert not any(tuple(example.input_ids) in train for example in prepared.eval)
    again = prepare(rows, eval={"split": 0.2})
    assert again.eval is not None
    assert [e.row for e in again.eval] == [e.row for e in prepared.eval]
    other = prepare(rows, eval={"split": 0.2}, seed=1)
    assert other.eval is not None
    assert [e.row for e in other.eval] != [e.row for e in prepared.eval]
    assert prepared.report.duplicates == 20


def test_how_many_rows_are_held_out_by_default() -> None:
    assert prepare(chats(39)).eval is None
    forty = prepare(chats(40))
    assert forty.eval is not None
    assert (len(forty.train), len(forty.eval)) == (38, 2)
    assert prepare(chats(100), eval={"split": 0}).eval is None
    windows = prepare([{"text": "word " * 200 + str(i)} for i in range(50)], max_len=64)
    assert windows.eval is not None
    assert not {e.row for e in windows.eval} & {e.row for e in windows.train}


def test_rows_of_their_own_for_evaluation() -> None:
    spec = from_mapping({"data": "rows", "eval": {"data": "held"}})
    names = {"rows": chats(50), "held": chats(3)}
    assert spec.eval.data is not None
    sources = resolve(spec.data, names) + resolve([spec.eval.data], names, role="eval")
    prepared = nbtune.data.prepare_data(sources, tokenizer(CHATML), spec=spec, max_len=256, seed=1)
    assert prepared.eval is not None
    assert (len(prepared.train), len(prepared.eval)) == (50, 3)


def test_no_answer_ends_is_refused() -> None:
    """With marks around the text alone, and no terminator behind it where the conversation ends."""
    template = (
        "{% for m in messages %}{% if m['role'] == 'user' %}{{ '<|im_start|>' + m['content'] + '<|im_end|>' }}"
        "{% else %}{% generation %}{{ m['content'] }}{% endgeneration %}{% if not loop.last %}{{ '<|im_end|>' }}"
        "{% endif %}{% endif %}{% endfor %}"
    )
    fast = tokenizer(template)
    assert ChatTemplate(fast).turns.appended == "<|im_end|>"
    assert prepare(chats(2), fast=fast).report.used == 2  # the terminator is appended


def test_facts_of_a_sample_are_near_those_of_all_rows() -> None:
    rows = chats(600, words=3)
    spec = from_mapping({"data": "rows"})
    sources = resolve(spec.data, {"rows": rows})
    exact = prepare(rows).facts
    guess = measure(sources, tokenizer(CHATML), spec)
    assert isinstance(guess, DataFacts)
    assert guess.rows == exact.rows == 570
    assert guess.eval_rows == exact.eval_rows == 30
    assert guess.tokens_total * 0.95 == pytest.approx(exact.tokens_total, rel=0.02)
    assert guess.longest == exact.longest
    assert sum(count for _, count in exact.lengths) == exact.rows
    assert sum(count for _, count in guess.lengths) == pytest.approx(exact.rows, rel=0.02)
    assert (exact.exact, guess.exact) == (True, False)
    assert measure(sources, None, spec).tokens_total > 0
    assert exact.mapping == {"prompt": "prompt", "completion": "completion"}


def test_own_sets_can_all_be_read() -> None:
    from nbtune.data.sources import builtin

    for name, info in builtin.SETS.items():
        if info.form == "preference":
            continue
        spec = from_mapping({"data": name})
        prepared = nbtune.data.prepare_data(resolve(spec.data), tokenizer(CHATML), spec=spec, max_len=999, seed=0)
        assert prepared.report.count("dropped") == 0
        assert prepared.facts.format == info.form


def test_a_slow_tokenizer_is_refused() -> None:
    class Slow:
        chat_template = None
        bos_token = eos_token = None

    with pytest.raises(DataError, match="slow tokenizer"):
        nbtune.data.prepare_data(
            resolve(from_mapping({"data": "rows"}).data, {"rows": ["text"]}),
            Slow(),
            spec=from_mapping({"data": "rows"}),
            max_len=9,
            seed=0,
        )


def test_importing_the_room_is_light() -> None:
    import subprocess
    import sys

    code = (
        "import sys, nbtune.data\n"
        "heavy = {'torch', 'transformers', 'datasets', 'pandas', 'polars', 'pyarrow', 'numpy', 'jinja2'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "import nbtune.data.sources.resolve, nbtune.data.sources.snapshot\n"
        "assert not (heavy - {'numpy'}) & set(sys.modules)\n"
        "assert callable(nbtune.data.prepare_data) and callable(nbtune.data.resolve)\n"
        "import nbtune.data.prepare.prepare\n"
        "assert callable(nbtune.data.prepare_data) and callable(nbtune.data.measure)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(nbtune.__file__).parents[1])


def long_talk(turns: int) -> list[dict[str, Any]]:
    talk = [{"role": "system", "content": "be brief"}]
    for i in range(turns):
        talk += [
            {"role": "user", "content": f"question {i} " + "word " * 10},
            {"role": "assistant", "content": f"say {i}"},
        ]
    return talk


def test_a_long_chat_is_split_between_its_turns() -> None:
    rows = [{"messages": long_talk(9)}, {"messages": long_talk(1)}]
    prepared = prepare(rows, max_len=180, overflow="split")
    fast, parts = tokenizer(CHATML), [e for e in prepared.train if e.row == 0]
    assert len(parts) > 1
    assert every(len(part.input_ids) <= 180 for part in parts)
    texts = [fast.decode(part.input_ids) for part in parts]
    assert every(
        text.startswith("<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\nquestion") for text in texts
    )
    learnt = "".join(fast.decode([i for i in part.labels if i != -100]) for part in parts)
    assert learnt == "".join(f"say {i}<|im_end|>" for i in range(9))
    assert prepared.report.fates == [("rows", 0, "split", "longer than 180 tokens, split between its turns")]


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("turn", "a 0<|im_end|>a 1<|im_end|>"),
        ("last", "a 0a 1<|im_end|>"),
        ("none", "a 0a 1"),
        ("all", "<|im_end|><|im_end|>a 0<|im_end|><|im_end|>a 1<|im_end|>"),
    ],
)
def test_which_ends_of_turns_are_trained(policy: str, expected: str) -> None:
    talk = [{"role": "system", "content": "s"}]
    talk += [{"role": r, "content": f"{r[0]} {i}"} for i in range(2) for r in ("user", "assistant")]
    assert said(prepare([{"messages": talk}], terminators=policy)) == expected


def test_thoughts_are_kept_split_or_dropped() -> None:
    from tests.data.making import templates

    row = {"prompt": "2+2?", "completion": "<think>\nEasy.\n</think>\n\nIt is 4."}
    fast = tokenizer(templates()["gptoss"])

    def learnt(thinking: str) -> str:
        example = prepare([row], fast=fast, thinking=thinking).train[0]
        return str(fast.decode([i for i in example.labels if i != -100]))

    assert learnt("split") == "<|channel|>analysis<|message|>Easy.<|end|><|channel|>final<|message|>It is 4.<|return|>"
    assert learnt("drop") == "<|channel|>final<|message|>It is 4.<|return|>"
    assert said(prepare([row])) == "<think>\nEasy.\n</think>\n\nIt is 4.<|im_end|>"
    assert said(prepare([row], thinking="drop")) == "It is 4.<|im_end|>"
    assert said(prepare([row], thinking="split")) == "<think>\nEasy.\n</think>\n\nIt is 4.<|im_end|>"
    talk = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "reasoning_content": "hm"}]
    assert any("thoughts" in w for w in prepare([{"messages": talk}]).report.warnings)
    assert not any("thoughts" in w for w in prepare([{"messages": talk}], thinking="drop").report.warnings)


def test_a_chat_template_of_ones_own() -> None:
    own = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )

    def with_own(template: str) -> Prepared:
        return prepare(chats(1), fast=copy.deepcopy(tokenizer(CHATML)), chat_template=template)

    assert said(with_own(own)) == "say 0 word end</s>"
    Path("own.jinja").write_text(own)
    prepared = with_own("own.jinja")
    assert prepared.chat_template == own
    assert said(prepared) == "say 0 word end</s>"
    with pytest.raises(SpecError, match="neither"):
        with_own("missing.jinja")
    with pytest.raises(DataError, match="broken"):
        with_own("{% for m in messages %}")
    with pytest.raises(DataError, match="unsafe"):
        with_own("{{ messages.__class__.__mro__ }}" + own)


def test_a_pair_is_as_long_as_what_goes_through_the_model() -> None:
    """What both begin with is counted once but for its last token, which each answer's first is said after."""
    learnt = np.array([0, 0, 0, 1, 1], bool)
    rows = [np.array([1, 2, 3, 4, 5]), np.array([1, 2, 3, 9, 9]), np.array([1, 8, 3, 4]), np.array([1, 2, 3, 4])]

    def row(k: int) -> tuple[np.ndarray, np.ndarray]:
        return rows[k], learnt[: len(rows[k])]

    assert longest_pair(row, [5, 5, 4, 4]) == 10 - 2
    assert longest_pair(lambda k: row(k + 2), [4, 4]) == 8 - 1  # they part at the second token
    shared = [np.arange(1, 7), np.arange(1, 7), np.arange(5), np.arange(5, 9)]
    ends = lambda k: np.arange(len(shared[k])) == len(shared[k]) - 1  # noqa: E731
    assert longest_pair(lambda k: (shared[k], ends(k)), [6, 6, 5, 4]) == 9  # the longer pair shares four of its six
