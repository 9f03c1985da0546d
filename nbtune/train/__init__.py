"""How it learns: our own loop over pure losses, its control, its schedule. It does not know the run's folder."""
