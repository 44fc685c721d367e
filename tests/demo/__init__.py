"""Tests of ``slabpool demo``."""
