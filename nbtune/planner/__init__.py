"""What it will cost: memory and time models, and the choice of a strategy. Plans from plain facts, loads nothing."""

from nbtune.planner.cards import CARDS, fits_in
from nbtune.planner.choose import DEFAULT_EPOCHS, make_plan
from nbtune.planner.plan import MemoryPlan, Plan
from nbtune.planner.rates import with_its_rate

__all__ = ["CARDS", "DEFAULT_EPOCHS", "MemoryPlan", "Plan", "fits_in", "make_plan", "with_its_rate"]
