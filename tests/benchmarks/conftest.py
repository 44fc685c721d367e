"""A CUDA driver for the benchmarks on a GPU: a GPU's, else the stand-in."""

from tests.cuda.fixtures import cuda, standin

__all__ = ["cuda", "standin"]
