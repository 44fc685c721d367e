"""A guard against slower hot paths that is not a stopwatch: instructions per operation, counted by
callgrind, against a budget kept in the repository. ``python -m benchmarks.instructions``."""
