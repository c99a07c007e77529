"""Benchmarks: `python -m benchmarks.train_step`."""
