"""All mutants, by room."""

from tests.mutants.mutant import Mutant
from tests.mutants.table.blocks import BLOCKS
from tests.mutants.table.data import DATA
from tests.mutants.table.export import EXPORT
from tests.mutants.table.models import MODELS
from tests.mutants.table.plans import PLANS
from tests.mutants.table.store import STORE
from tests.mutants.table.surface import SURFACE
from tests.mutants.table.train import TRAIN

MUTANTS: tuple[Mutant, ...] = (*DATA, *MODELS, *BLOCKS, *PLANS, *TRAIN, *STORE, *EXPORT, *SURFACE)
