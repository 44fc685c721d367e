"""Code that drop-ins share. The drop-ins themselves are `slabpool.numba`, `slabpool.cupy` and so on."""
