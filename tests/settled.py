"""The figures of a pool of which nothing goes back to the system by itself."""

from __future__ import annotations

from slabpool import Pool, Stats


def settled(pool: Pool) -> Stats:
    """Its figures after a trim. Committed memory that is not used goes back as time passes, so two looks at a
    pool that no call changes are equal only after this.
    """
    pool.trim()
    return pool.stats()
