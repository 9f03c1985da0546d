"""What it will cost: memory and time models, and the choice of a strategy. Plans from plain facts, loads nothing."""

from nbtune.planner.choose import make_plan
from nbtune.planner.plan import MemoryPlan, Plan

__all__ = ["MemoryPlan", "Plan", "make_plan"]
