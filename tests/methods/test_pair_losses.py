"""DPO's family and its kin by hand: each loss from its paper's formula, of single numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from nbtune.errors import SpecError
from nbtune.methods import METHODS, Answers
from nbtune.spec import from_mapping, from_yaml, to_yaml
from nbtune.spec.loss_options import options_of

BETA, EPSILON = 0.3, 0.2
CHOSEN, REJECTED, BASE = (-7.0, -3.5, -12.0), (-4.0, -9.0, -11.0), ((-8.0, -3.0, -10.0), (-5.0, -4.0, -11.5))
LENGTHS = ((5, 2, 7), (3, 4, 6))


def log_sigma(x: float) -> float:
    return -math.log(1 + math.exp(-x))


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def exo(w: float, z: float, b: float, e: float) -> float:
    p = sigma(b * (w - z))
    return p * math.log(p / (1 - e)) + (1 - p) * math.log((1 - p) / e)


def discopop(w: float, z: float, b: float, e: float) -> float:
    gap = b * (w - z)
    m = sigma(gap / 0.05)
    return (1 - m) * math.log(1 + math.exp(-gap)) + m * math.exp(-gap)


# of w = r_w, z = r_l, beta and epsilon, as the papers have them
PAPERS: dict[str, Callable[[float, float, float, float], float]] = {
    "sigmoid": lambda w, z, b, e: -(1 - e) * log_sigma(b * (w - z)) - e * log_sigma(-b * (w - z)),
    "robust": lambda w, z, b, e: (-(1 - e) * log_sigma(b * (w - z)) + e * log_sigma(-b * (w - z))) / (1 - 2 * e),
    "hinge": lambda w, z, b, e: max(0.0, 1 - b * (w - z)),
    "exo_pair": exo,
    "nca_pair": lambda w, z, b, e: -log_sigma(b * w) - (log_sigma(-b * w) + log_sigma(-b * z)) / 2,
    "sppo_hard": lambda w, z, b, e: (w - 1 / (2 * b)) ** 2 + (z + 1 / (2 * b)) ** 2,
    "apo_zero": lambda w, z, b, e: 1 - sigma(b * w) + sigma(b * z),
    "apo_down": lambda w, z, b, e: sigma(b * w) + 1 - sigma(b * w - b * z),
    "bco_pair": lambda w, z, b, e: -log_sigma(b * w) - log_sigma(-b * z),
    "discopop": discopop,
}


def sides(reference: bool = True) -> tuple[Answers, Answers]:
    made = []
    for logprobs, base, lengths in zip((CHOSEN, REJECTED), BASE, LENGTHS, strict=True):
        made.append(
            Answers(torch.tensor(logprobs), torch.tensor(lengths).float(), torch.tensor(base) if reference else None)
        )
    return made[0], made[1]


def loss(method: str, *given: Answers, **fields: Any) -> list[float]:
    """Losses as a spec asks for them."""
    spec = from_yaml(to_yaml(from_mapping({"data": "rows", "method": method, **fields})))
    found: Any = METHODS[method].loss
    return found(*given, **{**METHODS[method].options, **options_of(spec)}).tolist()  # type: ignore[no-any-return]


def ratios(a_token: bool = False) -> list[tuple[float, float]]:
    by = LENGTHS if a_token else ((1, 1, 1), (1, 1, 1))
    return [((CHOSEN[i] - BASE[0][i]) / by[0][i], (REJECTED[i] - BASE[1][i]) / by[1][i]) for i in range(len(CHOSEN))]


def test_every_loss_is_known_here() -> None:
    assert METHODS["dpo"].loss_types.keys() == PAPERS.keys()


@pytest.mark.parametrize("a_token", [False, True])
@pytest.mark.parametrize("name", PAPERS)
def test_dpos_family(name: str, a_token: bool) -> None:
    smoothed = "label_smoothing" in METHODS["dpo"].loss_types[name]
    options = {"type": name, "rpo_alpha": 0.7, "length_normalized": a_token}
    options |= {"label_smoothing": EPSILON} if smoothed else {}
    found = loss("dpo", *sides(), beta=BETA, loss=options)
    expected = [
        PAPERS[name](w, z, BETA, EPSILON) - 0.7 * CHOSEN[i] / LENGTHS[0][i] for i, (w, z) in enumerate(ratios(a_token))
    ]
    assert found == pytest.approx(expected, rel=1e-5)


def test_without_a_word_on_it_it_is_dpo() -> None:
    expected = [-log_sigma(0.1 * (w - z)) for w, z in ratios()]
    assert loss("dpo", *sides()) == pytest.approx(expected, rel=1e-6)
    assert loss("dpo", *sides(), loss="sigmoid") == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("kind", "smoothing"), [("sigmoid", 0.0), ("sigmoid", EPSILON), ("hinge", 0.0)])
def test_cpo(kind: str, smoothing: float) -> None:
    options = {"type": kind, "cpo_alpha": 0.5} | ({"label_smoothing": smoothing} if smoothing else {})
    found = loss("cpo", *sides(reference=False), beta=BETA, loss=options)
    expected = [PAPERS[kind](w, z, BETA, smoothing) for w, z in zip(CHOSEN, REJECTED, strict=True)]
    imitation = -sum(CHOSEN) / sum(LENGTHS[0])
    assert sum(found) / 3 == pytest.approx(sum(expected) / 3 + 0.5 * imitation, rel=1e-6)


@pytest.mark.parametrize("values", [(1.0, 0.0, 1.0), (0.0, 0.0, 1.0), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0)])
def test_bco(values: tuple[float, ...]) -> None:
    given = Answers(sides()[0].logprobs, sides()[0].tokens, sides()[0].reference, torch.tensor(values))
    weights = {"desirable_weight": 1.5, "undesirable_weight": 0.5}
    found = loss("bco", given, beta=BETA, batch_size=3, loss=weights)
    rewards = [BETA * (c - b) for c, b in zip(CHOSEN, BASE[0], strict=True)]
    kinds = [[r for r, v in zip(rewards, values, strict=True) if v == kind] for kind in (1.0, 0.0)]
    means = [sum(kind) / len(kind) for kind in kinds if kind]
    shift = sum(means) / len(means)
    expected = [
        -1.5 * log_sigma(r - shift) if v else -0.5 * log_sigma(shift - r) for r, v in zip(rewards, values, strict=True)
    ]
    assert found == pytest.approx(expected, rel=1e-5)


def test_simpos_margin_and_ktos_weights_come_from_the_spec() -> None:
    one, other = sides(reference=False)
    gaps = [c / n - r / m for c, r, n, m in zip(CHOSEN, REJECTED, *LENGTHS, strict=True)]
    expected = [-log_sigma(2 * gap - 0.25) for gap in gaps]
    assert loss("simpo", one, other, loss={"gamma": 0.25}) == pytest.approx(expected, rel=1e-5)
    given = Answers(one.logprobs, one.tokens, sides()[0].reference, torch.tensor([1.0, 0.0, 1.0]))
    plain, weighted = loss("kto", given), loss("kto", given, loss={"undesirable_weight": 3})
    assert weighted == pytest.approx([plain[0], 3 * plain[1], plain[2]])


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"method": "sft", "loss": "hinge"}, "nothing to method `sft`, but to cpo, dpo"),
        ({"method": "dpo", "loss": {"gamma": 1}}, "`loss.gamma` is nothing to method `dpo`, but to simpo"),
        ({"method": "cpo", "loss": "apo_zero"}, "method `cpo` has no loss `apo_zero`; it has sigmoid, hinge"),
        ({"method": "dpo", "loss": {"type": "hinge", "label_smoothing": 0.1}}, "but to sigmoid, robust, exo_pair"),
        ({"method": "dpo", "loss": {"label_smoothing": 0.5}}, "less than 0.5"),
        ({"method": "dpo", "loss": "nonsense"}, "'sigmoid'"),
    ],
)
def test_what_a_method_does_not_know_is_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError, match=said):
        from_mapping({"data": "rows", **fields})
