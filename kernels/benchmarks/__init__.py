"""Benchmarks of the kernels: `python kernels/benchmarks/run.py` on a machine with a GPU."""
