"""Pools used by several processes."""
