"""Checks of what callers pass: sizes, kinds of memory, the options of a pool. Uses nothing but the errors."""
