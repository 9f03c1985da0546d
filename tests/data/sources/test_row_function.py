"""Functions and templates of one's own make rows of rows, and a run keeps them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import nbtune.data
from nbtune.data import Prepared, open_snapshot, resolve, snapshot
from nbtune.errors import DataError, SpecError
from nbtune.spec import from_mapping
from tests.data.making import CHATML, tokenizer

ROWS = [{"q": f"ask {i}", "a": f"say {i}", "skip": i == 1} for i in range(4)]


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NBTUNE_CACHE", str(Path("cache").absolute()))


def sources(namespace: dict[str, Any], **fields: Any) -> tuple[Any, Any]:
    spec = from_mapping({"data": [{"source": "rows", **fields}], "eval": {"split": 0}})
    return spec, resolve(spec.data, {"rows": ROWS, **namespace})


def said(prepared: Prepared) -> list[str]:
    fast = tokenizer(CHATML)
    return [fast.decode([i for i in e.labels if i != -100]) for e in prepared.train]


def prepare(spec: Any, found: Any) -> Prepared:
    return nbtune.data.prepare_data(found, tokenizer(CHATML), spec=spec, max_len=128, seed=0)


def as_chat(row: dict[str, Any]) -> dict[str, Any] | None:
    """Also named `tests.data.sources.test_row_function:as_chat`."""
    return None if row["skip"] else {"prompt": row["q"], "completion": row["a"].upper()}


def test_a_function_of_the_notebook_makes_the_rows() -> None:
    spec, found = sources({"as_chat": as_chat}, function="as_chat")
    prepared = prepare(spec, found)
    assert said(prepared) == ["SAY 0<|im_end|>", "SAY 2<|im_end|>", "SAY 3<|im_end|>"]
    assert prepared.report.fates == [("rows", 1, "dropped", "`as_chat` left it out")]


def test_a_function_of_a_module_makes_the_rows() -> None:
    spec, found = sources({}, function="tests.data.sources.test_row_function:as_chat")
    assert len(prepare(spec, found).train) == 3


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        ("just text", "just text</s>"),
        ([{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "a<|im_end|>"),
    ],
)
def test_a_function_may_make_text_or_messages(made: Any, expected: str) -> None:
    spec, found = sources({"f": lambda row: made}, function="f")
    assert said(prepare(spec, found))[0] == expected


def test_a_run_keeps_the_function_without_the_notebook() -> None:
    suffix = "!"
    spec, found = sources(
        {"shout": lambda row: {"prompt": row["q"], "completion": row["a"] + suffix}}, function="shout"
    )
    first = said(prepare(spec, snapshot(found, "run/data")))
    assert first[0] == "say 0!<|im_end|>"
    again = open_snapshot("run/data")
    assert said(prepare(spec, again)) == first
    assert again[0].change_digest
    assert json.loads(Path("run/data/rows.jsonl").read_text().splitlines()[0])["q"] == "ask 0"


def test_a_function_that_somebody_else_wrote_is_not_loaded() -> None:
    import pickle

    _, found = sources({"f": lambda row: None}, function="f")
    snapshot(found, "run/data")
    file = next(Path("run/data").glob("*.function"))
    body = file.read_bytes()

    class Evil:
        def __reduce__(self) -> Any:
            return Path.write_text, (Path("owned"), "x")

    file.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(DataError, match="not written here by you"):
        open_snapshot("run/data")
    file.write_bytes(body)
    Path("cache/functions.key").unlink()
    with pytest.raises(DataError, match="not written here by you"):
        open_snapshot("run/data")
    file.unlink()
    with pytest.raises(DataError, match="gone"):
        open_snapshot("run/data")
    assert not Path("owned").exists()


def test_mistakes_of_a_function_are_said_with_the_row() -> None:
    def broken(row: dict[str, Any]) -> Any:
        return row["missing"] if row["q"] == "ask 2" else {"prompt": "q", "completion": "a"}

    spec, found = sources({"broken": broken}, function="broken")
    with pytest.raises(DataError, match="KeyError") as caught:
        prepare(spec, found)
    assert caught.value.place == "rows, row 2"
    spec, found = sources({"three": lambda row: 3}, function="three")
    with pytest.raises(DataError, match="made a int"):
        prepare(spec, found)
    for name, message in (
        ("absent", "not defined"),
        ("rows", "no function"),
        ("os:nothing", "cannot be imported"),
        ("..:x", "imported"),
    ):
        with pytest.raises(DataError, match=message):
            sources({}, function=name)


def answering(word: str) -> Any:
    return lambda row: {"prompt": row["q"], "completion": word}


def test_prepared_data_is_kept_by_the_code_of_its_function(monkeypatch: pytest.MonkeyPatch) -> None:
    from nbtune.data.prepare import cache
    from nbtune.data.prepare.cache import key_of

    monkeypatch.setattr(cache, "WORTH", 1)
    keys = []
    for word in ("a", "b", "a"):
        _, found = sources({"f": answering(word)}, function="f")
        keys.append(key_of(snapshot(found, f"run-{word}/data"), tokenizer(CHATML), {}))
    assert keys[0] is not None
    assert keys[0] == keys[2] != keys[1]


def test_a_template_makes_text_and_says_what_is_trained() -> None:
    template = "Q: {{ q }}\nA:\n{% generation %}{{ a | upper }}{% endgeneration %}"
    spec, found = sources({}, template=template)
    prepared = prepare(spec, found)
    assert said(prepared)[0] == "SAY 0</s>"
    assert tokenizer(CHATML).decode(prepared.train[0].input_ids) == "Q: ask 0\nA:\nSAY 0</s>"
    assert prepared.report.sources[0].format == "template"
    spec, found = sources({}, template="{{ q }} {{ a }}")
    assert said(prepare(spec, found))[0] == "ask 0 say 0</s>"


def test_a_templates_control_tokens_are_meant_and_the_rows_are_not() -> None:
    fast = tokenizer(CHATML)
    end = fast.convert_tokens_to_ids("<|im_end|>")
    rows = [{"q": "is <|im_end|> text?", "a": "yes"}]
    template = "<|im_start|>{{ q }}<|im_end|>{% generation %}{{ a }}<|im_end|>{% endgeneration %}"
    spec = from_mapping({"data": [{"source": "rows", "template": template}]})
    prepared = prepare(spec, resolve(spec.data, {"rows": rows}))
    assert prepared.train[0].input_ids.count(end) == 2
    assert said(prepared) == ["yes<|im_end|></s>"]


def test_templates_that_cannot_work_are_refused() -> None:
    for template, message in (("{{ q", "not Jinja2"), ("{{ quest }}", "no column `quest`")):
        spec, found = sources({}, template=template)
        with pytest.raises(SpecError, match=message):
            prepare(spec, found)
    spec, found = sources({}, template="{{ q.__class__.__mro__ }}")
    with pytest.raises(DataError, match="unsafe"):
        prepare(spec, found)
