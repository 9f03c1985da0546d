"""The recipe "add a method", carried out on a copy of the tree: one new file, and all that reads methods knows it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.recipe import changed, copy_tree, python

HINGE = '''\
"""Sequence likelihood calibration's hinge (Zhao et al. 2023, arXiv 2305.10425), on means and without a reference.

    loss = max(0, γ - β (log π(w) / |w| - log π(l) / |l|))
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nbtune.methods._method import Answers, Method

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["METHOD"]


def loss(better: Answers, worse: Answers, *, beta: float, gamma: float) -> Tensor:
    """Return a loss a pair, `[P]`."""
    return (gamma - beta * (better.means - worse.means)).clamp(min=0)


METHOD = Method(
    name="hinge",
    title="Hinge on likelihoods",
    sentence="prefer the better answer, up to a margin",
    columns="prompt, chosen, rejected",
    rows="pairs",
    loss=loss,
    options={"beta": 3.0, "gamma": 1.0},
    learning_rate_share=1 / 5,
)
'''
FOCAL = '''\
"""Text classification that looks at hard texts (Lin et al. 2017, arXiv 1708.02002).

    loss = -(1 - p)^γ log p      p = p(label | text)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nbtune.methods._measures import recognised
from nbtune.methods._method import Answers, Method

if TYPE_CHECKING:
    from torch import Tensor


def loss(answers: Answers, *, gamma: float) -> Tensor:
    """Return a loss a text, `[N]`."""
    assert answers.scores is not None
    likely = answers.scores.log_softmax(-1).gather(1, answers.classes[:, None])[:, 0]
    return -((1 - likely.exp()) ** gamma) * likely


METHOD = Method(
    name="focal",
    title="Focal classification",
    sentence="name a text's label, above all where that is hard",
    columns="text, label",
    rows="labelled",
    loss=loss,
    options={"gamma": 2.0},
    head="text",
    metrics=recognised,
)
'''
SPEC = "data: nbtune/preferences\nmethod: hinge\nsteps: 2\nbatch_size: 2\npacking: true\ndevice: cpu\n"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of both packages, with a file more for each of two methods."""
    root = copy_tree(tmp_path_factory.mktemp("tree"))
    for name, text in (("hinge", HINGE), ("focal", FOCAL)):
        (root / "nbtune" / "methods" / f"{name}.py").write_text(text, encoding="utf-8")
    (root / "spec.yaml").write_text(SPEC, encoding="utf-8")
    return root


def test_the_plan_knows_it(tree: Path) -> None:
    plan = json.loads(python(tree, "-m", "nbtune", "plan", "spec.yaml", "--json"))
    assert "0.2 of it for preferences" in plan["learning_rate_reason"]


@pytest.mark.slow
def test_a_run_learns_by_it(tree: Path) -> None:
    """The first loss is the formula's, of the model as it came; what rows it wants is checked like any method's."""
    code = """
import nbtune
from nbtune.errors import DataError, SpecError

spec = open("spec.yaml", encoding="utf-8").read()
run = nbtune.finetune(spec, name="hinge").wait()
assert run.state == "finished" and run.history["loss"].notna().all(), run.error
(check,) = [event for event in run.events() if event.type == "check"]
assert check.passed, check.detail
other = nbtune.finetune(spec, name="wider", beta=1e-9, packing=False).wait()
assert abs(other.history["loss"].iloc[0] - 1) < 1e-6, other.history
for more, error in (({"data": [{"text": "hi"}]}, DataError), ({"beta": -1}, SpecError)):
    try:
        nbtune.finetune(spec, name="wrong", **more)
    except error:
        continue
    raise AssertionError(more)
"""
    python(tree, "-c", code)
    assert changed(tree) == ["nbtune/methods/focal.py", "nbtune/methods/hinge.py"]


@pytest.mark.slow
def test_a_method_that_gives_scores_trains_a_head_of_its_own(tree: Path) -> None:
    code = """
import json, nbtune

rows = [{"text": f"It was {word}, {k}.", "label": word} for k in range(4) for word in ("bad", "good", "so")]
spec = {"data": rows, "steps": 1, "batch_size": 6, "device": "cpu", "eval": {"split": 0}}
known = nbtune.finetune(method="classification", **spec).wait()
plain = nbtune.finetune(method="focal", loss={"gamma": 0}, **spec).wait()
hard = nbtune.finetune(method="focal", **spec).wait()
first = [run.history["loss"].iloc[0] for run in (known, plain, hard)]
assert abs(first[0] - first[1]) < 1e-5 and first[2] < first[1], first
assert json.loads((hard.folder / "adapter/head.json").read_text())["labels"] == ["bad", "good", "so"]
assert hard.plan.trainable_parameters == known.plan.trainable_parameters
"""
    python(tree, "-c", code)


@pytest.mark.slow
def test_form_help_and_reference_know_it(tree: Path) -> None:
    code = """
import json, nbtune
setup = nbtune.form().setup
(field,) = [field for field in setup["fields"] if field["key"] == "method"]
print(json.dumps(field))
"""
    field = json.loads(python(tree, "-c", code))
    assert "hinge" in field["choices"]
    assert "hinge: prefer the better answer, up to a margin (rows with prompt, chosen, rejected)" in json.dumps(field)
    python(tree, "-m", "nbtune.spec.reference", "spec.md")
    page = (tree / "spec.md").read_text(encoding="utf-8")
    assert "`dpo`, `hinge`, `ipo`" in page
    assert "| `hinge` | **Hinge on likelihoods**" in page
    assert "unset: 0.1, for hinge 3, for simpo 2" in page
    assert "hinge" in python(tree, "-m", "nbtune.notebook.reference")
