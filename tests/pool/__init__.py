"""The Python API of the pool, one file per subject."""
