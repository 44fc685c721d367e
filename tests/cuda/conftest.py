"""The CUDA tests' driver: a GPU's where there is one, else the stand-in."""

from tests.cuda.fixtures import cuda, gpu, standin, work

__all__ = ["cuda", "gpu", "standin", "work"]
