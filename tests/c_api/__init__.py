"""Tests of the C API, from C programs and ctypes."""
