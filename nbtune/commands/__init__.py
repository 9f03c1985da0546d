"""The commands, each once: what `nbtune …`, `%nbtune …`, Tab and the pages of docs/reference are made of.

`table` says what commands there are: an entry there is all that a new one needs. `values` looks up what Tab offers.
"""

from nbtune.commands.command import Argument, Command, Door
from nbtune.commands.table import COMMANDS, commands_of

__all__ = ["COMMANDS", "Argument", "Command", "Door", "commands_of"]
