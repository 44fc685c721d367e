"""Guards the hot paths without a clock: callgrind counts instructions per operation, and a budget in the
repository limits them. ``python -m benchmarks.instructions``."""
