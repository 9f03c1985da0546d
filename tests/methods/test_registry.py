"""The registry: every method says all that its readers ask, and its loss says what its rewards say."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nbtune.data.formats.preference_format import READERS as JUDGED
from nbtune.data.formats.reader import _KINDS
from nbtune.errors import DataError, SpecError
from nbtune.methods import METHODS, ROW_KINDS, Answers, Method, _discover
from nbtune.spec import RunSpec, from_mapping
from nbtune.spec.reference import reference

REPO = Path(__file__).resolve().parents[2]
PAIRWISE = [method for method in METHODS.values() if method.pairwise and not method.head]
OF_ANSWERS = [method for method in METHODS.values() if not (method.by_tokens or method.head)]
numbers = st.floats(-60, -0.5)


def answers(logprobs: list[float], reference: list[float], values: list[float] | None = None) -> Answers:
    """Answers of five tokens each, whose log-probabilities can be learnt."""
    one = torch.tensor(logprobs, requires_grad=True)
    judged = None if values is None else torch.tensor(values)
    return Answers(one, torch.full_like(one, 5), torch.tensor(reference), judged)


def of_teacher(method: Method) -> dict[str, str]:
    """What a spec must also say of a method with a teacher."""
    return {"teacher": "nbtune/tiny"} if method.teacher else {}


def test_no_method_is_named_outside_of_its_room() -> None:
    """Data formats of other tools apart, which have such names as well."""
    names = re.compile(rf"[\"'](?:{'|'.join(METHODS.keys() - {'sft'})})[\"']")
    named = [
        str(path.relative_to(REPO))
        for path in (REPO / "nbtune").rglob("*.py")
        if path.parent.name != "methods" and names.search(path.read_text(encoding="utf-8"))
    ]
    assert named == ["nbtune/data/formats/aliases.py"]


def test_asking_the_registry_costs_no_torch() -> None:
    code = "import sys, nbtune.methods; assert nbtune.methods.METHODS; assert not {'torch', 'numpy'} & {*sys.modules}"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_every_reader_knows_every_method(method: Method) -> None:
    spec = from_mapping({"data": "rows", "method": method.name, **of_teacher(method)})
    assert spec.method == method.name
    assert method.rows in _KINDS.keys() & {*ROW_KINDS}
    assert method.by_tokens or method.head or method.rows in {"pairs", "feedback"}, "what a model is asked for it"
    assert 0 < method.learning_rate_share <= 1
    assert f"`{method.name}`" in reference().partition("## Methods")[2]
    for field in ("method", "beta"):
        assert method.name in str(RunSpec.model_fields[field].description) or "beta" in method.options


def test_every_kind_of_judged_rows_has_a_format() -> None:
    assert {reader.name for reader in JUDGED} == {"preference", *ROW_KINDS} - {
        "sft",
        "pairs",
        "texts",
        "labelled",
        "tagged",
    }
    assert _KINDS.keys() == {*ROW_KINDS}


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_what_does_not_go_with_a_method_is_said(method: Method) -> None:
    body = {"data": "rows", "method": method.name, **of_teacher(method)}
    for fields, refused in (
        ({"beta": 0.3}, "beta" not in method.options),
        ({"adapter": "full"}, method.reference or (method.online and bool(method.options["beta"]))),
        ({"batch_size": 1}, method.least_batch > 1),
        ({"micro_batch_size": 1}, method.least_batch > 1),  # which is all of the batch
        ({"micro_batch_size": 1, "gradient_accumulation_steps": 2}, method.least_batch > 2),
    ):
        if refused:
            with pytest.raises(SpecError):
                from_mapping({**body, **fields})
        else:
            from_mapping({**body, **fields})


@pytest.mark.parametrize("method", PAIRWISE, ids=lambda method: method.name)
@given(better=numbers, worse=numbers, references=st.tuples(numbers, numbers), beta=st.floats(0.01, 3))
def test_a_pairs_loss_pulls_its_answers_apart(
    method: Method, better: float, worse: float, references: tuple[float, float], beta: float
) -> None:
    """Below the gap that it wants: the better answer becomes likelier, the worse one less likely."""
    assert not isinstance(method.loss, str)
    assert method.metrics is not None
    sides = answers([better], [references[0]]), answers([worse], [references[1]])
    options = {**method.options, "beta": beta}
    loss = method.loss(*sides, **options)
    assert loss.shape == (1,)
    loss.sum().backward()
    figures = {name: float(figure.detach()) for name, figure in method.metrics(*sides, **options).items()}
    assert figures["accuracy"] in (0.0, 1.0)
    assert (figures["margin"] > 0) == (figures["accuracy"] == 1.0)
    assert figures["margin"] == pytest.approx(figures["reward_chosen"] - figures["reward_rejected"], abs=1e-4)
    if figures["margin"] < 0.4:  # ipo's gap is reached at 1 / 2
        assert sides[0].logprobs.grad is not None
        assert sides[1].logprobs.grad is not None
        assert float(sides[0].logprobs.grad) < 0 <= float(sides[1].logprobs.grad)


@given(
    logprobs=st.lists(numbers, min_size=2, max_size=5),
    reference=numbers,
    mask=st.integers(0, 31),
    beta=st.floats(0.01, 3),
)
def test_good_answers_become_likelier_and_bad_ones_less_likely(
    logprobs: list[float], reference: float, mask: int, beta: float
) -> None:
    method = METHODS["kto"]
    assert not isinstance(method.loss, str)
    assert method.metrics is not None
    values = [float(mask >> i & 1) for i in range(len(logprobs))]
    asked = answers(logprobs, [reference] * len(logprobs), values)
    options = {**method.options, "beta": beta}
    loss = method.loss(asked, **options)
    assert ((loss >= 0) & (loss <= 1)).all()
    loss.sum().backward()
    assert asked.logprobs.grad is not None
    for value, slope in zip(values, asked.logprobs.grad.tolist(), strict=True):
        assert slope <= 0 if value else slope >= 0
    figures = method.metrics(asked, **options)
    for name, kind in (("reward_good", 1.0), ("reward_bad", 0.0)):
        rewards = [beta * (one - reference) for one, value in zip(logprobs, values, strict=True) if value == kind]
        told = [value for value in figures[name].tolist() if value == value]
        assert told == pytest.approx(rewards, abs=1e-3)


@pytest.mark.parametrize("method", OF_ANSWERS, ids=lambda method: method.name)
def test_a_row_counts_by_itself(method: Method) -> None:
    """A row's loss is the same beside others, but for the methods of whose formula the others are a part."""
    chance = torch.Generator().manual_seed(1)
    logprobs, reference = -20 * torch.rand(2, 2, 4, generator=chance)
    reference[1] = logprobs[1] - 2  # kto's distance of the others is not 0
    tokens, values = torch.tensor([[2.0, 9.0, 3.0, 4.0], [5.0, 2.0, 8.0, 3.0]]), torch.tensor([1.0, 0.0, 1.0, 0.0])

    def told(rows: list[int]) -> list[float]:
        assert not isinstance(method.loss, str)
        first, second = (Answers(logprobs[k][rows], tokens[k][rows], reference[k][rows]) for k in (0, 1))
        if method.pairwise:
            return method.loss(first, second, **method.options).tolist()
        others = second if method.mismatched and len(rows) > 1 else None
        judged = Answers(first.logprobs, first.tokens, first.reference, values[rows], mismatched=others)
        return method.loss(judged, **method.options).tolist()

    alone = [told([row])[0] for row in range(4)]
    assert (told([0, 1, 2, 3]) == pytest.approx(alone)) is not method.looks_ahead


@pytest.mark.parametrize(("others", "distance"), [([-1.0, -2.0], 1.5), ([-5.0, -9.0], 0.0)])
def test_kto_counts_from_how_far_the_model_is_from_its_reference(others: list[float], distance: float) -> None:
    """Never from below it: z is the mean ratio of answers under other prompts, and at least 0."""
    mismatched = answers(others, [-3.0, -3.0])
    given = dataclasses.replace(answers([-1.0, -4.0], [-2.0, -2.0], [1.0, 0.0]), mismatched=mismatched)
    loss = METHODS["kto"].loss(given, beta=0.5, desirable_weight=1.0, undesirable_weight=3.0)
    gaps = torch.tensor([1.0 - distance, distance + 2.0])
    torch.testing.assert_close(loss.detach(), torch.tensor([1.0, 3.0]) * (1 - torch.sigmoid(0.5 * gaps)))


def test_a_file_and_its_method_share_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    import nbtune.methods.dpo as file

    monkeypatch.setattr(file, "METHOD", METHODS["ipo"])
    with pytest.raises(ValueError, match=r"methods/dpo\.py defines 'ipo'"):
        _discover()


def test_rows_of_another_kind_say_which_method_cannot_learn_from_them() -> None:
    from nbtune.data.formats.reader import Format

    pairs = Format("preference", {}, lambda row: row, "pairs")
    pairs.check(METHODS["dpo"].rows, "rows")
    for name in ("sft", "kto"):
        with pytest.raises(DataError, match="better and a worse answer"):
            pairs.check(METHODS[name].rows, "rows")
