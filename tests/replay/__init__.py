"""Tests of ``slabpool replay``."""
