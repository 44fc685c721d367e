"""Code that several drop-ins share. The drop-ins themselves are `slabpool.numba`, `slabpool.cupy`, …"""
