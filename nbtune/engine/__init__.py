"""A run folder becomes a run: the engine, the launchers that start it, and what it says of the machine meanwhile."""
