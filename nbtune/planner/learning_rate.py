"""The learning rate that a plan chooses where the spec leaves it open: by the model's width, what is trained, and how.

One rate for all models is wrong for most of them: what an 8B model learns well with leaves a model of ten million
parameters where it was. The numbers of the rule for adapters are a calibration that tinker-cookbook published
(`hyperparam_utils`; exponents fitted on Llama and on Qwen models), as is the tenth for training without an adapter;
docs/explanation/learning-rate.md says how they compare with what was measured later, docs/explanation/defaults.md how
they do on the embedded model and on SmolLM2-135M.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from nbtune.methods import METHODS

if TYPE_CHECKING:
    from nbtune.planner.plan import Plan
    from nbtune.spec import RunSpec

_BASE, _WIDTH = 5e-4, 2000
_EXPONENT, _QWEN = 0.781, 0.0775
_NARROWEST = 256  # below it nothing was measured, and the rule would go on rising
_FACTORS = 3e-3  # Liu et al. 2022, "Few-Shot Parameter-Efficient Fine-Tuning is Better …", section 3.5
_OF_SIGNS = 1 / 5  # Chen et al. 2023, "Symbolic discovery of optimization algorithms", section 5: a third to a tenth
_LONG = 1200  # steps from which on the rule holds as it is; a shorter run learns more of each
_MOST_SHORT, _WIDE_SHORT = 4.3, 1.5  # how much more at most: as measured at `_MEASURED`; of wide models
_MEASURED = 576  # SmolLM2-135M's
_HIGHEST = 0.01  # of any: twice that spoils the embedded model
_SAID = {1 / 4: "a quarter", 1 / 10: "a tenth"}


def rate_of(spec: RunSpec, architecture: str, hidden_size: int, steps: int) -> tuple[float, str]:
    """Return the peak of the schedule and the reason for it: what the spec says, or two digits of the rule.

    Args:
        spec: its `learning_rate`, `adapter` and `method` count.
        architecture: transformers' class name, such as ``LlamaForCausalLM``.
        hidden_size: of the model, in numbers per token.
        steps: of the run.
    """
    if spec.learning_rate is not None:
        return spec.learning_rate, "as asked"
    if spec.adapter.type == "ia3":
        return _FACTORS, "IA3's own, as in its paper"
    exponent = _QWEN if architecture.startswith("Qwen") else _EXPONENT
    width = max(hidden_size, _NARROWEST)
    share = METHODS[spec.method].learning_rate_share
    rate = _BASE * (_WIDTH / width) ** exponent * share
    reason = f"by the model's hidden size: {_BASE:g} × ({_WIDTH} / {width})^{exponent:g}"
    if spec.adapter.type == "full":
        rate, reason = rate / 10, f"{reason}; a tenth of it, because every weight is trained"
    elif share == 1 and METHODS[spec.method].by_tokens and (more := _for_few(steps, width, rate)) > 1:
        rate, reason = rate * more, f"{reason}; {more:.2g} times that, since {steps:,} steps are few"
    if "lion" in spec.optim:
        rate, reason = rate * _OF_SIGNS, f"{reason}; a fifth of it for Lion, whose steps have one size"
    if share != 1:
        reason += f"; {_SAID.get(share, f'{share:g}')} of it for {_of_what(spec)}"
    return float(f"{rate:.1e}"), reason


def _of_what(spec: RunSpec) -> str:
    return "rewards" if METHODS[spec.method].online else "preferences"


def _for_few(steps: int, width: int, rate: float) -> float:
    """Return what the rate of adapters is multiplied by in a short run: up to 4.3 where that was measured, up to
    1.5 in models 1.7 times as wide or wider, and to no more than what the narrowest bear.

    docs/explanation/defaults.md has the measurements, and where the 1.5 comes from.
    """
    most = min(max(_WIDE_SHORT, _MOST_SHORT * (_MEASURED / width) ** 2), _MOST_SHORT, _HIGHEST / rate)
    return max(1.0, min(math.sqrt(_LONG / min(steps, _LONG)), most))


def with_its_rate(spec: RunSpec, plan: Plan) -> RunSpec:
    """Return the spec to repeat a run with: with the rate that its plan chose, where today's rule chooses another."""
    about = plan.architecture, plan.hidden_size, plan.total_steps
    if spec.learning_rate is not None or plan.learning_rate == rate_of(spec, *about)[0]:
        return spec
    return spec.model_copy(update={"learning_rate": plan.learning_rate})
