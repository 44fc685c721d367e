"""A CUDA driver for the GPU benchmarks: the real driver if there is a GPU, else the stand-in."""

from tests.cuda.fixtures import cuda, standin

__all__ = ["cuda", "standin"]
