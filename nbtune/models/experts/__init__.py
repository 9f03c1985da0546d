"""A mixture's experts: their stacked weights, LoRA on them, and their products by groups."""
