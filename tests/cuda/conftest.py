"""The driver of the CUDA tests: that of the machine's GPU, else the stand-in."""

from tests.cuda.fixtures import cuda, gpu, standin, work

__all__ = ["cuda", "gpu", "standin", "work"]
