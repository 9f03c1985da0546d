"""Conversations as text by the tokenizer's own chat template, with a memory of which character came from where."""
