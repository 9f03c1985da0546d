"""Runs on disk and in hand: folder, owner, checkpoints, the worker that fills a folder, the handle that reads it."""
