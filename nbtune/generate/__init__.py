"""Answers of a model in memory, token by token."""
