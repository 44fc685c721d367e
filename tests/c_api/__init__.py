"""The C interface, as C programs and ctypes see it."""
