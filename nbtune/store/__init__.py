"""What of a run is on disk: its folder, lock, checkpoints, event log, wishes, and the losses of its rows."""
