"""From a dataset to the batches of a step: packed, mixed, ordered, collated."""
