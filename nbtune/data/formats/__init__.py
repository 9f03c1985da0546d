"""Rows as conversations, texts, pairs and judged answers: which format a row has, and how it is read."""
