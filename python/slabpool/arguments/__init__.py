"""Checks of arguments (sizes, kinds of memory, the options of a pool), and values as texts for messages.

Uses only `slabpool.errors`.
"""
