"""Studies of whether models learn: `python -m benchmarks.learning --help`."""
