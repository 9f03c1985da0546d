"""What it will cost: memory and time models, and the choice of a strategy. Plans from plain facts, loads nothing."""

from nbtune.models.memory_estimate import MemoryPlan
from nbtune.planner.gpu_sizes import CARDS, fits_in
from nbtune.planner.learning_rate import with_its_rate
from nbtune.planner.plan import Plan
from nbtune.planner.planner import DEFAULT_EPOCHS, make_plan

__all__ = ["CARDS", "DEFAULT_EPOCHS", "MemoryPlan", "Plan", "fits_in", "make_plan", "with_its_rate"]
