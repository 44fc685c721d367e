"""Checks of arguments: sizes, kinds of memory, the options of a pool. Uses only `slabpool.errors`."""
