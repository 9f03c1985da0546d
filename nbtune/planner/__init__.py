"""What it will cost: memory and time models, and the choice of a strategy. Plans from plain facts, loads nothing."""

from nbtune.planner.gpu_sizes import fits_in
from nbtune.planner.plan import Plan
from nbtune.planner.planner import make_plan

__all__ = ["Plan", "fits_in", "make_plan"]
